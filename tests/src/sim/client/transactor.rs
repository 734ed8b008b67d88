//! A producer with transactions: a model of the shipped `TransactionalProducer` and of an application that begins, writes,
//! and ends, dies at any moment, sleeps longer than it may, and comes back. Two of them share a transactional id, so that each
//! is the other's zombie.

use bytes::Bytes;
use tidemark_coordinator::{
    groups::{
        CommitOffsets, CommitTransactionalOffsets, Committer, DeleteOffsets, GroupRequest,
        GroupResponse, OffsetToCommit,
    },
    transactions::{
        EndTxn, InitProducerId, ProducerIdentity as Owner, TransactionRequest, TransactionResponse,
    },
};
use tidemark_protocol::{
    ErrorCode, NodeId, Offset, TopicPartition,
    messages::{Acks, ProducerIdentity},
};

use super::{
    Answer, Caller, ClientId, REFRESH_US, Reach,
    numbers::{Number, Numbers, Written},
    producer::build,
};
use crate::sim::{
    core::{Core, Event, MS, Micros, SECOND},
    message::{Correlation, Request, Response},
    network::Delivery,
    shape::{GROUPS, LEDGER, TRANSACTIONS},
    trace::Who,
};

/// After so long an open transaction is aborted by its coordinator.
const TIMEOUT_MS: u32 = 1_500;
/// Timers: go on with what is to be done.
const NEXT: u64 = 1;

/// The group of the offsets that nobody goes by. Everybody commits them: what is last in the log counts.
const LOOSE: &str = "loose";

/// What it is about to do, or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Needs an identity: as a new process, or as one that goes on.
    Init {
        expected: Option<ProducerIdentity>,
    },
    Ready,
    /// So many batches are still to be written.
    Open {
        left: u64,
    },
    Ending {
        commit: bool,
    },
}

/// A batch that is to be written.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) partition: TopicPartition,
    pub(super) number: Number,
    pub(super) bytes: Bytes,
}

/// A transaction whose end its producer has been told.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// In the epoch of the transaction.
    pub producer: ProducerIdentity,
    pub commit: bool,
}

/// One producer.
#[derive(Debug)]
pub struct Transactor {
    caller: Caller,
    id: String,
    state: State,
    numbers: Numbers,
    identity: Option<ProducerIdentity>,
    sending: Option<Sending>,
    asked: Option<Correlation>,
    refreshing: Option<Correlation>,
    think_us: Micros,
    next_value: u64,
    has_written: bool,
    /// Offsets of the group that nobody goes by are part of its transactions.
    pub has_loose_offsets: bool,
    pub is_done: bool,
    pub written: Vec<Written>,
    pub told: Vec<Told>,
}

impl Transactor {
    pub fn new(id: ClientId, name: String, nodes: Vec<NodeId>, core: &mut Core) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            id: name,
            state: State::Init { expected: None },
            numbers: Numbers::default(),
            identity: None,
            sending: None,
            asked: None,
            refreshing: None,
            think_us: core.draw(10 * MS, 300 * MS),
            next_value: 0,
            has_written: false,
            has_loose_offsets: false,
            is_done: false,
            written: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Whether nothing is open, as far as it knows.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Ready | State::Init { .. }) && self.asked.is_none()
    }

    pub fn deliver(&mut self, delivery: Delivery, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, &answer, reach);
        }
    }

    pub fn timer(&mut self, timer: u64, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, &answer, reach);
        }
        if timer == NEXT {
            let pause_us = if reach.core.chance(15) {
                // Longer than it may.
                2 * SECOND
            } else {
                reach.core.draw(self.think_us / 10, self.think_us)
            };
            let client = self.caller.id;
            reach.core.after(pause_us, Event::Client { client, timer: NEXT });
            if !self.is_done && reach.core.chance(10) {
                self.die(reach);
            }
            self.go_on(reach);
        }
    }

    /// The process is killed, and another one begins. What it has sent is on its way.
    fn die(&mut self, reach: &mut Reach<'_>) {
        reach.core.figures.fault("transactional producers killed");
        (self.sending, self.asked, self.refreshing) = (None, None, None);
        self.state = State::Init { expected: None };
    }

    fn go_on(&mut self, reach: &mut Reach<'_>) {
        if self.asked.is_some() || self.refreshing.is_some() {
            return;
        }
        if self.caller.is_stale(reach) {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        }
        match self.state {
            State::Init { .. } if self.is_done => {}
            State::Init { expected } => {
                let expected = expected.map(owner);
                let id = self.id.clone();
                let init = InitProducerId { id, timeout_ms: TIMEOUT_MS, expected };
                self.ask_coordinator(TransactionRequest::InitProducerId(init), reach);
            }
            State::Ready if !self.is_done => {
                self.has_written = false;
                self.state = State::Open { left: reach.core.draw(1, 4) };
            }
            State::Ready => {}
            State::Open { left: 0 } => {
                let commit = reach.core.chance(750);
                self.state = State::Ending { commit };
                self.go_on(reach);
            }
            State::Open { .. }
                if self.has_loose_offsets && self.sending.is_none() && reach.core.chance(300) =>
            {
                self.commit_loose_offsets(reach);
            }
            State::Open { .. } => self.write(reach),
            State::Ending { commit } => {
                let Some(producer) = self.identity.map(owner) else { return };
                let end = EndTxn { id: self.id.clone(), producer, commit };
                self.ask_coordinator(TransactionRequest::EndTxn(end), reach);
            }
        }
    }

    fn ask_coordinator(&mut self, request: TransactionRequest, reach: &mut Reach<'_>) {
        let Some((partition, leader)) = self.caller.coordinator(TRANSACTIONS, &self.id) else {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        };
        let request = Request::Transaction { partition, request, metadata_index: 0 };
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    /// Commits offsets in the transaction; and beside it, in no transaction, others for the same partitions, or none any more.
    /// Nobody waits for the latter, which arrive right behind the former.
    fn commit_loose_offsets(&mut self, reach: &mut Reach<'_>) {
        let mut partitions = self.caller.partitions_of(LEDGER);
        let known = self.caller.coordinator(GROUPS, LOOSE);
        let (Some(producer), Some((partition, leader))) = (self.identity, known) else {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        };
        partitions.retain(|_| reach.core.chance(500));
        let mut offsets = || {
            self.next_value += 1;
            let offset = |id: &TopicPartition| loose(*id, self.next_value);
            partitions.iter().map(offset).collect::<Vec<_>>()
        };
        let commit = CommitTransactionalOffsets {
            group: LOOSE.to_owned(),
            producer_id: producer.producer_id,
            producer_epoch: producer.epoch,
            guard: None,
            committer: Committer::Outside,
            offsets: offsets(),
        };
        let (commit, transactional_id) = (Box::new(commit), self.id.clone());
        let others = CommitOffsets {
            group: LOOSE.to_owned(),
            committer: Committer::Outside,
            offsets: offsets(),
        };
        let request = Request::OffsetsInTransaction { partition, transactional_id, commit };
        self.asked = Some(self.caller.ask(leader, request, reach));
        let beside = match reach.core.draw(0, 9) {
            0..4 => GroupRequest::CommitOffsets(others),
            4..6 => {
                GroupRequest::DeleteOffsets(DeleteOffsets { group: LOOSE.to_owned(), partitions })
            }
            _ => return,
        };
        self.caller.ask(leader, Request::Group(partition, Box::new(beside)), reach);
    }

    /// Writes the batch that is to be written, or the next one.
    fn write(&mut self, reach: &mut Reach<'_>) {
        if self.sending.is_none() {
            let partitions = self.caller.partitions_of(LEDGER);
            if partitions.is_empty() {
                return;
            }
            let partition = *reach.core.random.pick(&partitions);
            let values = [u64::from(self.caller.id) << 32 | self.next_value];
            self.next_value += 1;
            let Some(number) = self.numbers.take(partition, 1) else { return };
            let bytes = build(&values, Some(number), true, reach.core);
            self.sending = Some(Sending { partition, number, bytes });
        }
        let Some(sending) = &self.sending else { return };
        let Some((leader, leader_epoch)) = self.caller.leader(sending.partition) else {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        };
        let request = Request::Produce {
            partition: sending.partition,
            leader_epoch: Some(leader_epoch),
            acks: Acks::All,
            timeout_ms: 1_000,
            batches: sending.bytes.clone(),
            transactional_id: Some(self.id.clone()),
        };
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    fn answered(&mut self, correlation: Correlation, answer: &Answer, reach: &mut Reach<'_>) {
        if self.refreshing.take_if(|it| *it == correlation).is_some() {
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(*index, topics.clone(), reach);
            }
            return;
        }
        if self.asked.take_if(|it| *it == correlation).is_none() {
            return;
        }
        reach.core.note(Who::Client(self.caller.id), "transactor", [0, 0], || {
            format!("{} as {:?} {:?}: {answer:?}", self.id, self.identity, self.state)
        });
        match answer {
            Answer::Response(Response::Produce(receipt)) => {
                if let (Some(sending), State::Open { left }) = (self.sending.take(), self.state) {
                    let Sending { partition, number, .. } = sending;
                    self.written.push(Written { partition, number, offset: receipt.base_offset });
                    self.has_written = true;
                    self.state = State::Open { left: left.saturating_sub(1) };
                    reach.core.figures.operation("transactional produce ok");
                }
            }
            Answer::Response(Response::Transaction(response)) => self.told(response, reach),
            Answer::Response(Response::Group(GroupResponse::CommitTransactionalOffsets(
                outcomes,
            ))) => {
                reach.core.figures.operation("loose offsets in transactions");
                match (self.state, outcomes.iter().all(Result::is_ok)) {
                    (State::Open { left }, true) => {
                        self.has_written = true;
                        self.state = State::Open { left: left.saturating_sub(1) };
                    }
                    _ => self.state = State::Ending { commit: false },
                }
            }
            Answer::Response(_) => {}
            answer => self.refused(answer, reach),
        }
    }

    fn told(&mut self, response: &TransactionResponse, reach: &mut Reach<'_>) {
        let next = match response {
            TransactionResponse::InitProducerId(next) => next,
            TransactionResponse::EndTxn(next) => {
                if let (Some(producer), State::Ending { commit }) = (self.identity, self.state) {
                    let name =
                        if commit { "transactions committed" } else { "transactions aborted" };
                    reach.core.figures.operation(name);
                    if self.has_written {
                        self.told.push(Told { producer, commit });
                    }
                }
                next
            }
            _ => return,
        };
        let identity = ProducerIdentity { producer_id: next.producer_id, epoch: next.epoch };
        self.identity = Some(identity);
        self.numbers.begin_as(identity);
        self.sending = None;
        self.state = State::Ready;
    }

    fn refused(&mut self, answer: &Answer, reach: &mut Reach<'_>) {
        let code = match answer {
            Answer::Refused(failure) => Some(failure.code),
            _ => None,
        };
        let is_retriable = answer.is_retriable() || answer.is_indeterminate();
        match code {
            Some(ErrorCode::ProducerFenced | ErrorCode::InvalidProducerId) => {
                reach.core.figures.operation("transactional producers fenced");
                self.sending = None;
                self.state = State::Init { expected: None };
            }
            Some(ErrorCode::TransactionAborted) => {
                self.sending = None;
                self.state = State::Init { expected: self.identity };
            }
            _ if is_retriable => {
                self.refreshing = Some(self.caller.refresh(reach));
                let client = self.caller.id;
                reach.core.after(REFRESH_US, Event::Client { client, timer: 0 });
            }
            _ => {
                // Something of the transaction has failed: it is given up.
                self.sending = None;
                self.state = match self.state {
                    State::Open { .. } | State::Ending { commit: true } => {
                        State::Ending { commit: false }
                    }
                    _ => State::Init { expected: None },
                };
            }
        }
    }
}

pub(super) fn owner(identity: ProducerIdentity) -> Owner {
    Owner { producer_id: identity.producer_id, epoch: identity.epoch }
}

fn loose(partition: TopicPartition, offset: Offset) -> OffsetToCommit {
    OffsetToCommit { partition, offset, leader_epoch: None, metadata: String::new() }
}
