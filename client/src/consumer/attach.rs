//! How a consumer finds readers for its partitions, and what it makes of what they report.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidemark_protocol::{ErrorCode, Failure, Offset, TopicPartition, batch::BatchHeader};
use tokio::time::Instant;

use super::{
    Consumer, Position,
    config::OutOfRange,
    session::{Event, Reading, SessionId},
};
use crate::error::{ConsumeError, RequestError};

impl Consumer {
    /// Finds a reader for every slot that needs one, and takes those from readers that are not to be read any more; what
    /// fails for now is tried again after a pause.
    /// May be dropped at any await: what it has learned stays true.
    pub(super) async fn attach(&mut self) -> Result<(), ConsumeError> {
        let topics: BTreeSet<Arc<str>> =
            self.slots.unread().into_iter().map(|at| self.slots.get(at).topic.clone()).collect();
        let deadline = self.cluster.deadline();
        let mut metadata = self.cluster.metadata();
        let unknown = topics.iter().any(|topic| metadata.topic(topic).is_none());
        if self.leaders_stale || unknown {
            let topics: Vec<_> = topics.into_iter().collect();
            match self.cluster.refresh(&topics, deadline).await {
                Ok(fresh) => metadata = fresh,
                Err(error) if error.is_retriable() => {
                    self.pause_attempts(&error);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            self.leaders_stale = false;
        }
        self.reset_positions().await?;
        let mut by_leader: BTreeMap<Arc<str>, Vec<Reading>> = BTreeMap::new();
        for at in self.slots.unread() {
            let slot = self.slots.get(at);
            let Some(topic) = metadata.topic(&slot.topic) else {
                self.leaders_stale = true;
                return Err(ConsumeError::UnknownTopic { topic: slot.topic.clone() });
            };
            let Some(leader) = metadata.leader(&slot.topic, slot.partition) else {
                if slot.partition >= topic.partition_count() {
                    let (topic, partitions) = (slot.topic.clone(), topic.partition_count());
                    let partition = slot.partition;
                    return Err(ConsumeError::UnknownPartition { topic, partition, partitions });
                }
                let (topic, partition) = (slot.topic.clone(), slot.partition);
                self.leaders_stale = true;
                self.pause_attempts(&ConsumeError::NoLeader { topic, partition });
                continue;
            };
            let partition = TopicPartition { topic_id: topic.id, partition: slot.partition };
            let (epoch, offset) = (leader.epoch, slot.position);
            let reading = Reading { slot: at, partition, epoch, offset };
            by_leader.entry(leader.address).or_default().push(reading);
        }
        self.start_sessions(by_leader);
        Ok(())
    }

    /// Looks up where to go on for positions that were out of range.
    async fn reset_positions(&mut self) -> Result<(), ConsumeError> {
        for at in self.slots.unread() {
            let slot = self.slots.get(at);
            let Some(position) = slot.reset else { continue };
            let question = [(slot.topic.clone(), slot.partition, position)];
            let offsets = self.resolve(&question).await?;
            let slot = self.slots.get_mut(at);
            slot.position = offsets[0];
            slot.reset = None;
        }
        Ok(())
    }

    /// One session per broker: what the broker's session reads already goes on in the new one, after what was received.
    fn start_sessions(&mut self, mut by_leader: BTreeMap<Arc<str>, Vec<Reading>>) {
        let renewed = std::mem::take(&mut self.renewed);
        let renewed = self.sessions.iter().filter(|(_, session)| renewed.contains(&session.id));
        for address in renewed.map(|(address, _)| address.clone()) {
            by_leader.entry(address).or_default();
        }
        for reading in by_leader.values().flatten() {
            self.slots.get_mut(reading.slot).received = reading.offset;
        }
        let mut brokers: BTreeSet<&Arc<str>> = self.sessions.keys().collect();
        brokers.extend(by_leader.keys());
        let brokers = u32::try_from(brokers.len()).unwrap_or(u32::MAX).max(1);
        let window_bytes = (self.config.prefetch_bytes / brokers).max(1);
        for (address, mut readings) in by_leader {
            if let Some(old) = self.sessions.remove(&address) {
                let metadata = self.cluster.metadata();
                let kept: Vec<usize> = self.slots.of(old.id).collect();
                for at in kept {
                    let slot = self.slots.get_mut(at);
                    let leader = metadata.leader(&slot.topic, slot.partition);
                    // One that has moved meanwhile is found at the next attempt.
                    if let (Some(leader), Some(topic)) = (leader, metadata.topic(&slot.topic))
                        && leader.address == address
                    {
                        let partition =
                            TopicPartition { topic_id: topic.id, partition: slot.partition };
                        let offset = slot.received.max(slot.position);
                        let epoch = leader.epoch;
                        readings.push(Reading { slot: at, partition, epoch, offset });
                    } else {
                        slot.detach();
                    }
                }
            }
            if readings.is_empty() {
                continue;
            }
            let id = self.next_session;
            self.next_session += 1;
            for reading in &readings {
                self.slots.get_mut(reading.slot).reader = Some(id);
            }
            let session = self.starter.start(id, &address, window_bytes, readings);
            self.sessions.insert(address, session);
        }
    }

    /// Ends the reading of a slot. A subscription cannot be made smaller: the next poll replaces it by one without the slot,
    /// which goes on where this one was. Until then what comes for it is dropped.
    pub(super) fn stop_reading(&mut self, at: usize) {
        let slot = self.slots.get_mut(at);
        let reader = slot.reader;
        slot.detach();
        self.renewed.extend(reader);
    }

    fn end_session(&mut self, id: SessionId) {
        self.sessions.retain(|_, session| session.id != id);
        self.slots.detach_all(id);
    }

    /// Takes in what a session reports. Reports of sessions that were ended mean nothing.
    pub(super) fn on_event(&mut self, id: SessionId, event: Event) -> Result<(), ConsumeError> {
        if !self.sessions.values().any(|session| session.id == id) {
            return Ok(());
        }
        match event {
            Event::Batches { slot: at, payload, high_watermark, held } => {
                let slot = self.slots.get_mut(at);
                if slot.reader == Some(id) {
                    slot.high_watermark = Some(high_watermark);
                    slot.received = slot.received.max(end_of(&payload));
                    let version = slot.version;
                    if std::mem::take(&mut slot.failing) {
                        self.backoff.reset();
                    }
                    self.ahead.push(at, version, payload, high_watermark, held);
                }
                Ok(())
            }
            Event::PartitionFailed { slot: at, failure } => {
                if self.slots.get(at).reader == Some(id) {
                    let slot = self.slots.get_mut(at);
                    slot.detach();
                    slot.failing = true;
                    return self.on_failure(at, failure);
                }
                Ok(())
            }
            Event::Ended(error) => {
                let read: Vec<usize> = self.slots.of(id).collect();
                self.end_session(id);
                for at in read {
                    self.slots.get_mut(at).failing = true;
                }
                if !error.is_retriable() {
                    return Err(error.into());
                }
                self.leaders_stale = true;
                self.pause_attempts(&error);
                Ok(())
            }
        }
    }

    fn on_failure(&mut self, at: usize, failure: Failure) -> Result<(), ConsumeError> {
        let slot = self.slots.get(at);
        let (topic, partition, offset) = (slot.topic.clone(), slot.partition, slot.position);
        if failure.code == ErrorCode::OffsetOutOfRange {
            let go_on_at = match self.config.out_of_range {
                OutOfRange::Error => {
                    let message = failure.message;
                    return Err(ConsumeError::OffsetOutOfRange {
                        topic,
                        partition,
                        offset,
                        message,
                    });
                }
                OutOfRange::Earliest => Position::Earliest,
                OutOfRange::Latest => Position::Latest,
            };
            tracing::warn!(%topic, partition, offset, ?go_on_at, "the position is out of range");
            self.slots.get_mut(at).reset = Some(go_on_at);
            return Ok(());
        }
        if !failure.code.is_retriable() {
            return Err(ConsumeError::Refused { topic, partition, failure });
        }
        self.leaders_stale = true;
        self.pause_attempts(&RequestError::Refused(failure));
        Ok(())
    }

    /// Whether somebody has to be found for something, or something is to be read no more.
    pub(super) fn wants_readers(&self) -> bool {
        !self.renewed.is_empty() || !self.slots.unread().is_empty()
    }

    fn pause_attempts(&mut self, error: &dyn std::error::Error) {
        let pause = self.backoff.after_failure();
        self.not_before = Some(Instant::now() + pause);
        tracing::debug!(%error, ?pause, "cannot read for now");
    }
}

/// The offset after the last whole batch; 0 when there is none.
fn end_of(mut payload: &[u8]) -> Offset {
    let mut end = 0;
    while let Ok(header) = BatchHeader::parse(payload)
        && let Some(rest) = payload.get(header.batch_bytes..)
    {
        end = header.next_offset();
        payload = rest;
    }
    end
}
