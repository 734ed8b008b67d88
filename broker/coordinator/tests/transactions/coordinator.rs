//! A transaction coordinator with its log. After every call a second one that reads the log, and one that reads what
//! compaction leaves of it, must know the same.

use std::collections::BTreeMap;

use tidemark_coordinator::{
    Now, Record, TransactionConfig, TransactionCoordinator, TransactionLoader,
    transactions::{
        AddPartitions, EndTxn, InitProducerId, MarkerResult, Markers, MarkersWritten,
        ProducerIdentity, Transaction, TransactionDecision, TransactionEffect, TransactionRequest,
        TransactionResponse, Transactions,
    },
};
use tidemark_protocol::{ErrorCode, Failure, Offset, TopicId, TopicPartition};

pub(crate) type Outcome = Result<TransactionResponse, Failure>;

pub(crate) struct World {
    pub(crate) coordinator: TransactionCoordinator,
    pub(crate) log: Vec<(Offset, Record)>,
    end_offset: Offset,
    pub(crate) now: Now,
    pub(crate) epoch: i32,
    /// Effects that nobody has carried out.
    pub(crate) effects: Vec<TransactionEffect>,
    next_producer_id: i64,
    replies: Vec<Outcome>,
}

impl World {
    pub(crate) fn new(config: TransactionConfig) -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let (coordinator, decision) = TransactionLoader::new().finish(0, 1, config, now).unwrap();
        let mut world = Self {
            coordinator,
            log: Vec::new(),
            end_offset: 0,
            now,
            epoch: 1,
            effects: Vec::new(),
            next_producer_id: 1_000,
            replies: Vec::new(),
        };
        world.take(decision);
        world
    }

    pub(crate) fn call(&mut self, request: TransactionRequest) -> Outcome {
        let decision = self.coordinator.handle(self.now, 0, request);
        self.take(decision);
        assert_eq!(self.replies.len(), 1, "one answer to each request");
        self.replies.pop().unwrap()
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += i64::try_from(ms).unwrap();
        let decision = self.coordinator.on_timer(self.now);
        self.take(decision);
    }

    /// Another broker takes over, with what is in the log and nothing else.
    pub(crate) fn fail_over(&mut self) {
        let config = self.coordinator.config().clone();
        let mut loader = TransactionLoader::new();
        for (offset, record) in &self.log {
            loader.replay(*offset, record).unwrap();
        }
        self.epoch += 1;
        let loaded = loader.finish(self.end_offset, self.epoch, config, self.now);
        let (coordinator, decision) = loaded.unwrap();
        self.coordinator = coordinator;
        self.effects.clear();
        self.take(decision);
    }

    fn take(&mut self, decision: TransactionDecision) {
        assert_eq!(decision.base_offset, self.end_offset);
        self.end_offset = decision.end_offset();
        self.log.extend((decision.base_offset..).zip(decision.records));
        self.replies.extend(decision.replies.into_iter().map(|reply| reply.outcome));
        for effect in decision.effects {
            if effect == TransactionEffect::NeedProducerIds {
                let first = self.next_producer_id;
                self.next_producer_id += 3;
                self.coordinator.add_producer_ids(first..first + 3);
            } else {
                self.effects.push(effect);
            }
        }
        assert_eq!(&replay(&self.log), self.coordinator.state());
        let mut last = BTreeMap::new();
        for (offset, record) in &self.log {
            last.insert(record.key.clone(), (*offset, record.clone()));
        }
        let mut compacted: Vec<_> = last.into_values().collect();
        compacted.sort_by_key(|(offset, _)| *offset);
        assert_eq!(&replay(&compacted), self.coordinator.state());
    }

    pub(crate) fn init(&mut self, id: &str) -> Result<ProducerIdentity, ErrorCode> {
        self.init_again(id, None)
    }

    pub(crate) fn init_again(
        &mut self,
        id: &str,
        expected: Option<ProducerIdentity>,
    ) -> Result<ProducerIdentity, ErrorCode> {
        let init = InitProducerId { id: id.to_owned(), timeout_ms: 1_000, expected };
        match self.call(TransactionRequest::InitProducerId(init)) {
            Ok(TransactionResponse::InitProducerId(identity)) => Ok(identity),
            Err(failure) => Err(failure.code),
            Ok(other) => panic!("{other:?}"),
        }
    }

    pub(crate) fn add(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        number: u32,
    ) -> Result<(), ErrorCode> {
        let partitions = [partition(number)].into();
        let add = AddPartitions { id: id.to_owned(), producer, partitions, verify_only: false };
        let outcome = self.call(TransactionRequest::AddPartitions(add));
        outcome.map(drop).map_err(|failure| failure.code)
    }

    pub(crate) fn end(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        commit: bool,
    ) -> Result<ProducerIdentity, ErrorCode> {
        let end = EndTxn { id: id.to_owned(), producer, commit };
        match self.call(TransactionRequest::EndTxn(end)) {
            Ok(TransactionResponse::EndTxn(identity)) => Ok(identity),
            Err(failure) => Err(failure.code),
            Ok(other) => panic!("{other:?}"),
        }
    }

    pub(crate) fn markers(&mut self) -> Vec<Markers> {
        let sent = std::mem::take(&mut self.effects);
        let markers = sent.into_iter().filter_map(|effect| match effect {
            TransactionEffect::SendMarkers(markers) => Some(markers),
            _ => None,
        });
        markers.collect()
    }

    /// Everybody has written these.
    pub(crate) fn written(&mut self, markers: &Markers) {
        for partition in &markers.partitions {
            self.written_in(markers, *partition, MarkerResult::Written);
        }
    }

    pub(crate) fn written_in(
        &mut self,
        markers: &Markers,
        partition: TopicPartition,
        result: MarkerResult,
    ) {
        let written = MarkersWritten {
            id: markers.id.clone(),
            producer: markers.producer,
            results: vec![(partition, result)],
        };
        self.call(TransactionRequest::MarkersWritten(written)).unwrap();
    }

    pub(crate) fn transaction(&self, id: &str) -> &Transaction {
        &self.coordinator.state()[id]
    }
}

fn replay(log: &[(Offset, Record)]) -> Transactions {
    let mut loader = TransactionLoader::new();
    for (offset, record) in log {
        loader.replay(*offset, record).unwrap();
    }
    loader.state().unwrap()
}

pub(crate) fn partition(partition: u32) -> TopicPartition {
    TopicPartition { topic_id: TopicId([9; 16]), partition }
}
