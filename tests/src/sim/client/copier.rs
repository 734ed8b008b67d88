//! A copier: reads what is decided in the ledger, writes what it read into another topic, and commits how far it has read with
//! the same transaction. A model of the shipped `TransactionalProducer` with `send_offsets`, and of an application around it
//! that dies at any moment, gives up on purpose, and sleeps longer than it may.
//!
//! Two copiers share a transactional id and a group without members, so that each is the other's zombie. Where it begins is what
//! its group has committed, asked for after every beginning and every transaction that did not count.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidemark_coordinator::{
    groups::{
        CommitTransactionalOffsets, Committer, FetchOffsets, GroupRequest, GroupResponse,
        OffsetToCommit,
    },
    transactions::{EndTxn, InitProducerId, TransactionRequest, TransactionResponse},
};
use tidemark_protocol::{
    ErrorCode, NodeId, Offset, TopicPartition,
    batch::batches,
    messages::{Acks, Isolation, ProducerIdentity},
};

use super::{
    Answer, Caller, ClientId, REFRESH_US, Reach,
    member::GroupEvent,
    numbers::{Numbers, Written},
    producer::build,
    reader::is_in,
    transactor::{Sending, Told, owner},
};
use crate::{
    oracle::{Copied, ExactlyOnce, Verdict, violation},
    sim::{
        core::{Core, Event, MS, Micros, SECOND},
        message::{Correlation, Fetched, Request, Response},
        network::Delivery,
        shape::{COPIES, GROUPS, LEDGER, TRANSACTIONS},
        trace::Who,
    },
};

/// After so long an open transaction is aborted by its coordinator.
const TIMEOUT_MS: u32 = 2_500;
/// Timer: go on with what is to be done.
const NEXT: u64 = 1;

/// What it is about to do, or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Needs an identity: as a new process, or as one that goes on.
    Init {
        expected: Option<ProducerIdentity>,
    },
    /// Has to learn how far its group is.
    Locating,
    Ready,
    /// So often it still reads; then what it has read is committed.
    Open {
        left: u64,
    },
    /// The offsets are on their way into the transaction.
    Offering,
    Ending {
        commit: bool,
    },
    /// Another one has taken over, and no third is needed.
    Retired,
}

/// One copier.
#[derive(Debug)]
pub struct Copier {
    caller: Caller,
    /// Which pair it belongs to: part of every record it writes.
    pair: u8,
    state: State,
    numbers: Numbers,
    identity: Option<ProducerIdentity>,
    sending: VecDeque<Sending>,
    /// How far its group is, as far as it knows.
    positions: BTreeMap<TopicPartition, Offset>,
    /// How far it is with what the open transaction has.
    taken: BTreeMap<TopicPartition, Offset>,
    fetching: Option<TopicPartition>,
    /// Something of the open transaction is written.
    has_written: bool,
    /// When the question or the offsets under way were sent.
    sent_us: Micros,
    offered_us: Micros,
    asked: Option<Correlation>,
    refreshing: Option<Correlation>,
    max_bytes: usize,
    think_us: Micros,
    sleeps_until_us: Micros,
    /// Nobody dies any more, and nobody comes back: whoever is left copies to the end.
    pub is_draining: bool,
    pub written: Vec<Written>,
    pub told: Vec<Told>,
    pub events: Vec<GroupEvent>,
}

impl Copier {
    pub fn new(
        id: ClientId,
        pair: u8,
        nodes: Vec<NodeId>,
        max_bytes: usize,
        core: &mut Core,
    ) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            pair,
            state: State::Init { expected: None },
            numbers: Numbers::default(),
            identity: None,
            sending: VecDeque::new(),
            positions: BTreeMap::new(),
            taken: BTreeMap::new(),
            fetching: None,
            has_written: false,
            sent_us: 0,
            offered_us: 0,
            asked: None,
            refreshing: None,
            max_bytes,
            think_us: core.draw(5 * MS, 100 * MS),
            sleeps_until_us: 0,
            is_draining: false,
            written: Vec::new(),
            told: Vec::new(),
            events: Vec::new(),
        }
    }

    pub fn group(&self) -> String {
        Copied::group(self.pair)
    }

    /// How far its group is, by what is committed in its log.
    pub fn committed(&self, all: &ExactlyOnce, partition: TopicPartition) -> Offset {
        all.position(self.pair, partition.partition)
    }

    fn transactional_id(&self) -> String {
        format!("copy-{}", self.pair)
    }

    /// Whether nothing is open, as far as it knows.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Ready | State::Retired)
            || matches!(self.state, State::Open { .. } if self.taken.is_empty())
    }

    /// Offsets that it has asked to be committed for a partition, and has not heard of.
    pub fn pending(&self, partition: TopicPartition) -> Option<Offset> {
        let is_ending = self.state == State::Ending { commit: true };
        self.taken.get(&partition).copied().filter(|_| is_ending)
    }

    pub fn deliver(&mut self, delivery: Delivery, reach: &mut Reach<'_>) -> Verdict {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, &answer, reach)?;
        }
        Ok(())
    }

    pub fn timer(&mut self, timer: u64, reach: &mut Reach<'_>) -> Verdict {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, &answer, reach)?;
        }
        if timer == NEXT {
            let pause_us = if !self.is_draining && reach.core.chance(10) {
                // Longer than it may.
                3 * SECOND
            } else {
                reach.core.draw(self.think_us / 10, self.think_us)
            };
            let client = self.caller.id;
            reach.core.after(pause_us, Event::Client { client, timer: NEXT });
            if !self.is_draining && reach.core.chance(8) {
                reach.core.figures.fault("copiers killed");
                self.asked = None;
                self.refreshing = None;
                self.begin_anew(None);
            }
            self.go_on(reach);
        }
        Ok(())
    }

    /// What is open does not count any more, as far as this process is concerned, or nobody knows.
    fn begin_anew(&mut self, expected: Option<ProducerIdentity>) {
        if self.state == (State::Ending { commit: true }) {
            self.settle(false);
        }
        self.drop_open();
        self.state = State::Init { expected };
    }

    fn drop_open(&mut self) {
        self.has_written = false;
        self.sending.clear();
        self.taken.clear();
        self.fetching = None;
    }

    /// The transaction that has offered offsets counts, or may count.
    fn settle(&mut self, is_known: bool) {
        for (partition, offset) in &self.taken {
            let (partition, offset, sent_us) = (*partition, *offset, self.offered_us);
            self.events.push(GroupEvent::Committed { partition, offset, sent_us, is_known });
        }
    }

    fn go_on(&mut self, reach: &mut Reach<'_>) {
        if self.asked.is_some()
            || self.refreshing.is_some()
            || reach.core.now_us() < self.sleeps_until_us
        {
            return;
        }
        if self.caller.is_stale(reach) {
            return self.refresh(reach);
        }
        match self.state {
            State::Retired => {}
            State::Init { expected } => {
                let expected = expected.map(owner);
                let id = self.transactional_id();
                let init = InitProducerId { id, timeout_ms: TIMEOUT_MS, expected };
                self.ask_transactions(TransactionRequest::InitProducerId(init), reach);
            }
            State::Locating => self.locate(reach),
            State::Ready => {
                // With bites as small as that, a copier that is far behind does not get to the end in the time there is.
                let (least, most) = if self.is_draining { (8, 16) } else { (1, 3) };
                self.state = State::Open { left: reach.core.draw(least, most) };
                self.go_on(reach);
            }
            State::Open { .. } if !self.sending.is_empty() => self.write(reach),
            State::Open { left: 0 } if self.taken.is_empty() => self.state = State::Ready,
            State::Open { left: 0 } => {
                self.offered_us = reach.core.now_us();
                self.state = State::Offering;
                self.go_on(reach);
            }
            State::Open { .. } => self.read(reach),
            State::Offering => self.offer(reach),
            State::Ending { commit } => {
                let Some(producer) = self.identity.map(owner) else { return };
                let end = EndTxn { id: self.transactional_id(), producer, commit };
                self.ask_transactions(TransactionRequest::EndTxn(end), reach);
            }
        }
    }

    fn refresh(&mut self, reach: &mut Reach<'_>) {
        self.refreshing = Some(self.caller.refresh(reach));
    }

    fn ask_transactions(&mut self, request: TransactionRequest, reach: &mut Reach<'_>) {
        let id = self.transactional_id();
        let Some((partition, leader)) = self.caller.coordinator(TRANSACTIONS, &id) else {
            return self.refresh(reach);
        };
        let request = Request::Transaction { partition, request, metadata_index: 0 };
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    /// Asks how far the group is. What is not decided yet is waited for.
    fn locate(&mut self, reach: &mut Reach<'_>) {
        let partitions = self.caller.partitions_of(LEDGER);
        let group = self.group();
        let known = self.caller.coordinator(GROUPS, &group);
        let Some((partition, leader)) = known.filter(|_| !partitions.is_empty()) else {
            return self.refresh(reach);
        };
        let (member, partitions) = (None, Some(partitions));
        let fetch = FetchOffsets { group, member, partitions, require_stable: true };
        let request = Request::Group(partition, Box::new(GroupRequest::FetchOffsets(fetch)));
        self.sent_us = reach.core.now_us();
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    fn read(&mut self, reach: &mut Reach<'_>) {
        let partitions: Vec<_> = self.positions.keys().copied().collect();
        if partitions.is_empty() {
            self.state = State::Locating;
            return;
        }
        let partition = *reach.core.random.pick(&partitions);
        let Some((leader, epoch)) = self.caller.leader(partition) else {
            return self.refresh(reach);
        };
        let request = Request::Fetch {
            partition,
            leader_epoch: Some(epoch),
            offset: self.position(partition),
            max_bytes: self.max_bytes,
            isolation: Isolation::ReadCommitted,
        };
        self.fetching = Some(partition);
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    fn position(&self, partition: TopicPartition) -> Offset {
        let known = self.taken.get(&partition).or_else(|| self.positions.get(&partition));
        known.copied().unwrap_or(0)
    }

    /// Makes of what was read what is to be written.
    fn take(&mut self, fetched: &Fetched, reach: &mut Reach<'_>) -> Verdict {
        let Some(from) = self.fetching.take() else { return Ok(()) };
        let position = self.position(from);
        let none = Vec::new();
        let aborted = fetched.stable.as_ref().map_or(&none, |stable| &stable.aborted);
        let mut values = Vec::new();
        for batch in batches(fetched.bytes.clone()) {
            let batch = batch.map_err(|error| violation("S25", format!("{from}: {error}")))?;
            let header = &batch.header;
            if header.is_control() || is_in(aborted, header) {
                continue;
            }
            let offsets = header.base_offset..header.next_offset();
            let fresh = offsets.filter(|offset| *offset >= position);
            let copied = |offset| Copied { pair: self.pair, partition: from.partition, offset };
            values.extend(fresh.map(|offset| copied(offset).value()));
        }
        if fetched.next_offset > position {
            self.taken.insert(from, fetched.next_offset);
        }
        let targets = self.caller.partitions_of(COPIES);
        let (first, rest) = values.split_at(values.len() / 2);
        for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
            let Some(partition) = targets.first().map(|_| *reach.core.random.pick(&targets)) else {
                // There is no such topic yet.
                self.state = State::Ending { commit: false };
                return Ok(());
            };
            let records = u32::try_from(part.len()).expect("a few");
            let Some(number) = self.numbers.take(partition, records) else { return Ok(()) };
            let bytes: Bytes = build(part, Some(number), true, reach.core);
            self.sending.push_back(Sending { partition, number, bytes });
        }
        if let State::Open { left } = self.state {
            self.state = State::Open { left: left.saturating_sub(1) };
        }
        Ok(())
    }

    fn write(&mut self, reach: &mut Reach<'_>) {
        let Some(sending) = self.sending.front() else { return };
        let Some((leader, leader_epoch)) = self.caller.leader(sending.partition) else {
            return self.refresh(reach);
        };
        let request = Request::Produce {
            partition: sending.partition,
            leader_epoch: Some(leader_epoch),
            acks: Acks::All,
            timeout_ms: 1_000,
            batches: sending.bytes.clone(),
            transactional_id: Some(self.transactional_id()),
        };
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    /// Has the offsets become part of the transaction.
    fn offer(&mut self, reach: &mut Reach<'_>) {
        let Some(producer) = self.identity else { return };
        let group = self.group();
        let Some((partition, leader)) = self.caller.coordinator(GROUPS, &group) else {
            return self.refresh(reach);
        };
        let offset = |(partition, offset): (&TopicPartition, &Offset)| OffsetToCommit {
            partition: *partition,
            offset: *offset,
            leader_epoch: None,
            metadata: String::new(),
        };
        let commit = CommitTransactionalOffsets {
            group,
            producer_id: producer.producer_id,
            producer_epoch: producer.epoch,
            guard: None,
            committer: Committer::Outside,
            offsets: self.taken.iter().map(offset).collect(),
        };
        let transactional_id = self.transactional_id();
        let commit = Box::new(commit);
        let request = Request::OffsetsInTransaction { partition, transactional_id, commit };
        self.asked = Some(self.caller.ask(leader, request, reach));
    }

    fn answered(
        &mut self,
        correlation: Correlation,
        answer: &Answer,
        reach: &mut Reach<'_>,
    ) -> Verdict {
        if self.refreshing.take_if(|it| *it == correlation).is_some() {
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(*index, topics.clone(), reach);
            }
            return Ok(());
        }
        if self.asked.take_if(|it| *it == correlation).is_none() {
            return Ok(());
        }
        reach.core.note(Who::Client(self.caller.id), "copier", [0, 0], || {
            format!("{} as {:?} {:?}: {answer:?}", self.group(), self.identity, self.state)
        });
        match answer {
            Answer::Response(Response::Fetch(fetched)) => return self.take(fetched, reach),
            Answer::Response(Response::Produce(receipt)) => {
                if let Some(Sending { partition, number, .. }) = self.sending.pop_front() {
                    self.written.push(Written { partition, number, offset: receipt.base_offset });
                    self.has_written = true;
                    reach.core.figures.operation("copies written");
                }
            }
            Answer::Response(Response::Transaction(response)) => self.told(response, reach),
            Answer::Response(Response::Group(GroupResponse::FetchOffsets(fetched))) => {
                self.located(fetched);
            }
            Answer::Response(Response::Group(GroupResponse::CommitTransactionalOffsets(
                outcomes,
            ))) => {
                let is_offered = outcomes.iter().all(Result::is_ok);
                self.state = State::Ending { commit: is_offered && reach.core.chance(900) };
            }
            Answer::Response(_) => {}
            answer => self.refused(answer, reach),
        }
        Ok(())
    }

    fn located(&mut self, fetched: &[tidemark_coordinator::groups::FetchedOffset]) {
        let mut positions = BTreeMap::new();
        for one in fetched {
            // Somebody's transaction has not ended: it asks again.
            let Ok(committed) = &one.outcome else { return };
            let offset = committed.as_ref().map(|committed| committed.offset);
            positions.insert(one.partition, offset);
        }
        for (partition, offset) in &positions {
            let (partition, offset, sent_us) = (*partition, *offset, self.sent_us);
            self.events.push(GroupEvent::Fetched { partition, offset, sent_us });
        }
        let known = positions.into_iter().map(|(id, offset)| (id, offset.unwrap_or(0)));
        self.positions = known.collect();
        self.state = State::Ready;
    }

    fn told(&mut self, response: &TransactionResponse, reach: &mut Reach<'_>) {
        let next = match response {
            TransactionResponse::InitProducerId(next) => {
                self.state = State::Locating;
                next
            }
            TransactionResponse::EndTxn(next) => {
                let (Some(producer), State::Ending { commit }) = (self.identity, self.state) else {
                    return;
                };
                if commit || self.has_written {
                    self.told.push(Told { producer, commit });
                }
                if commit {
                    reach.core.figures.operation("copies and offsets committed");
                    self.settle(true);
                    self.positions.append(&mut self.taken);
                    self.state = State::Ready;
                } else {
                    reach.core.figures.operation("copies and offsets aborted");
                    self.state = State::Locating;
                }
                next
            }
            _ => return,
        };
        let identity = ProducerIdentity { producer_id: next.producer_id, epoch: next.epoch };
        self.identity = Some(identity);
        self.numbers.begin_as(identity);
        self.drop_open();
    }

    fn refused(&mut self, answer: &Answer, reach: &mut Reach<'_>) {
        let code = match answer {
            Answer::Refused(failure) => Some(failure.code),
            _ => None,
        };
        let is_retriable = answer.is_retriable() || answer.is_indeterminate();
        match code {
            Some(ErrorCode::ProducerFenced | ErrorCode::InvalidProducerId) => {
                reach.core.figures.operation("copiers fenced");
                self.begin_anew(None);
                if self.is_draining {
                    self.state = State::Retired;
                } else {
                    // The supervisor takes its time: the other one is to get somewhere.
                    self.sleeps_until_us = reach.core.now_us() + reach.core.draw(0, 4 * SECOND);
                }
            }
            Some(ErrorCode::TransactionAborted) => self.begin_anew(self.identity),
            _ if is_retriable => {
                self.refresh(reach);
                let client = self.caller.id;
                reach.core.after(REFRESH_US, Event::Client { client, timer: 0 });
            }
            // Nothing of a transaction has failed.
            _ if matches!(self.state, State::Locating) => {}
            _ => match self.state {
                State::Open { .. } | State::Offering => {
                    self.state = State::Ending { commit: false };
                }
                State::Ending { commit: true } => {
                    self.settle(false);
                    self.state = State::Ending { commit: false };
                }
                _ => self.begin_anew(None),
            },
        }
    }
}
