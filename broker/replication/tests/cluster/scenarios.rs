//! Lives of the cluster that are too rare to be met by chance, each the end of some broker's data once.

use tidemark_protocol::messages::Acks;
use tidemark_replication::StorageDurability;

use crate::{
    IDS,
    world::{Message, World},
};

impl World {
    /// Everything between these two is delivered, and everything flushed on both.
    fn replicate(&mut self, follower: u32, leader: u32) {
        for _ in 0..4 {
            self.deliver_those(|message| message.is_between(follower, leader));
            self.flush(follower);
            self.flush(leader);
        }
    }

    fn flush(&mut self, id: u32) {
        self.begin_flush(id);
        self.end_flush(id);
    }

    fn follow_newest(&mut self, id: u32) {
        self.follow(id, self.controller.states.len() - 1);
    }

    fn settle_isr(&mut self) {
        self.deliver_those(|it| {
            matches!(it, Message::AlterIsr { .. } | Message::IsrAnswered { .. })
        });
    }
}

fn world() -> World {
    World::new(&IDS, StorageDurability::Disk, 1)
}

/// 1 leads, then 2, then 1 again, and 1 never hears that it did not lead in between. Meanwhile 3 has gone back to where
/// 2's log ended: what 1 knew of it is not true any more.
#[test]
fn a_leader_that_missed_an_epoch_believes_nothing_of_its_followers() {
    let mut world = world();
    world.produce(1, 2, Acks::All);
    world.replicate(3, 1);
    world.controller.elect(2);
    world.follow_newest(2);
    world.follow_newest(3);
    world.replicate(3, 2);
    assert_eq!(world.brokers[&3].log.end(), 0, "3 has gone back with 2");
    world.controller.fence(2);
    assert_eq!(world.controller.now().leader, Some(1));
    world.follow_newest(1);
    world.produce(1, 1, Acks::All);
    world.flush(1);
    assert_eq!(world.ghost.true_watermark(), 0, "3 has nothing");
    world.follow_newest(3);
    world.replicate(3, 1);
    assert_eq!(world.ghost.true_watermark(), 3);
    world.heal();
}

/// 3 is taken away, loses its log, and is given back, and 1 hears of all that at once: as if 3 had only left the in-sync
/// set. Nothing may let it back in before it has said where it is.
#[test]
fn a_replica_that_was_taken_away_and_given_back_has_to_report_first() {
    let mut world = world();
    world.produce(1, 3, Acks::All);
    world.replicate(2, 1);
    world.replicate(3, 1);
    assert_eq!(world.ghost.true_watermark(), 3);
    world.controller.remove_replica(3);
    world.follow_newest(3);
    assert_eq!(world.brokers[&3].log.end(), 0, "its log is deleted");
    world.controller.add_replica(3);
    world.follow_newest(1);
    world.settle_isr();
    assert!(!world.controller.now().isr.contains(&3), "nobody has heard of it");
    world.follow_newest(2);
    world.follow_newest(3);
    world.replicate(3, 1);
    world.settle_isr();
    assert!(world.controller.now().isr.contains(&3));
    world.heal();
}

/// An answer of the leader comes after the stream has broken, the question has been asked anew, and everything it said
/// has been dealt with: what it says to cut off has been replaced by what is committed.
#[test]
fn a_diverging_answer_that_comes_late_cuts_nothing() {
    let mut world = world();
    world.produce(1, 1, Acks::All);
    world.replicate(2, 1);
    world.replicate(3, 1);
    // Only 3 has these, and 1, which is gone for good.
    world.produce(1, 2, Acks::Leader);
    world.replicate(3, 1);
    world.crash(1, 0);
    world.controller.fence(1);
    world.controller.elect(2);
    world.follow_newest(2);
    world.follow_newest(3);
    world.deliver_those(
        |it| matches!(it, Message::Position { from, to: 2, .. } if from.broker_id == 3),
    );
    let late = world.network.iter().position(|it| it.is_between(3, 2)).expect("2 has answered");
    let late = world.network.remove(late);
    world.break_stream(3, 2);
    world.produce(2, 2, Acks::All);
    world.replicate(3, 2);
    assert_eq!(world.ghost.true_watermark(), 3);
    world.network.push(late);
    world.replicate(3, 2);
    world.controller.fence(2);
    world.heal();
}

/// 3 has lost its disk. What it said before arrives after the leader knows its new run.
#[test]
fn what_a_follower_said_before_it_lost_its_disk_does_not_count() {
    let mut world = world();
    world.produce(1, 2, Acks::All);
    world.replicate(2, 1);
    world.replicate(3, 1);
    world.break_stream(3, 1);
    let said = world.network.iter().position(|it| it.is_between(3, 1)).expect("3 says where it is");
    let said = world.network.remove(said);
    world.wipe(3);
    world.restart(3);
    for id in IDS {
        world.follow_newest(id);
    }
    world.network.retain(|message| !message.is_between(3, 1));
    world.network.push(said);
    world.deliver_those(|message| message.is_between(3, 1));
    world.settle_isr();
    assert!(!world.controller.now().isr.contains(&3), "its disk is empty");
    world.heal();
}

/// 1 proposes to let 3 in, twice, for the first answer does not come. One copy is refused while 3 is fenced, the other
/// arrives when it is not any more. 1 may not have acknowledged anything without 3 in between.
#[test]
fn a_copy_of_a_refused_change_that_comes_late_lets_nobody_in() {
    let mut world = world();
    world.controller.fence(3);
    world.controller.unfence(3);
    for id in IDS {
        world.follow_newest(id);
    }
    world.produce(1, 2, Acks::All);
    world.replicate(2, 1);
    world.replicate(3, 1);
    let proposed = world.network.iter().position(|it| matches!(it, Message::AlterIsr { .. }));
    let late = world.network.remove(proposed.expect("3 has everything"));
    world.now_ms += 1_000;
    world.tick(1);
    world.controller.fence(3);
    world.settle_isr();
    world.controller.unfence(3);
    world.produce(1, 1, Acks::All);
    world.replicate(2, 1);
    world.network.push(late);
    world.settle_isr();
    assert!(!world.controller.now().isr.contains(&3), "the change was withdrawn");
    world.heal();
}
