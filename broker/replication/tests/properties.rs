//! Random lives of a leader that is in sync alone, against what the promises say, recomputed from scratch after every event.

#![expect(clippy::unwrap_used, reason = "a property that cannot be checked is a failed test")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_protocol::{
    ErrorCode,
    messages::{Acks, Durability},
};
use tidemark_replication::{
    Assignment, Config, Effect, Event, LogState, Member, Produced, Replica, Settings,
    StorageDurability,
};

#[derive(Clone, Debug)]
enum Step {
    Produce {
        acks: Acks,
        durability: Durability,
        records: u64,
        patience_ms: u64,
    },
    /// Flushes this share, in percent, of what is not flushed.
    Flush {
        percent: u64,
    },
    /// A flush is reported after a later one.
    ReportLate,
    Wait {
        ms: u64,
    },
    Set {
        durability: StorageDurability,
        min_insync_replicas: u16,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let acks = prop_oneof![Just(Acks::None), Just(Acks::Leader), Just(Acks::All)];
    let asked =
        prop_oneof![Just(Durability::Topic), Just(Durability::Memory), Just(Durability::Disk)];
    let stored = prop_oneof![Just(StorageDurability::Disk), Just(StorageDurability::Memory)];
    prop_oneof![
        8 => (acks, asked, 1..5_u64, 0..50_u64).prop_map(|(acks, durability, records, patience_ms)| {
            Step::Produce { acks, durability, records, patience_ms }
        }),
        4 => (0..=100_u64).prop_map(|percent| Step::Flush { percent }),
        1 => Just(Step::ReportLate),
        2 => (0..30_u64).prop_map(|ms| Step::Wait { ms }),
        1 => (stored, 1..3_u16).prop_map(|(durability, min_insync_replicas)| {
            Step::Set { durability, min_insync_replicas }
        }),
        1 => Just(Step::Restart),
    ]
}

/// The replica and what the world knows about it.
struct World {
    replica: Replica,
    now_ms: u64,
    epoch: u32,
    flushed: u64,
    next_token: u64,
    waiting: BTreeMap<u64, Produced>,
    flush_requested: u64,
}

impl World {
    fn new() -> Self {
        let config = Config {
            broker_id: 1,
            durability: StorageDurability::Disk,
            min_insync_replicas: 1,
            replica_lag_ms: 10_000,
        };
        let replica = Replica::new(config);
        let (waiting, next_token, flush_requested) = (BTreeMap::new(), 0, 0);
        Self { replica, now_ms: 0, epoch: 0, flushed: 0, next_token, waiting, flush_requested }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Produce { acks, durability, records, patience_ms } => {
                let enough = self.replica.config().min_insync_replicas == 1;
                let admitted = self.replica.admit(acks);
                if acks == Acks::All && !enough {
                    assert_eq!(admitted, Err(ErrorCode::NotEnoughReplicas));
                    return;
                }
                assert_eq!(admitted, Ok(()));
                let base_offset = self.replica.log_end_offset();
                let produced = Produced {
                    token: self.next_token,
                    acks,
                    durability,
                    deadline_ms: self.now_ms + patience_ms,
                    base_offset,
                    end_offset: base_offset + records,
                };
                self.next_token += 1;
                if acks != Acks::None {
                    self.waiting.insert(produced.token, produced);
                }
                self.send(Event::Produced(produced));
            }
            Step::Flush { percent } => {
                let behind = self.replica.log_end_offset() - self.flushed;
                self.flushed += behind * percent / 100;
                self.send(Event::Flushed { end_offset: self.flushed });
            }
            Step::ReportLate => self.send(Event::Flushed { end_offset: self.flushed / 2 }),
            Step::Wait { ms } => {
                self.now_ms += ms;
                self.send(Event::Tick);
            }
            Step::Set { durability, min_insync_replicas } => {
                self.assign(Settings { durability, min_insync_replicas });
            }
            Step::Restart => self.lead(),
        }
    }

    fn lead(&mut self) {
        self.epoch += 1;
        self.assign(self.replica.config().settings());
        assert!(self.waiting.is_empty(), "nobody waits across epochs");
    }

    fn assign(&mut self, settings: Settings) {
        let log_end_offset = self.replica.log_end_offset();
        let log = LogState { log_end_offset, flushed_offset: self.flushed, ..LogState::default() };
        // In sync alone: the others never report, and only the minimum cares about them.
        let member = |id| Member { id, broker_epoch: 1, eligible: true };
        let assignment = Assignment {
            leader: Some(1),
            leader_epoch: self.epoch,
            partition_epoch: self.epoch,
            replicas: vec![member(1), member(2), member(3)],
            isr: vec![1],
            elr: Vec::new(),
        };
        self.send(Event::Assigned { assignment, settings, log });
    }

    fn send(&mut self, event: Event) {
        let before = self.replica.high_watermark();
        let mut effects = Vec::new();
        self.replica.step(self.now_ms, event, &mut effects);
        for effect in effects {
            self.check(&effect);
        }
        assert_eq!(self.replica.flushed_offset(), self.flushed);
        self.check_watermark(before);
        self.check_that_nobody_waits_in_vain();
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::SetHighWatermark { offset } => {
                assert_eq!(*offset, self.replica.high_watermark());
            }
            Effect::RequestFlush { end_offset } => {
                self.flush_requested = self.flush_requested.max(*end_offset);
            }
            Effect::Reply { token, outcome } => {
                let asked = self.waiting.remove(token).expect("one reply for each request");
                match outcome {
                    Ok(receipt) => {
                        assert_eq!(
                            receipt.base_offset..receipt.end_offset,
                            asked.base_offset..asked.end_offset
                        );
                        assert_eq!(receipt.leader_epoch, self.epoch);
                        assert!(self.is_reached(&asked), "acknowledged too early: {asked:?}");
                        let on_disk = asked.end_offset <= self.flushed;
                        assert_eq!(receipt.durability == Durability::Disk, on_disk);
                        assert_eq!(
                            (receipt.replicas_memory, receipt.replicas_durable),
                            (1, on_disk.into())
                        );
                    }
                    Err(ErrorCode::Timeout) => assert!(asked.deadline_ms <= self.now_ms),
                    Err(ErrorCode::NotEnoughReplicasAfterAppend) => {
                        assert!(self.replica.config().min_insync_replicas > 1);
                    }
                    Err(code) => assert_eq!(*code, ErrorCode::NotLeaderAfterAppend),
                }
            }
            Effect::AssignEpoch { epoch, start_offset } => {
                assert_eq!((*epoch, *start_offset), (self.epoch, self.replica.log_end_offset()));
            }
            other => panic!("there are no followers for {other:?}"),
        }
    }

    /// What was asked for, by the definition of each level.
    fn is_reached(&self, asked: &Produced) -> bool {
        let flushed = asked.end_offset <= self.flushed;
        let committed = asked.end_offset <= self.replica.high_watermark();
        (asked.acks != Acks::All || committed) && (asked.durability != Durability::Disk || flushed)
    }

    fn check_watermark(&self, before: u64) {
        let config = self.replica.config();
        let committed = match config.durability {
            _ if config.min_insync_replicas > 1 => before,
            StorageDurability::Disk => self.flushed,
            StorageDurability::Memory => self.replica.log_end_offset(),
        };
        assert_eq!(self.replica.high_watermark(), before.max(committed));
    }

    fn check_that_nobody_waits_in_vain(&self) {
        assert_eq!(self.replica.parked_count(), self.waiting.len());
        for asked in self.waiting.values() {
            assert!(!self.is_reached(asked), "answerable, yet waiting: {asked:?}");
            assert!(asked.deadline_ms > self.now_ms, "expired, yet waiting: {asked:?}");
            assert!(self.replica.next_deadline_ms().unwrap() <= asked.deadline_ms);
            let will_pass = asked.end_offset <= self.flush_requested
                || asked.end_offset <= self.replica.high_watermark()
                || self.replica.config().durability == StorageDurability::Memory;
            assert!(will_pass, "nobody will flush {asked:?}");
        }
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_and_as_soon_as_what_it_asked_for_is_true(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut world = World::new();
        world.lead();
        for step in &steps {
            world.take(step);
        }
        world.lead();
    }
}
