//! Random commits, inside of transactions and outside, against the definition: of all that count, the one furthest on
//! in the log is the offset.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_coordinator::{
    GroupConfig, Topics,
    groups::{
        CommitOffsets, CommitTransactionalOffsets, Committer, DeleteOffsets, EndTransaction,
        FetchOffsets, GroupRequest, GroupResponse, OffsetToCommit, Verification,
    },
};
use tidemark_protocol::ErrorCode;

use crate::log::{World, partition, topic};

const PARTITIONS: u32 = 3;
const PRODUCERS: i64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Commit {
        group: u8,
        partition: u32,
    },
    CommitInTransaction {
        producer: i64,
        group: u8,
        partition: u32,
    },
    End {
        producer: i64,
        commit: bool,
    },
    /// The end of the transaction before comes once more.
    EndLate {
        producer: i64,
    },
    Delete {
        group: u8,
        partition: u32,
    },
    Partitions {
        count: u32,
    },
    Wait,
    FailOver {
        is_compacted: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (group, partition) = (0..2_u8, 0..PARTITIONS);
    let producer = 0..PRODUCERS;
    prop_oneof![
        6 => (group.clone(), partition.clone())
            .prop_map(|(group, partition)| Step::Commit { group, partition }),
        12 => (producer.clone(), group.clone(), partition.clone()).prop_map(
            |(producer, group, partition)| Step::CommitInTransaction { producer, group, partition }
        ),
        6 => (producer.clone(), any::<bool>())
            .prop_map(|(producer, commit)| Step::End { producer, commit }),
        3 => producer.prop_map(|producer| Step::EndLate { producer }),
        2 => (group, partition).prop_map(|(group, partition)| Step::Delete { group, partition }),
        1 => (0..=PARTITIONS).prop_map(|count| Step::Partitions { count }),
        2 => Just(Step::Wait),
        1 => any::<bool>().prop_map(|is_compacted| Step::FailOver { is_compacted }),
    ]
}

/// When it was committed, and what.
type Commit = (u64, u64);

struct Model {
    world: World,
    epochs: BTreeMap<i64, i16>,
    committed: BTreeMap<(u8, u32), Commit>,
    pending: BTreeMap<(i64, u8, u32), Commit>,
    partitions: u32,
    clock: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            world: World::new(GroupConfig::default(), topics(PARTITIONS)),
            epochs: BTreeMap::new(),
            committed: BTreeMap::new(),
            pending: BTreeMap::new(),
            partitions: PARTITIONS,
            clock: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        self.clock += 1;
        let now = (self.clock, self.clock);
        match *step {
            Step::Commit { group, partition } => {
                let request = GroupRequest::CommitOffsets(CommitOffsets {
                    group: name(group),
                    committer: Committer::Outside,
                    offsets: vec![self.offset(partition)],
                });
                let Ok(GroupResponse::CommitOffsets(results)) = self.world.call(request) else {
                    panic!()
                };
                if self.is_taken(partition, &results) {
                    self.committed.insert((group, partition), now);
                }
            }
            Step::CommitInTransaction { producer, group, partition } => {
                let epoch = *self.epochs.entry(producer).or_default();
                let guard = match self.world.coordinator.begin_verification(producer, epoch) {
                    Verification::NotNeeded => None,
                    Verification::Needed { guard } => Some(guard),
                };
                let commit = CommitTransactionalOffsets {
                    group: name(group),
                    producer_id: producer,
                    producer_epoch: epoch,
                    guard,
                    committer: Committer::Outside,
                    offsets: vec![self.offset(partition)],
                };
                let request = GroupRequest::CommitTransactionalOffsets(commit);
                let Ok(GroupResponse::CommitTransactionalOffsets(results)) =
                    self.world.call(request)
                else {
                    panic!()
                };
                if self.is_taken(partition, &results) {
                    self.pending.insert((producer, group, partition), now);
                }
            }
            Step::End { producer, commit } => self.end(producer, commit),
            Step::EndLate { producer } => {
                let producer_epoch = *self.epochs.entry(producer).or_default();
                let late = EndTransaction {
                    producer_id: producer,
                    producer_epoch,
                    coordinator_epoch: 1,
                    commit: true,
                };
                drop(self.world.call(GroupRequest::EndTransaction(late)));
            }
            Step::Delete { group, partition: number } => {
                let delete =
                    DeleteOffsets { group: name(group), partitions: vec![partition(1, number)] };
                drop(self.world.call(GroupRequest::DeleteOffsets(delete)));
                self.committed.remove(&(group, number));
                self.pending.retain(|(_, of, one), _| (*of, *one) != (group, number));
            }
            Step::Partitions { count } => {
                self.partitions = count;
                self.world.set_topics(topics(count));
                if count == 0 {
                    self.committed.clear();
                    self.pending.clear();
                }
            }
            Step::Wait => self.world.wait(1_000),
            Step::FailOver { is_compacted } => self.world.fail_over(is_compacted),
        }
        self.check();
    }

    fn end(&mut self, producer: i64, commit: bool) {
        let epoch = self.epochs.entry(producer).or_default();
        *epoch += 1;
        let end = EndTransaction {
            producer_id: producer,
            producer_epoch: *epoch,
            coordinator_epoch: 1,
            commit,
        };
        assert!(self.world.call(GroupRequest::EndTransaction(end)).is_ok());
        let (ended, open) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|((of, _, _), _)| *of == producer);
        self.pending = open;
        let ended: BTreeMap<(i64, u8, u32), Commit> = ended;
        for ((_, group, partition), of) in ended.into_iter().filter(|_| commit) {
            let last = self.committed.entry((group, partition)).or_insert(of);
            *last = of.max(*last);
        }
    }

    fn offset(&self, number: u32) -> OffsetToCommit {
        OffsetToCommit {
            partition: partition(1, number),
            offset: self.clock,
            leader_epoch: None,
            metadata: String::new(),
        }
    }

    fn is_taken(&self, partition: u32, results: &[Result<(), ErrorCode>]) -> bool {
        assert_eq!(results[0].is_ok(), partition < self.partitions);
        results[0].is_ok()
    }

    fn check(&mut self) {
        for group in 0..2 {
            for number in 0..PARTITIONS {
                let unstable =
                    self.pending.keys().any(|(_, of, one)| (*of, *one) == (group, number));
                for require_stable in [false, true] {
                    let fetch = FetchOffsets {
                        group: name(group),
                        member: None,
                        partitions: Some(vec![partition(1, number)]),
                        require_stable,
                    };
                    let outcome = self.world.call(GroupRequest::FetchOffsets(fetch));
                    let Ok(GroupResponse::FetchOffsets(fetched)) = outcome else { panic!() };
                    let found = fetched[0].outcome.clone().map(|found| found.map(|it| it.offset));
                    let expected = if require_stable && unstable {
                        Err(ErrorCode::UnstableOffset)
                    } else {
                        Ok(self.committed.get(&(group, number)).map(|(_, offset)| *offset))
                    };
                    assert_eq!(found, expected, "group {group}, partition {number}");
                }
            }
        }
    }
}

fn topics(partitions: u32) -> Topics {
    (partitions > 0).then(|| topic(1, "a", partitions)).into_iter().collect()
}

fn name(group: u8) -> String {
    format!("group-{group}")
}

proptest! {
    #[test]
    fn the_last_commit_that_counts_is_the_offset(steps in prop::collection::vec(step(), 1..80)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
        }
        model.world.check_compacted();
    }
}
