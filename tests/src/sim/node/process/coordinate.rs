//! What a broker does for its coordinators and for the partitions that ask others: a model of the wiring in the broker's
//! `coordinators` and `service/transactions`.

use std::collections::BTreeMap;

use tidemark_broker::steered;
use tidemark_controller::BrokerRun;
use tidemark_coordinator::{
    groups::{CommitTransactionalOffsets, EndTransaction, GroupRequest, Verification},
    producer_state::Marker,
    transactions::{
        AddPartitions, MarkerResult, Markers, MarkersWritten, TransactionEffect, TransactionRequest,
    },
};
use tidemark_protocol::{
    PartitionIndex, messages::ProducerIdentity, partitioner::partition_for_key,
};

use super::{
    Answer, Command, Coordination, ErrorCode, Failure, Io, MS, MarkersFor, Message, NeedsIds,
    NodeId, NodeTimer, Outcome, Process, Purpose, Request, Response, SECOND, TopicPartition,
    Wanted,
};
use crate::sim::{
    node::{
        coordination::{AskedBy, Asker, JobId, JoinFor, Joining, Marked, Marking, ToldEnded},
        peers::pause_us,
    },
    shape::{GROUPS, TRANSACTIONS},
};

/// How long one attempt at a coordinator may take, and all of them.
const ATTEMPT_US: u64 = 2 * SECOND;
const JOIN_US: u64 = 3 * SECOND;
/// How long leaders have for markers.
const MARKERS_MS: u64 = 10_000;
/// How long a block of ids is waited for, and the pause before it is asked for again.
const IDS_US: u64 = 5 * SECOND;
const IDS_PAUSE_US: u64 = 500 * MS;

impl Process {
    /// Passes on what coordinators and their clients have for each other. Says whether there was anything.
    pub(super) fn coordinate(&mut self, io: &mut Io<'_>) -> bool {
        let mut has_done = self.broker.coordinate();
        let effects = self.broker.take_effects();
        has_done |= !effects.is_empty();
        for (partition, effect) in effects.transactions {
            self.carry_out(partition, effect, io);
        }
        for (job, joining) in self.serving.answer(&mut self.coordination, io) {
            has_done = true;
            self.coordination.joining.insert(job, joining);
            self.join(job, io);
        }
        has_done |= self.answer_groups(io);
        has_done |= self.answer_transactions(io);
        has_done | self.answer_markers(io)
    }

    pub(super) fn ask_groups(
        &mut self,
        asker: Asker,
        partition: PartitionIndex,
        request: GroupRequest,
        io: &mut Io<'_>,
    ) {
        match self.broker.ask_groups(partition, request) {
            Ok(asked) => self.coordination.groups.push((asker, asked)),
            Err(failure) => answer(asker, Err(failure), io),
        }
    }

    pub(super) fn ask_transactions(
        &mut self,
        asker: Asker,
        partition: PartitionIndex,
        request: TransactionRequest,
        metadata_index: u64,
        io: &mut Io<'_>,
    ) {
        if self.followed.metadata_index() < metadata_index {
            // The real one waits for it; whoever asks comes again.
            let failure = Failure::new(ErrorCode::NotReady, "the metadata here is older");
            return answer(asker, Err(failure), io);
        }
        match self.broker.ask_transactions(partition, request) {
            Ok(asked) => self.coordination.transactions.push((AskedBy::Peer(asker), asked)),
            Err(failure) => answer(asker, Err(failure), io),
        }
    }

    fn answer_groups(&mut self, io: &mut Io<'_>) -> bool {
        let before = self.coordination.groups.len();
        self.coordination.groups.retain_mut(|(asker, asked)| {
            let Some(outcome) = asked.outcome() else { return true };
            answer(*asker, outcome.map(Response::Group), io);
            false
        });
        self.coordination.groups.len() < before
    }

    fn answer_transactions(&mut self, io: &mut Io<'_>) -> bool {
        let mut joined = Vec::new();
        let before = self.coordination.transactions.len();
        self.coordination.transactions.retain_mut(|(by, asked)| {
            let Some(outcome) = asked.outcome() else { return true };
            let outcome = outcome.map(Response::Transaction);
            match by {
                AskedBy::Peer(asker) => answer(*asker, outcome, io),
                AskedBy::Join(job) => joined.push((*job, outcome)),
                AskedBy::Nobody => {}
            }
            false
        });
        let has_done = self.coordination.transactions.len() < before;
        for (job, outcome) in joined {
            self.joined(job, outcome, io);
        }
        has_done
    }

    fn carry_out(&mut self, partition: PartitionIndex, effect: TransactionEffect, io: &mut Io<'_>) {
        match effect {
            TransactionEffect::SendMarkers(markers) => self.send_markers(partition, &markers, io),
            TransactionEffect::NeedProducerIds => {
                self.need_ids(NeedsIds::Coordinator(partition), io);
            }
            TransactionEffect::Aborted { .. } => {
                io.core.figures.happened("transactions aborted by coordinators");
            }
        }
    }

    /// Makes the next attempt to have a partition become part of a transaction.
    pub(super) fn join(&mut self, job: JobId, io: &mut Io<'_>) {
        let Some(joining) = self.coordination.joining.get(&job) else { return };
        let id = joining.transactional_id.clone();
        let request = TransactionRequest::AddPartitions(AddPartitions {
            id: id.clone(),
            producer: joining.producer,
            partitions: [joining.partition].into(),
            verify_only: false,
        });
        let topic = self.followed.topic(TRANSACTIONS);
        let known = topic.and_then(|topic| {
            let index = partition_for_key(id.as_bytes(), topic.partition_count());
            Some((index, topic.partition(index)?.leader?))
        });
        match known {
            Some((partition, leader)) if leader == io.node() => {
                match self.broker.ask_transactions(partition, request) {
                    Ok(asked) => {
                        self.coordination.transactions.push((AskedBy::Join(job), asked));
                    }
                    Err(failure) => self.joined(job, Err(failure), io),
                }
            }
            Some((partition, leader)) => {
                let metadata_index = self.followed.metadata_index();
                let request = Request::Transaction { partition, request, metadata_index };
                self.peers.ask(leader, request, Purpose::Join(job), ATTEMPT_US, io);
            }
            None => {
                let failure = Failure::new(ErrorCode::NotReady, "nobody coordinates");
                self.joined(job, Err(failure), io);
            }
        }
    }

    /// A coordinator has agreed, or not.
    pub(super) fn joined(
        &mut self,
        job: JobId,
        outcome: Result<Response, Failure>,
        io: &mut Io<'_>,
    ) {
        let Some(joining) = self.coordination.joining.get_mut(&job) else { return };
        let outcome = match outcome {
            Ok(_) => Ok(()),
            Err(failure) if steered::is_join_worth_another_try(failure.code) => {
                joining.failures += 1;
                let pause_us = pause_us(joining.failures);
                if io.core.now_us() + pause_us < joining.deadline_us {
                    return io.timer(pause_us, NodeTimer::Join(job));
                }
                Err(Failure::new(ErrorCode::TransactionUnverified, failure.message))
            }
            Err(failure) => Err(failure),
        };
        let Some(joining) = self.coordination.joining.remove(&job) else { return };
        match joining.whom {
            JoinFor::Produce => self.serving.joined(job, outcome, &mut self.broker, io),
            JoinFor::Offsets(asker, partition, commit) => match outcome {
                Ok(()) => {
                    let commit = GroupRequest::CommitTransactionalOffsets(*commit);
                    self.ask_groups(asker, partition, commit, io);
                }
                Err(failure) => answer(asker, Err(failure), io),
            },
        }
    }

    /// Has a group's offsets committed in a transaction. Its coordinator is asked first if the transaction has none here.
    pub(super) fn commit_in_transaction(
        &mut self,
        asker: Asker,
        partition: PartitionIndex,
        transactional_id: String,
        mut commit: Box<CommitTransactionalOffsets>,
        io: &mut Io<'_>,
    ) {
        let (producer_id, epoch) = (commit.producer_id, commit.producer_epoch);
        let topic_id = self.followed.topic(GROUPS).map(|topic| topic.id);
        let verification = self.broker.begin_verification(partition, producer_id, epoch);
        match (verification, topic_id) {
            (Ok(Verification::NotNeeded), _) => {
                let commit = GroupRequest::CommitTransactionalOffsets(*commit);
                self.ask_groups(asker, partition, commit, io);
            }
            (Ok(Verification::Needed { guard }), Some(topic_id)) => {
                commit.guard = Some(guard);
                let whom = JoinFor::Offsets(asker, partition, commit);
                let id = TopicPartition { topic_id, partition };
                let producer =
                    tidemark_coordinator::transactions::ProducerIdentity { producer_id, epoch };
                let whose = (transactional_id, producer);
                let (job, joining) = Joining::new(whose, id, whom, &mut self.coordination, io);
                self.coordination.joining.insert(job, joining);
                self.join(job, io);
            }
            (Ok(_), None) => answer(asker, Err(super::nobody()), io),
            (Err(failure), _) => answer(asker, Err(failure), io),
        }
    }

    fn send_markers(&mut self, partition: PartitionIndex, markers: &Markers, io: &mut Io<'_>) {
        let mut by_leader: BTreeMap<NodeId, Vec<TopicPartition>> = BTreeMap::new();
        let mut deleted = Vec::new();
        for id in &markers.partitions {
            match self.followed.partition(*id) {
                Some(state) => {
                    if let Some(leader) = state.leader {
                        by_leader.entry(leader).or_default().push(*id);
                    }
                }
                None => deleted.push((*id, MarkerResult::TopicDeleted)),
            }
        }
        self.report(partition, markers, deleted);
        for (leader, partitions) in by_leader {
            let job = self.coordination.job();
            self.coordination.sent.insert(job, (partition, markers.clone()));
            if leader == io.node() {
                self.write_markers(MarkersFor::Coordinator(job), markers, partitions, io);
            } else {
                let request = Request::WriteMarkers { markers: markers.clone(), partitions };
                self.peers.ask(leader, request, Purpose::Markers(job), MARKERS_MS * MS, io);
            }
        }
    }

    /// Writes markers into partitions that are led here.
    pub(super) fn write_markers(
        &mut self,
        whom: MarkersFor,
        markers: &Markers,
        partitions: Vec<TopicPartition>,
        io: &Io<'_>,
    ) {
        let groups = self.followed.topic(GROUPS).map(|topic| topic.id);
        let producer = ProducerIdentity {
            producer_id: markers.producer.producer_id,
            epoch: markers.producer.epoch,
        };
        let Markers { coordinator_epoch, commit, .. } = *markers;
        let mut marking = Vec::new();
        for id in partitions {
            let asked = if Some(id.topic_id) == groups {
                let end = EndTransaction {
                    producer_id: producer.producer_id,
                    producer_epoch: producer.epoch,
                    coordinator_epoch,
                    commit,
                };
                let request = GroupRequest::EndTransaction(end);
                self.broker.ask_groups(id.partition, request).map(Marking::Groups)
            } else {
                let marker = Marker { commit, coordinator_epoch };
                self.broker.write_marker(id, producer, marker, MARKERS_MS).map(Marking::Log)
            };
            marking.push((id, asked.unwrap_or_else(|failure| Marking::Over(Err(failure)))));
        }
        let (producer_id, arrived_us) = (producer.producer_id, io.core.now_us());
        let markers = marking;
        let marked = Marked { whom, producer_id, coordinator_epoch, arrived_us, markers };
        self.coordination.marking.push(marked);
    }

    fn answer_markers(&mut self, io: &mut Io<'_>) -> bool {
        let over = self.coordination.marking.extract_if(.., |marked| {
            marked.markers.iter_mut().fold(true, |all, (_, marking)| marking.look() && all)
        });
        let over: Vec<_> = over.collect();
        let has_done = !over.is_empty();
        for Marked { whom, producer_id, coordinator_epoch, arrived_us, markers } in over {
            let outcomes =
                markers.into_iter().filter_map(|(id, marking)| Some((id, marking.into_outcome()?)));
            let outcomes: Vec<_> = outcomes.collect();
            let ended = outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
            self.coordination.told_ended.extend(ended.map(|(partition, _)| ToldEnded {
                partition: *partition,
                producer_id,
                coordinator_epoch,
                arrived_us,
            }));
            let response = Ok(Response::Markers(outcomes));
            match whom {
                MarkersFor::Peer(asker) => answer(asker, response, io),
                MarkersFor::Coordinator(job) => self.markers_answered(job, response),
            }
        }
        has_done
    }

    /// A leader has said which markers it has written. The coordinator asks again for what is left.
    pub(super) fn markers_answered(&mut self, job: JobId, outcome: Result<Response, Failure>) {
        let Some((partition, markers)) = self.coordination.sent.remove(&job) else { return };
        let Ok(Response::Markers(outcomes)) = outcome else { return };
        let results = outcomes.into_iter().filter_map(|(id, outcome)| match outcome {
            Ok(()) => Some((id, MarkerResult::Written)),
            Err(failure) if failure.code == ErrorCode::TransactionCoordinatorFenced => {
                Some((id, MarkerResult::Fenced))
            }
            Err(_) => None,
        });
        let results = results.collect();
        self.report(partition, &markers, results);
    }

    fn report(
        &mut self,
        partition: PartitionIndex,
        markers: &Markers,
        results: Vec<(TopicPartition, MarkerResult)>,
    ) {
        if results.is_empty() {
            return;
        }
        let written =
            MarkersWritten { id: markers.id.clone(), producer: markers.producer, results };
        let request = TransactionRequest::MarkersWritten(written);
        if let Ok(asked) = self.broker.ask_transactions(partition, request) {
            self.coordination.transactions.push((AskedBy::Nobody, asked));
        }
    }

    pub(super) fn need_ids(&mut self, needs: NeedsIds, io: &mut Io<'_>) {
        let Some(broker_epoch) = self.member.epoch else {
            let failure = Failure::new(ErrorCode::NotReady, "not registered");
            return self.got_ids(needs, Err(failure), io);
        };
        let run = BrokerRun { broker_id: io.node(), broker_epoch };
        let command = Command::AllocateProducerIds(run);
        let id = self.commands.add(command, Wanted::ProducerIds(needs), IDS_US, io);
        self.attempt(id, io);
    }

    pub(super) fn got_ids(&mut self, needs: NeedsIds, outcome: Outcome, io: &mut Io<'_>) {
        let block = outcome.and_then(|committed| match committed.answer {
            Answer::ProducerIdsAllocated { first, end } => Ok((first, end)),
            _ => Err(super::nobody()),
        });
        let id = |id: u64| i64::try_from(id).expect("ids are few");
        match (needs, block) {
            (NeedsIds::Client(asker), block) => {
                let identity =
                    block.map(|(first, _)| ProducerIdentity { producer_id: id(first), epoch: 0 });
                answer(asker, identity.map(Response::Producer), io);
            }
            (NeedsIds::Coordinator(partition), Ok((first, end))) => {
                self.broker.add_producer_ids(partition, id(first)..id(end));
            }
            (NeedsIds::Coordinator(partition), Err(_)) => {
                io.timer(IDS_PAUSE_US, NodeTimer::Ids(partition));
            }
        }
    }
}

impl Joining {
    pub(in crate::sim::node) fn new(
        (transactional_id, producer): (
            String,
            tidemark_coordinator::transactions::ProducerIdentity,
        ),
        partition: TopicPartition,
        whom: JoinFor,
        coordination: &mut Coordination,
        io: &Io<'_>,
    ) -> (JobId, Self) {
        let deadline_us = io.core.now_us() + JOIN_US;
        let failures = 0;
        let joining = Self { whom, transactional_id, producer, partition, failures, deadline_us };
        (coordination.job(), joining)
    }
}

fn answer((connection, correlation): Asker, outcome: Result<Response, Failure>, io: &mut Io<'_>) {
    io.send(connection, Message::Answer(correlation, Box::new(outcome)));
}
