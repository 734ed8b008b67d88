//! A producer: sends values nobody else sends, one batch at a time to each of a few partitions, and writes down what it
//! was told. One kind never repeats what may have been carried out; another kind does; a third numbers its batches, and has
//! each written once, however often it is sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, NodeId, TopicPartition,
    batch::{BatchBuilder, Compression},
    messages::Acks,
};

use super::{
    Answer, Caller, ClientId, REFRESH_US, Reach, named,
    numbers::{Number, Numbers, Written},
};
use crate::{
    history::{Action, History, OpId, Outcome, Repeats, Send, Value},
    sim::{
        core::{Core, Event, MS, Micros, SECOND},
        message::{Correlation, Request, Response},
        network::Delivery as Parcel,
        trace::Who,
    },
};

/// How long a batch may be tried.
const DELIVERY_US: Micros = 6 * SECOND;
/// Padding of a value, at most: some batches are larger than everything else together.
const PADDING_MAX: u64 = 600;
/// Timers: the next operation, and another try of what waits.
const NEXT: u64 = 1;
const AGAIN: u64 = 2;

/// A batch on its way.
#[derive(Debug)]
struct Sending {
    op: OpId,
    partition: TopicPartition,
    batch: Bytes,
    deadline_us: Micros,
    maybe_written: bool,
    number: Option<Number>,
    /// A broker does not know how its number goes on from those before: counting begins anew.
    is_miscounted: bool,
    /// `None`: it waits for its next try.
    asked: Option<Correlation>,
}

/// One producer.
#[derive(Debug)]
pub struct Producer {
    caller: Caller,
    /// Whether it repeats also what may have been written.
    repeats: Repeats,
    numbers: Numbers,
    identifying: Option<Correlation>,
    /// What brokers say is written, under which number: for the oracles.
    pub written: Vec<Written>,
    acks: Acks,
    think_us: Micros,
    window: usize,
    next_value: u64,
    sending: Vec<Sending>,
    refreshing: Option<Correlation>,
    /// Values of acknowledged batches survive whatever happens in this run, by partition's topic.
    pub is_done: bool,
    /// Faults are over: what has no leader now is not tried. It would take seconds each time, which are missing elsewhere.
    pub is_calm: bool,
    survives: BTreeMap<String, bool>,
}

impl Producer {
    pub fn new(id: ClientId, nodes: Vec<NodeId>, think_us: Micros, core: &mut Core) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            repeats: match core.draw(0, 99) {
                0..40 => Repeats::Numbered,
                40..65 => Repeats::Blindly,
                _ => Repeats::Never,
            },
            numbers: Numbers::default(),
            identifying: None,
            written: Vec::new(),
            acks: if core.chance(800) { Acks::All } else { Acks::Leader },
            think_us,
            window: usize::try_from(core.draw(1, 3)).expect("a few"),
            next_value: 0,
            sending: Vec::new(),
            refreshing: None,
            is_done: false,
            is_calm: false,
            survives: BTreeMap::new(),
        }
    }

    /// Whether what this topic acknowledges survives everything that happens in this run.
    pub fn expect(&mut self, topic: &str, survives: bool) {
        self.survives.insert(topic.to_owned(), survives);
    }

    /// Batches on their way.
    pub fn pending(&self) -> usize {
        self.sending.len()
    }

    pub fn deliver(&mut self, parcel: Parcel, history: &mut History, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.take_in(parcel, reach) {
            self.answered(correlation, answer, history, reach);
        }
    }

    pub fn timer(&mut self, timer: u64, history: &mut History, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, answer, history, reach);
        }
        match timer {
            NEXT => {
                let client = self.caller.id;
                let pause_us = reach.core.draw(self.think_us / 10, self.think_us);
                reach.core.after(pause_us, Event::Client { client, timer: NEXT });
                if !self.is_done && self.sending.len() < self.window {
                    self.begin(history, reach);
                }
            }
            AGAIN => self.try_all(history, reach),
            _ => {}
        }
    }

    fn begin(&mut self, history: &mut History, reach: &mut Reach<'_>) {
        if self.caller.is_stale(reach) {
            self.refresh(reach);
        }
        let partitions = self.caller.partitions();
        // One batch at a time to each: what is sent later is not to overtake what is repeated.
        let is_free = |id: &&TopicPartition| {
            self.sending.iter().all(|it| it.partition != **id)
                && !(self.is_calm && self.caller.leader(**id).is_none())
        };
        let free: Vec<_> = partitions.iter().filter(is_free).copied().collect();
        if free.is_empty() {
            return self.refresh(reach);
        }
        let partition = *reach.core.random.pick(&free);
        if self.repeats == Repeats::Numbered && !self.numbers.has_identity() {
            return self.identify(reach);
        }
        let count = reach.core.draw(1, 4);
        let values: Vec<Value> = (0..count).map(|at| self.value(at)).collect();
        self.next_value += count;
        let is_numbered = self.repeats == Repeats::Numbered;
        let records = u32::try_from(values.len()).expect("a few");
        let number = is_numbered.then(|| self.numbers.take(partition, records)).flatten();
        let batch = build(&values, number, false, reach.core);
        let topic = self.caller.topics.iter().find(|topic| topic.id == partition.topic_id);
        let name = topic.map(|topic| topic.name.as_str()).unwrap_or_default();
        let survives = self.survives.get(name).copied().unwrap_or(false);
        let send = Send {
            values,
            survives: survives && self.acks == Acks::All,
            ..Send::durable(named(partition), 0, self.repeats)
        };
        let op = history.invoke(self.caller.id, reach.core.now_us() * 1_000, Action::Send(send));
        self.sending.push(Sending {
            op,
            partition,
            batch,
            deadline_us: reach.core.now_us() + DELIVERY_US,
            maybe_written: false,
            number,
            is_miscounted: false,
            asked: None,
        });
        self.try_all(history, reach);
    }

    fn value(&self, at: u64) -> Value {
        u64::from(self.caller.id) << 32 | (self.next_value + at)
    }

    fn refresh(&mut self, reach: &mut Reach<'_>) {
        if self.refreshing.is_none() {
            self.refreshing = Some(self.caller.refresh(reach));
        }
    }

    fn identify(&mut self, reach: &mut Reach<'_>) {
        if self.identifying.is_none() {
            self.identifying = Some(self.caller.ask_anybody(Request::InitProducer, reach));
        }
    }

    /// Sends whatever waits and has a leader; gives up what has waited for too long.
    fn try_all(&mut self, history: &mut History, reach: &mut Reach<'_>) {
        let now_us = reach.core.now_us();
        let mut stale = false;
        for sending in self.sending.iter_mut().filter(|sending| sending.asked.is_none()) {
            let Some((leader, leader_epoch)) = self.caller.leader(sending.partition) else {
                stale = true;
                continue;
            };
            if now_us >= sending.deadline_us {
                continue;
            }
            let request = Request::Produce {
                partition: sending.partition,
                leader_epoch: Some(leader_epoch),
                acks: self.acks,
                timeout_ms: 1_000,
                batches: sending.batch.clone(),
                transactional_id: None,
            };
            sending.asked = Some(self.caller.ask(leader, request, reach));
        }
        let over = |sending: &Sending| sending.asked.is_none() && now_us >= sending.deadline_us;
        let (over, rest) = std::mem::take(&mut self.sending).into_iter().partition(over);
        self.sending = rest;
        for sending in over {
            self.end(&sending, history, reach);
        }
        if stale {
            self.refresh(reach);
        }
    }

    fn answered(
        &mut self,
        correlation: Correlation,
        answer: Answer,
        history: &mut History,
        reach: &mut Reach<'_>,
    ) {
        if self.refreshing == Some(correlation) {
            self.refreshing = None;
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(index, topics, reach);
            }
            let client = self.caller.id;
            let pause_us = reach.core.draw(MS, REFRESH_US);
            reach.core.after(pause_us, Event::Client { client, timer: AGAIN });
            return;
        }
        if self.identifying.take_if(|it| *it == correlation).is_some() {
            if let Answer::Response(Response::Producer(identity)) = answer {
                self.numbers.identify(identity);
            }
            return;
        }
        let mine = self.sending.iter().position(|sending| sending.asked == Some(correlation));
        let Some(at) = mine else { return };
        if let Answer::Response(Response::Produce(receipt)) = answer {
            let sending = self.sending.remove(at);
            let (offset, epoch) = (receipt.base_offset, receipt.leader_epoch);
            if let Some(number) = sending.number.filter(|_| self.acks == Acks::All) {
                self.written.push(Written { partition: sending.partition, number, offset });
            }
            history.acknowledge(sending.op, reach.core.now_us() * 1_000, offset, epoch);
            reach.core.figures.operation("produce ok");
            let who = Who::Client(self.caller.id);
            reach.core.note(who, "acked", [offset, u64::from(epoch)], || {
                format!("{} at {offset} in epoch {epoch}", sending.partition)
            });
            return;
        }
        let sending = &mut self.sending[at];
        sending.asked = None;
        let indeterminate = answer.is_indeterminate();
        sending.maybe_written |= indeterminate;
        reach.core.note(Who::Client(self.caller.id), "not acked", [0, 0], || {
            format!("{}: {answer:?}", sending.partition)
        });
        sending.is_miscounted |= sending.number.is_some() && is_about_numbers(&answer);
        let may_repeat = !indeterminate || self.repeats != Repeats::Never;
        if answer.is_retriable() && may_repeat && !sending.is_miscounted {
            if sending.maybe_written {
                reach.core.figures.fault("requests repeated blindly");
            }
            self.refresh(reach);
            return;
        }
        let sending = self.sending.remove(at);
        self.end(&sending, history, reach);
    }

    fn end(&mut self, sending: &Sending, history: &mut History, reach: &mut Reach<'_>) {
        if let Some(number) = sending.number {
            let is_over = sending.maybe_written || sending.is_miscounted;
            self.numbers.give_up(sending.partition, number, is_over);
        }
        let outcome = if sending.maybe_written { Outcome::Info } else { Outcome::Fail };
        history.complete(sending.op, reach.core.now_us() * 1_000, outcome);
        let name = if sending.maybe_written { "produce unknown" } else { "produce failed" };
        reach.core.figures.operation(name);
    }
}

/// Whether a broker does not know how the number goes on from those before.
pub(super) fn is_about_numbers(answer: &Answer) -> bool {
    let Answer::Refused(failure) = answer else { return false };
    matches!(failure.code, ErrorCode::OutOfOrderSequence | ErrorCode::InvalidProducerEpoch)
}

/// A batch of these values.
pub(super) fn build(
    values: &[Value],
    number: Option<Number>,
    is_transactional: bool,
    core: &mut Core,
) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(Number { producer, sequence }) = number {
        builder.set_producer(producer.producer_id, producer.epoch, sequence);
    }
    if is_transactional {
        builder.set_transactional();
    }
    let padding = if core.chance(100) { PADDING_MAX * 8 } else { PADDING_MAX };
    for value in values {
        let mut bytes = value.to_be_bytes().to_vec();
        let padding = usize::try_from(core.draw(0, padding)).expect("a few bytes");
        bytes.resize(8 + padding, 0xa5);
        builder.push(timestamp_ms(core), None, Some(&bytes), &[]);
    }
    builder.build().expect("a few small records are a batch")
}

fn timestamp_ms(core: &Core) -> i64 {
    i64::try_from(super::super::world::EPOCH_MS + core.now_ms()).expect("not so far in the future")
}
