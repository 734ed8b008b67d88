//! Two logs that differ, and where the follower has to go back to: the seven cases of KIP-966's description, and those
//! that take more than one question.

use tidemark_protocol::Offset;
use tidemark_replication::StorageDurability;

use crate::{log::Log, world::World};

/// Higher than any epoch in a log here.
const EPOCH: u32 = 10;

/// A log from `start` on with a record of each of these epochs.
fn log(start: Offset, epochs: &[u32]) -> Log {
    let mut log = Log::default();
    log.restart_at(start);
    for epoch in epochs {
        // The same epoch wrote the same record there.
        log.append((*epoch, u64::from(*epoch) * 1000 + log.end()));
    }
    log.flushed = log.end();
    log
}

/// Where a follower with the second log goes back to, one question after the other, under a leader with the first.
fn cuts_from(leader_start: Offset, leader: &[u32], follower: &[u32]) -> Vec<Offset> {
    let mut world = World::new(&[1, 2], StorageDurability::Disk, 1);
    world.network.clear();
    let mut state = world.controller.now().clone();
    (state.leader_epoch, state.partition_epoch) = (EPOCH, EPOCH);
    state.isr.remove(&2);
    world.controller.states.push(state);
    for (id, start, epochs) in [(1, leader_start, leader), (2, 0, follower)] {
        let broker = world.brokers.get_mut(&id).unwrap();
        (broker.log, broker.replica) = (log(start, epochs), None);
        // What readers may have seen, as long as nothing is known of it.
        world.ghost.trust(&world.brokers[&1].log);
    }
    world.follow(1, 1);
    world.follow(2, 1);
    world.deliver_those(|_| true);
    let [one, two] = [1, 2].map(|id| world.brokers[&id].log.clone());
    let records = |log: &Log| log.read(log.start(), usize::MAX);
    assert_eq!(records(&two), one.read(two.start(), usize::MAX), "the same in the end");
    assert_eq!(one.end(), two.end());
    world.cuts.into_iter().map(|(_, offset)| offset).collect()
}

#[test]
fn a_follower_goes_back_to_where_the_logs_part() {
    for (case, leader, follower, cuts) in [
        ("A: behind, in the same epoch", &[1, 1, 1, 1][..], &[1, 1][..], &[][..]),
        ("B: behind, and there were epochs since", &[1, 1, 2, 2], &[1, 1], &[]),
        ("C: ahead, in the same epoch", &[1, 1], &[1, 1, 1, 1], &[2]),
        ("D: ahead, in a later epoch", &[1, 1], &[1, 1, 2, 2], &[2]),
        ("E: forked, in two epochs", &[1, 1, 3, 3], &[1, 1, 2, 2], &[2]),
        ("F: forked, the leader's epoch went on", &[1, 1, 1, 1], &[1, 2, 2], &[1]),
        ("G: nothing in common", &[1, 1], &[2, 2], &[0]),
        ("two questions", &[1, 1, 3, 3], &[1, 2, 2, 4], &[3, 1]),
        ("four questions", &[1, 3, 5, 7], &[2, 4, 4, 6, 6, 8], &[4, 3, 1, 0]),
        ("nothing here", &[1, 1], &[], &[]),
        ("nothing there", &[], &[1, 1], &[0]),
    ] {
        assert_eq!(cuts_from(0, leader, follower), cuts, "{case}");
    }
}

#[test]
fn a_follower_of_a_leader_that_has_given_up_its_front_goes_back_no_further_than_need_be() {
    for (case, start, leader, follower, cuts) in [
        ("the follower ends before the leader begins", 5, &[3, 3][..], &[1, 1][..], &[5][..]),
        ("it ends where the leader begins", 2, &[3, 3], &[1, 1], &[]),
        ("it is inside", 2, &[1, 1, 1], &[1, 1, 1], &[]),
        ("it forked inside", 2, &[1, 1, 3], &[1, 1, 1, 1, 2], &[4]),
        ("it forked before, and nobody can tell where", 2, &[3, 3, 3], &[1, 2, 2, 2], &[2]),
    ] {
        assert_eq!(cuts_from(start, leader, follower), cuts, "{case}");
    }
}
