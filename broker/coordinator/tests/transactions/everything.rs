//! Random transactions from end to end: producers and their zombies, a coordinator that fails over, partitions, and a
//! network between them that loses, repeats and reorders.
//!
//! A record is committed only if its own process asked to commit its own transaction; a transaction that was answered
//! as committed has all its records, once; and once the network behaves nothing is left open.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidemark_coordinator::{
    TransactionConfig,
    producer_state::{Guard, Marker, Verification},
    transactions::{
        AddPartitions, EndTxn, InitProducerId, MarkerResult, MarkersWritten, ProducerIdentity,
        TransactionEffect, TransactionRequest, TransactionResponse,
    },
};
use tidemark_protocol::{ErrorCode, batch::BatchHeader};

use crate::{
    coordinator::{Outcome, World, partition},
    partition::{Partition, Value, header},
};

const PARTITIONS: u32 = 3;
const PROCESSES: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A process does what is next for it: initialize, write, or end.
    Write {
        process: usize,
        partition: u32,
    },
    End {
        process: usize,
        commit: bool,
    },
    /// Another process begins under the same id; the old one knows nothing of it.
    Replace(usize),
    /// Message after message, until nothing is under way.
    DeliverAll,
    Deliver(prop::sample::Index),
    DeliverAndKeep(prop::sample::Index),
    Lose(prop::sample::Index),
    Wait(u64),
    CoordinatorFails,
    LeaderFails {
        partition: u32,
        snapshot: prop::sample::Index,
    },
    Operator(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        14 => (0..PROCESSES, 0..PARTITIONS)
            .prop_map(|(process, partition)| Step::Write { process, partition }),
        10 => (0..PROCESSES, any::<bool>()).prop_map(|(process, commit)| Step::End { process, commit }),
        1 => (0..PROCESSES).prop_map(Step::Replace),
        8 => Just(Step::DeliverAll),
        14 => index().prop_map(Step::Deliver),
        4 => index().prop_map(Step::DeliverAndKeep),
        2 => index().prop_map(Step::Lose),
        4 => (1..700_u64).prop_map(Step::Wait),
        1 => Just(Step::CoordinatorFails),
        1 => (0..PARTITIONS, index())
            .prop_map(|(partition, snapshot)| Step::LeaderFails { partition, snapshot }),
        1 => (0..PROCESSES).prop_map(Step::Operator),
    ]
}

#[derive(Clone, Debug)]
enum Message {
    ToCoordinator {
        process: u32,
        sequence: u64,
        request: TransactionRequest,
    },
    Answer {
        process: u32,
        sequence: u64,
        outcome: Outcome,
    },
    Produce {
        process: u32,
        partition: u32,
        header: BatchHeader,
        value: Value,
    },
    /// The leader asks the coordinator before it appends.
    Verify {
        process: u32,
        partition: u32,
        header: BatchHeader,
        value: Value,
        guard: Guard,
    },
    Verified {
        process: u32,
        partition: u32,
        header: BatchHeader,
        value: Value,
        guard: Guard,
    },
    Produced {
        process: u32,
        value: Value,
        outcome: Result<(), ErrorCode>,
    },
    Marker {
        id: String,
        producer: ProducerIdentity,
        partition: u32,
        marker: Marker,
    },
    MarkerDone {
        request: MarkersWritten,
    },
}

/// A producer. It has at most one batch under way in each partition and repeats it until it is answered.
#[derive(Clone, Debug)]
struct Process {
    number: u32,
    id: String,
    identity: Option<ProducerIdentity>,
    /// What it goes on with after its transaction was aborted in its place.
    to_recover: Option<ProducerIdentity>,
    is_over: bool,
    transaction: u32,
    next_value: u32,
    sequences: BTreeMap<u32, i32>,
    under_way: BTreeMap<u32, (BatchHeader, Value)>,
    acknowledged: BTreeSet<Value>,
    has_failed: bool,
    /// The end it has asked for.
    ending: Option<bool>,
    sequence: u64,
}

impl Process {
    fn new(number: u32, id: String) -> Self {
        Self {
            number,
            id,
            identity: None,
            to_recover: None,
            is_over: false,
            transaction: 0,
            next_value: 0,
            sequences: BTreeMap::new(),
            under_way: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            has_failed: false,
            ending: None,
            sequence: 0,
        }
    }

    fn go_on_with(&mut self, identity: ProducerIdentity) {
        self.identity = Some(identity);
        self.to_recover = None;
        self.transaction += 1;
        self.sequences.clear();
        self.under_way.clear();
        self.acknowledged.clear();
        self.has_failed = false;
        self.ending = None;
    }
}

struct Everything {
    world: World,
    partitions: Vec<Partition>,
    /// The present process of each place, and all there ever were.
    present: Vec<usize>,
    processes: Vec<Process>,
    messages: Vec<Message>,
    /// Transactions that their process asked to commit.
    asked: BTreeSet<(u32, u32)>,
    /// Records of transactions that were answered as committed.
    committed: BTreeSet<Value>,
    aborted: BTreeSet<(u32, u32)>,
}

impl Everything {
    fn new(epoch_max: i16) -> Self {
        let config = TransactionConfig {
            epoch_max,
            marker_retry_ms: 100,
            producer_ids_min: 2,
            ..TransactionConfig::default()
        };
        let process = |place: usize| {
            // Two places share an id: the process of one fences that of the other.
            Process::new(u32::try_from(place).unwrap(), format!("id-{}", place / 2))
        };
        Self {
            world: World::new(config),
            partitions: (0..PARTITIONS).map(|_| Partition::new()).collect(),
            present: (0..PROCESSES).collect(),
            processes: (0..PROCESSES).map(process).collect(),
            messages: Vec::new(),
            asked: BTreeSet::new(),
            committed: BTreeSet::new(),
            aborted: BTreeSet::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { process, partition } => self.write(self.present[*process], *partition),
            Step::End { process, commit } => self.end(self.present[*process], *commit),
            Step::Replace(place) => {
                let number = u32::try_from(self.processes.len()).unwrap();
                let id = self.processes[self.present[*place]].id.clone();
                self.present[*place] = self.processes.len();
                self.processes.push(Process::new(number, id));
            }
            Step::DeliverAll => self.deliver_all(),
            Step::Deliver(index) if !self.messages.is_empty() => {
                let message = self.messages.remove(index.index(self.messages.len()));
                self.deliver(message);
            }
            Step::DeliverAndKeep(index) if !self.messages.is_empty() => {
                let message = self.messages[index.index(self.messages.len())].clone();
                self.deliver(message);
            }
            Step::Lose(index) if !self.messages.is_empty() => {
                self.messages.remove(index.index(self.messages.len()));
            }
            Step::Wait(ms) => {
                self.world.wait(*ms);
                self.carry_out();
            }
            Step::CoordinatorFails => {
                self.world.fail_over();
                self.carry_out();
            }
            Step::LeaderFails { partition, snapshot } => {
                let partition = &mut self.partitions[*partition as usize];
                let from = snapshot.index(partition.log.len() + 1);
                partition.fail_over(from);
            }
            Step::Operator(process) => {
                let id = self.processes[self.present[*process]].id.clone();
                drop(self.world.call(TransactionRequest::Abort { id }));
                self.carry_out();
            }
            _ => {}
        }
    }

    fn deliver_all(&mut self) {
        for _ in 0..200 {
            if self.messages.is_empty() {
                return;
            }
            let message = self.messages.remove(0);
            self.deliver(message);
        }
    }

    fn ask(&mut self, process: usize, request: TransactionRequest) {
        let process = &mut self.processes[process];
        process.sequence += 1;
        let (number, sequence) = (process.number, process.sequence);
        self.messages.push(Message::ToCoordinator { process: number, sequence, request });
    }

    /// Initializes if need be.
    fn identity(&mut self, process: usize) -> Option<ProducerIdentity> {
        let found = &self.processes[process];
        if found.is_over || found.identity.is_some() {
            return found.identity.filter(|_| !found.is_over);
        }
        let (id, expected) = (found.id.clone(), found.to_recover);
        let init = InitProducerId { id, timeout_ms: 1_000, expected };
        self.ask(process, TransactionRequest::InitProducerId(init));
        None
    }

    fn write(&mut self, index: usize, partition: u32) {
        let Some(identity) = self.identity(index) else { return };
        let process = &mut self.processes[index];
        if process.ending.is_some() || process.has_failed {
            return;
        }
        let (header, value) = *process.under_way.entry(partition).or_insert_with(|| {
            let sequence = process.sequences.entry(partition).or_insert(0);
            let header = header(identity, *sequence);
            *sequence += 1;
            process.next_value += 1;
            (header, (process.number, process.transaction, process.next_value))
        });
        let process = process.number;
        self.messages.push(Message::Produce { process, partition, header, value });
    }

    fn end(&mut self, index: usize, commit: bool) {
        let Some(producer) = self.identity(index) else { return };
        let process = &mut self.processes[index];
        if process.ending.is_none() {
            // A commit needs every record answered for, and something to commit.
            let is_whole = process.under_way.is_empty() && !process.has_failed;
            let commit = commit && is_whole && !process.acknowledged.is_empty();
            process.ending = Some(commit);
            if commit {
                self.asked.insert((process.number, process.transaction));
            }
        }
        let commit = process.ending.unwrap();
        let end = EndTxn { id: process.id.clone(), producer, commit };
        self.ask(index, TransactionRequest::EndTxn(end));
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToCoordinator { process, sequence, request } => {
                let outcome = self.world.call(request);
                self.messages.push(Message::Answer { process, sequence, outcome });
            }
            Message::Answer { process, sequence, outcome } => {
                self.answered(process as usize, sequence, outcome);
            }
            Message::Produce { process, partition, header, value } => {
                match self.partitions[partition as usize].begin(&header) {
                    Verification::NotNeeded => {
                        self.append(process, partition, header, value, None);
                    }
                    Verification::Needed(guard) => self.messages.push(Message::Verify {
                        process,
                        partition,
                        header,
                        value,
                        guard,
                    }),
                }
            }
            Message::Verify { process, partition: number, header, value, guard } => {
                let add = AddPartitions {
                    id: self.processes[process as usize].id.clone(),
                    producer: ProducerIdentity {
                        producer_id: header.producer_id,
                        epoch: header.producer_epoch,
                    },
                    partitions: [partition(number)].into(),
                    verify_only: false,
                };
                let outcome = self.world.call(TransactionRequest::AddPartitions(add));
                self.messages.push(match outcome {
                    Ok(_) => Message::Verified { process, partition: number, header, value, guard },
                    Err(failure) => {
                        Message::Produced { process, value, outcome: Err(failure.code) }
                    }
                });
            }
            Message::Verified { process, partition, header, value, guard } => {
                self.append(process, partition, header, value, Some(guard));
            }
            Message::Produced { process, value, outcome } => {
                self.produced(process as usize, value, outcome);
            }
            Message::Marker { id, producer, partition: number, marker } => {
                let outcome = self.partitions[number as usize].end(producer, marker);
                let result = match outcome {
                    Ok(_) => MarkerResult::Written,
                    Err(ErrorCode::TransactionCoordinatorFenced) => MarkerResult::Fenced,
                    // A late one: nobody waits for its answer.
                    Err(_) => return,
                };
                let results = vec![(partition(number), result)];
                let request = MarkersWritten { id, producer, results };
                // The answer to a coordinator that is gone reaches nobody.
                if marker.coordinator_epoch == self.world.epoch {
                    self.messages.push(Message::MarkerDone { request });
                }
            }
            Message::MarkerDone { request } => {
                self.world.call(TransactionRequest::MarkersWritten(request)).unwrap();
            }
        }
        self.carry_out();
    }

    fn append(
        &mut self,
        process: u32,
        partition: u32,
        header: BatchHeader,
        value: Value,
        guard: Option<Guard>,
    ) {
        let outcome = self.partitions[partition as usize].append(&header, value, guard);
        let outcome = outcome.map(drop);
        self.messages.push(Message::Produced { process, value, outcome });
    }

    fn produced(&mut self, process: usize, value: Value, outcome: Result<(), ErrorCode>) {
        let process = &mut self.processes[process];
        let Some((partition, _)) =
            process.under_way.iter().find(|(_, (_, under_way))| *under_way == value)
        else {
            return;
        };
        let partition = *partition;
        match outcome {
            Ok(()) => {
                process.under_way.remove(&partition);
                process.acknowledged.insert(value);
            }
            Err(code) if code.is_retriable() => {}
            Err(_) => process.has_failed = true,
        }
    }

    fn answered(&mut self, index: usize, sequence: u64, outcome: Outcome) {
        let process = &mut self.processes[index];
        if process.sequence != sequence {
            return;
        }
        match outcome {
            Ok(TransactionResponse::InitProducerId(identity)) if process.identity.is_none() => {
                process.go_on_with(identity);
            }
            Ok(TransactionResponse::EndTxn(identity)) if process.ending.is_some() => {
                if process.ending == Some(true) {
                    self.committed.extend(&process.acknowledged);
                } else {
                    self.aborted.insert((process.number, process.transaction));
                }
                process.go_on_with(identity);
            }
            Err(failure) if failure.code.is_retriable() => {}
            Err(failure) if failure.code == ErrorCode::TransactionAborted => {
                self.aborted.insert((process.number, process.transaction));
                process.to_recover = process.identity.take();
                process.transaction += 1;
            }
            Err(_) => process.is_over = true,
            Ok(_) => {}
        }
    }

    /// Markers that the coordinator wants sent are under way.
    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.world.effects) {
            let TransactionEffect::SendMarkers(markers) = effect else { continue };
            for partition in markers.partitions {
                let coordinator_epoch = markers.coordinator_epoch;
                self.messages.push(Message::Marker {
                    id: markers.id.clone(),
                    producer: markers.producer,
                    partition: partition.partition,
                    marker: Marker { commit: markers.commit, coordinator_epoch },
                });
            }
        }
    }

    fn heal(&mut self) {
        self.messages.clear();
        for _ in 0..40 {
            self.world.wait(100);
            self.carry_out();
            self.deliver_all();
        }
        for transaction in self.world.coordinator.state().values() {
            assert!(transaction.state.decision().is_none(), "{transaction:?}");
            assert!(transaction.partitions.is_empty(), "{transaction:?}");
        }
        for partition in &self.partitions {
            let end_offset = partition.end_offset();
            assert_eq!(
                partition.states.last_stable_offset(end_offset),
                end_offset,
                "{partition:?}"
            );
        }
    }

    fn check(&self) {
        let mut seen = BTreeSet::new();
        for partition in &self.partitions {
            let stable = partition.states.last_stable_offset(partition.end_offset());
            for value in partition.read_committed(0, stable) {
                assert!(seen.insert(value), "{value:?} is there twice: {partition:?}");
                let (process, transaction, _) = value;
                let was_asked = self.asked.contains(&(process, transaction));
                assert!(was_asked, "nobody committed {value:?}: {partition:?}");
                let was_aborted = self.aborted.contains(&(process, transaction));
                assert!(!was_aborted, "{value:?} was said to be aborted: {partition:?}");
            }
        }
        for value in &self.committed {
            assert!(seen.contains(value), "{value:?} is lost: {:?}", self.partitions);
        }
    }
}

proptest! {
    #[test]
    fn transactions_are_all_or_nothing(
        steps in prop::collection::vec(step(), 1..200),
        epoch_max in prop::sample::select(vec![1, 2, 3, i16::MAX]),
    ) {
        let mut everything = Everything::new(epoch_max);
        for step in &steps {
            everything.take(step);
        }
        everything.heal();
        everything.check();
    }
}
