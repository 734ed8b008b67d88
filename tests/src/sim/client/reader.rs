//! A reader of what is decided: follows the ledger from its beginning, leaves out what brokers say was aborted, and writes
//! down whose batches it has given to its application.

use std::collections::BTreeMap;

use tidemark_protocol::{
    NodeId, Offset, TopicPartition,
    batch::{BatchHeader, batches},
    messages::{AbortedRecords, Isolation},
};

use super::{Answer, Caller, ClientId, Reach};
use crate::{
    oracle::{Verdict, violation},
    sim::{
        core::{Core, Event, MS, Micros},
        message::{Correlation, Fetched, Request, Response},
        network::Delivery,
        shape::LEDGER,
    },
};

/// Timer: the next look.
const NEXT: u64 = 1;
const LOOK_US: Micros = 60 * MS;

/// One reader.
#[derive(Debug)]
pub struct Reader {
    caller: Caller,
    max_bytes: usize,
    positions: BTreeMap<TopicPartition, Offset>,
    fetching: Option<(Correlation, TopicPartition)>,
    refreshing: Option<Correlation>,
    turn: usize,
    /// Batches that counted: for the oracles.
    pub read: Vec<(TopicPartition, BatchHeader)>,
}

impl Reader {
    pub fn new(id: ClientId, nodes: Vec<NodeId>, max_bytes: usize, core: &mut Core) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            max_bytes,
            positions: BTreeMap::new(),
            fetching: None,
            refreshing: None,
            turn: 0,
            read: Vec::new(),
        }
    }

    /// How far it has read.
    pub fn position(&self, partition: TopicPartition) -> Offset {
        self.positions.get(&partition).copied().unwrap_or(0)
    }

    pub fn deliver(&mut self, delivery: Delivery, reach: &mut Reach<'_>) -> Verdict {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, answer, reach)?;
        }
        Ok(())
    }

    pub fn timer(&mut self, timer: u64, reach: &mut Reach<'_>) -> Verdict {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, answer, reach)?;
        }
        if timer == NEXT {
            let pause_us = reach.core.draw(MS, LOOK_US);
            reach.core.after(pause_us, Event::Client { client: self.caller.id, timer: NEXT });
            self.look(reach);
        }
        Ok(())
    }

    fn look(&mut self, reach: &mut Reach<'_>) {
        if self.fetching.is_some() || self.refreshing.is_some() {
            return;
        }
        let partitions = self.caller.partitions_of(LEDGER);
        let turn = self.turn;
        self.turn += 1;
        let partition = partitions.get(turn % partitions.len().max(1)).copied();
        let known =
            partition.and_then(|partition| Some((partition, self.caller.leader(partition)?)));
        let Some((partition, (leader, epoch))) = known.filter(|_| !self.caller.is_stale(reach))
        else {
            self.refreshing = Some(self.caller.refresh(reach));
            return;
        };
        let request = Request::Fetch {
            partition,
            leader_epoch: Some(epoch),
            offset: self.position(partition),
            max_bytes: self.max_bytes,
            isolation: Isolation::ReadCommitted,
        };
        self.fetching = Some((self.caller.ask(leader, request, reach), partition));
    }

    fn answered(
        &mut self,
        correlation: Correlation,
        answer: Answer,
        reach: &mut Reach<'_>,
    ) -> Verdict {
        if self.refreshing.take_if(|it| *it == correlation).is_some() {
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(index, topics, reach);
            }
            return Ok(());
        }
        let Some((_, partition)) = self.fetching.take_if(|(it, _)| *it == correlation) else {
            return Ok(());
        };
        let Answer::Response(Response::Fetch(fetched)) = answer else {
            self.refreshing = Some(self.caller.refresh(reach));
            return Ok(());
        };
        reach.core.figures.operation("fetch of decided ok");
        self.take(partition, &fetched)
    }

    fn take(&mut self, partition: TopicPartition, fetched: &Fetched) -> Verdict {
        let position = self.position(partition);
        let none = Vec::new();
        let aborted = fetched.stable.as_ref().map_or(&none, |stable| &stable.aborted);
        for batch in batches(fetched.bytes.clone()) {
            let batch = batch.map_err(|error| violation("S25", format!("{partition}: {error}")))?;
            let header = batch.header;
            if header.base_offset >= position && !header.is_control() && !is_in(aborted, &header) {
                self.read.push((partition, header));
            }
        }
        self.positions.insert(partition, fetched.next_offset.max(position));
        Ok(())
    }
}

/// Whether a batch is part of what was aborted.
pub(super) fn is_in(aborted: &[AbortedRecords], header: &BatchHeader) -> bool {
    header.is_transactional()
        && aborted.iter().any(|one| {
            one.producer_id == header.producer_id
                && (one.first_offset..=one.last_offset).contains(&header.base_offset)
        })
}
