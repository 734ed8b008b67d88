//! A consumer: reads every partition from the beginning, one fetch at a time, checks every batch it is given, and writes
//! down what it has read.

use std::collections::BTreeMap;

use tidemark_protocol::{
    ErrorCode, Failure, NodeId, Offset, TopicPartition, batch::batches, messages::Isolation,
};

use super::{Answer, Caller, ClientId, REFRESH_US, Reach, named};
use crate::{
    history::{Action, History, OpId, Outcome, Poll, Read, Value},
    oracle::{Verdict, violation},
    sim::{
        core::{Core, Event, MS, Micros},
        message::{Correlation, Fetched, Request, Response},
        network::Delivery,
    },
};

/// Timers: the next look, and another try.
const NEXT: u64 = 1;
/// Pause between two looks.
const LOOK_US: Micros = 60 * MS;

#[derive(Debug)]
struct Fetching {
    correlation: Correlation,
    op: OpId,
    partition: TopicPartition,
    is_list: bool,
}

/// One consumer.
#[derive(Debug)]
pub struct Consumer {
    caller: Caller,
    max_bytes: usize,
    positions: BTreeMap<TopicPartition, Offset>,
    fetching: Option<Fetching>,
    refreshing: Option<Correlation>,
    turn: usize,
}

impl Consumer {
    pub fn new(id: ClientId, nodes: Vec<NodeId>, max_bytes: usize, core: &mut Core) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            max_bytes,
            positions: BTreeMap::new(),
            fetching: None,
            refreshing: None,
            turn: 0,
        }
    }

    /// Reads as much as it is given from now on.
    pub fn hurry(&mut self) {
        self.max_bytes = 1 << 20;
    }

    /// How far it has read.
    pub fn positions(&self) -> &BTreeMap<TopicPartition, Offset> {
        &self.positions
    }

    pub fn deliver(
        &mut self,
        delivery: Delivery,
        history: &mut History,
        reach: &mut Reach<'_>,
    ) -> Verdict {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, answer, history, reach)?;
        }
        Ok(())
    }

    pub fn timer(&mut self, timer: u64, history: &mut History, reach: &mut Reach<'_>) -> Verdict {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, answer, history, reach)?;
        }
        if timer == NEXT {
            let pause_us = reach.core.draw(MS, LOOK_US);
            reach.core.after(pause_us, Event::Client { client: self.caller.id, timer: NEXT });
            self.look(history, reach);
        }
        Ok(())
    }

    fn look(&mut self, history: &mut History, reach: &mut Reach<'_>) {
        if self.fetching.is_some() || self.refreshing.is_some() {
            return;
        }
        let partitions = self.caller.partitions();
        if self.caller.is_stale(reach) {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        }
        if partitions.is_empty() {
            return;
        }
        self.turn += 1;
        let partition = partitions[self.turn % partitions.len()];
        let Some((leader, leader_epoch)) = self.caller.leader(partition) else {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        };
        let position = self.positions.get(&partition).copied();
        if position.is_none() {
            self.positions.insert(partition, 0);
            self.assign(history, reach);
        }
        let is_list = reach.core.chance(50);
        let request = if is_list {
            Request::ListOffsets { partition, earliest: false }
        } else {
            Request::Fetch {
                partition,
                leader_epoch: Some(leader_epoch),
                offset: position.unwrap_or(0),
                max_bytes: self.max_bytes,
                isolation: Isolation::ReadUncommitted,
            }
        };
        let action = if is_list {
            Action::ReadEnd { partition: named(partition), end: None }
        } else {
            Action::Poll(Poll::default())
        };
        let op = history.invoke(self.caller.id, reach.core.now_us() * 1_000, action);
        let correlation = self.caller.ask(leader, request, reach);
        self.fetching = Some(Fetching { correlation, op, partition, is_list });
    }

    fn assign(&self, history: &mut History, reach: &Reach<'_>) {
        let now_ns = reach.core.now_us() * 1_000;
        let assigned = self.positions.iter().map(|(id, offset)| (named(*id), *offset)).collect();
        let action = Action::Assign(assigned);
        history.record(self.caller.id, (now_ns, now_ns), action, Outcome::Ok);
    }

    fn answered(
        &mut self,
        correlation: Correlation,
        answer: Answer,
        history: &mut History,
        reach: &mut Reach<'_>,
    ) -> Verdict {
        if self.refreshing == Some(correlation) {
            self.refreshing = None;
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(index, topics, reach);
            }
            return Ok(());
        }
        let Some(fetching) = self.fetching.take_if(|fetching| fetching.correlation == correlation)
        else {
            return Ok(());
        };
        let now_ns = reach.core.now_us() * 1_000;
        let partition = fetching.partition;
        match answer {
            Answer::Response(Response::Fetch(fetched)) => {
                let reads = self.read(partition, &fetched)?;
                reach.core.figures.operation("fetch ok");
                if let Action::Poll(poll) = &mut history.operations[fetching.op].action
                    && !reads.is_empty()
                {
                    poll.records.push((named(partition), reads));
                }
                history.complete(fetching.op, now_ns, Outcome::Ok);
            }
            Answer::Response(Response::ListOffsets { offset, leader_epoch }) => {
                reach.core.figures.operation("list offsets ok");
                if let Action::ReadEnd { end, .. } = &mut history.operations[fetching.op].action {
                    *end = Some((offset, leader_epoch));
                }
                history.complete(fetching.op, now_ns, Outcome::Ok);
            }
            Answer::Refused(failure) => {
                reach.core.figures.operation("fetch refused");
                history.complete(fetching.op, now_ns, Outcome::Fail);
                self.refused(&fetching, &failure, history, reach);
            }
            Answer::Lost | Answer::Response(_) => {
                reach.core.figures.operation("fetch unknown");
                history.complete(fetching.op, now_ns, Outcome::Info);
                self.refreshing = Some(self.caller.refresh(reach));
            }
        }
        Ok(())
    }

    fn refused(
        &mut self,
        fetching: &Fetching,
        failure: &Failure,
        history: &mut History,
        reach: &mut Reach<'_>,
    ) {
        let partition = fetching.partition;
        match failure.code {
            ErrorCode::OffsetOutOfRange if !fetching.is_list => {
                let position = self.positions.get(&partition).copied().unwrap_or(0);
                let now_ns = reach.core.now_us() * 1_000;
                let action = Action::OutOfRange { partition: named(partition), position };
                history.record(self.caller.id, (now_ns, now_ns), action, Outcome::Ok);
            }
            _ => {
                let client = self.caller.id;
                reach.core.after(REFRESH_US, Event::Client { client, timer: 0 });
                self.refreshing = Some(self.caller.refresh(reach));
            }
        }
    }

    /// Checks and decodes what was read, and moves on behind it. Everything that is given to a client has a good
    /// checksum and is what it asked for (S25).
    fn read(
        &mut self,
        partition: TopicPartition,
        fetched: &Fetched,
    ) -> Result<Vec<Read>, crate::oracle::Violation> {
        let position = self.positions.entry(partition).or_insert(0);
        let mut reads = Vec::new();
        for batch in batches(fetched.bytes.clone()) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Err(violation("S25", format!("{partition}: {error}"))),
            };
            if let Err(error) = batch.verify_crc() {
                return Err(violation("S25", format!("{partition}: served damaged: {error}")));
            }
            let header = &batch.header;
            if header.base_offset > fetched.high_watermark {
                let text = format!("{partition}: {} is above the watermark", header.base_offset);
                return Err(violation("S9", text));
            }
            let records = batch.records().map_err(|error| {
                violation("S25", format!("{partition}: records do not decode: {error}"))
            })?;
            for record in records {
                let value = record.value.as_deref().and_then(value_of);
                let Some(value) = value else {
                    return Err(violation("S25", format!("{partition}: a record nobody sent")));
                };
                if record.offset >= *position {
                    *position = record.offset + 1;
                    reads.push(Read { offset: record.offset, value, epoch: header.leader_epoch });
                }
            }
        }
        Ok(reads)
    }
}

fn value_of(bytes: &[u8]) -> Option<Value> {
    Some(u64::from_be_bytes(*bytes.first_chunk()?))
}
