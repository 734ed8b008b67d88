//! A small cluster: three replicas of one partition, a controller that obeys the rules, and everything that can go wrong in
//! between, at random. After every step: what is committed stays, logs match, whoever may be elected has it all.
//!
//! To look harder: `PROPTEST_CASES=100000 cargo test -p tidemark-replication --test cluster`.

#![expect(clippy::unwrap_used, reason = "a property that cannot be checked is a failed test")]

mod controller;
mod divergence;
mod ghost;
mod log;
mod scenarios;
mod world;

use proptest::prelude::*;
use tidemark_protocol::{BrokerId, messages::Acks};
use tidemark_replication::StorageDurability;

use self::world::World;

const IDS: [BrokerId; 3] = [1, 2, 3];

/// What happens next. `usize` is a place in [`IDS`], or among what is on its way.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many records.
    Produce(usize, u64, Acks),
    BeginFlush(usize),
    EndFlush(usize),
    Deliver(usize),
    Lose(usize),
    WaitMs(u64),
    /// So many states of the metadata further.
    Follow(usize, usize),
    /// Of a follower and a leader.
    Break(usize, usize),
    /// So many records survive of what was not flushed.
    Crash(usize, u64),
    ShutDown(usize),
    /// The disk is lost with the process, and there is another in its place.
    Wipe(usize),
    Restart(usize),
    Fence(usize),
    Unfence(usize),
    Elect(usize),
    Remove(usize),
    Add(usize),
    /// Per mille of what is committed.
    Trim(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..IDS.len();
    let acks = prop_oneof![Just(Acks::All), Just(Acks::Leader), Just(Acks::None)];
    // Mostly what has waited longest.
    let which = prop_oneof![2 => Just(0_usize), 1 => 0..64_usize];
    let ms = prop_oneof![1..150_u64, Just(600), Just(2_500)];
    prop_oneof![
        6 => (who(), 1..4_u64, acks).prop_map(|(who, count, acks)| Step::Produce(who, count, acks)),
        4 => who().prop_map(Step::BeginFlush),
        6 => who().prop_map(Step::EndFlush),
        24 => which.prop_map(Step::Deliver),
        1 => (0..64_usize).prop_map(Step::Lose),
        2 => ms.prop_map(Step::WaitMs),
        6 => (who(), 0..4_usize).prop_map(|(who, states)| Step::Follow(who, states)),
        2 => (who(), who()).prop_map(|(follower, leader)| Step::Break(follower, leader)),
        1 => (who(), 0..4_u64).prop_map(|(who, kept)| Step::Crash(who, kept)),
        1 => who().prop_map(Step::ShutDown),
        1 => who().prop_map(Step::Wipe),
        3 => who().prop_map(Step::Restart),
        1 => who().prop_map(Step::Fence),
        2 => who().prop_map(Step::Unfence),
        2 => who().prop_map(Step::Elect),
        1 => who().prop_map(Step::Remove),
        1 => who().prop_map(Step::Add),
        1 => (who(), 0..=1000_u64).prop_map(|(who, per_mille)| Step::Trim(who, per_mille)),
    ]
}

impl World {
    fn take(&mut self, step: Step) {
        let newest = self.controller.states.len() - 1;
        let waiting = self.network.len();
        match step {
            Step::Produce(who, records, acks) => self.produce(IDS[who], records, acks),
            Step::BeginFlush(who) => self.begin_flush(IDS[who]),
            Step::EndFlush(who) => self.end_flush(IDS[who]),
            Step::Deliver(which) if waiting > 0 => self.deliver(which % waiting),
            Step::Lose(which) if waiting > 0 => drop(self.network.remove(which % waiting)),
            Step::WaitMs(ms) => {
                self.now_ms += ms;
                for id in IDS {
                    self.tick(id);
                }
            }
            Step::Follow(who, states) => {
                let followed = self.brokers[&IDS[who]].followed;
                self.follow(IDS[who], (followed + states).min(newest));
            }
            Step::Break(follower, leader) if follower != leader => {
                self.break_stream(IDS[follower], IDS[leader]);
            }
            Step::Crash(who, kept) => self.crash(IDS[who], kept),
            Step::ShutDown(who) => self.shut_down(IDS[who]),
            Step::Wipe(who) => self.wipe(IDS[who]),
            Step::Restart(who) => self.restart(IDS[who]),
            Step::Fence(who) => self.controller.fence(IDS[who]),
            Step::Unfence(who) if self.brokers[&IDS[who]].is_up => {
                self.controller.unfence(IDS[who]);
            }
            Step::Deliver(_) | Step::Lose(_) | Step::Break(..) | Step::Unfence(_) => {}
            Step::Elect(who) => self.controller.elect(IDS[who]),
            Step::Remove(who) => self.controller.remove_replica(IDS[who]),
            Step::Add(who) => self.controller.add_replica(IDS[who]),
            Step::Trim(who, per_mille) => self.trim(IDS[who], per_mille),
        }
        // Whoever may be elected is looked at after the controller's decisions, too.
        self.check(IDS[0]);
    }

    /// Everybody is up, hears everything and breaks with the past; then time passes until nothing is left to do.
    fn heal(&mut self) {
        self.refuses_every = u64::MAX;
        self.network.clear();
        for id in IDS {
            self.restart(id);
            self.controller.unfence(id);
            self.controller.add_replica(id);
        }
        for _ in 0..60 {
            self.now_ms += 500;
            for id in IDS {
                self.follow(id, self.controller.states.len() - 1);
                self.tick(id);
            }
            let leader = self.controller.now().leader.expect("somebody may lead");
            for id in IDS.into_iter().filter(|id| *id != leader) {
                self.break_stream(id, leader);
            }
            for _ in 0..400 {
                for id in IDS {
                    self.begin_flush(id);
                    self.end_flush(id);
                }
                if self.network.is_empty() {
                    break;
                }
                self.deliver(0);
            }
            if self.is_quiet() {
                return;
            }
        }
        panic!("it does not come to rest: {}", self.describe());
    }
}

fn live(durability: StorageDurability, min_insync: u16, refuses_every: u64, steps: &[Step]) {
    let mut world = World::new(&IDS, durability, min_insync);
    world.refuses_every = refuses_every;
    for step in steps {
        world.take(*step);
    }
    world.heal();
}

proptest! {
    #[test]
    fn what_is_committed_on_disks_stays_whatever_happens(
        min_insync in 1..=3_u16,
        refuses_every in prop_oneof![Just(u64::MAX), 2..20_u64],
        steps in prop::collection::vec(step(), 1..500),
    ) {
        live(StorageDurability::Disk, min_insync, refuses_every, &steps);
    }

    #[test]
    fn what_is_committed_in_memory_stays_while_no_machine_loses_power(
        min_insync in 1..=3_u16,
        refuses_every in prop_oneof![Just(u64::MAX), 2..20_u64],
        steps in prop::collection::vec(step(), 1..500),
    ) {
        live(StorageDurability::Memory, min_insync, refuses_every, &steps);
    }
}
