//! What was read ahead: payloads in order of arrival, opened batch by batch when the caller wants records.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tidemark_protocol::{
    Offset,
    batch::{Batch, BatchError, Records},
};

use super::{
    slots::{Slot, Slots},
    window::Held,
};
use crate::{
    error::ConsumeError,
    record::{ConsumedBatch, ConsumedRecord},
};

/// Batches waiting for the caller. Bounded by the windows of the sessions that fill it.
#[derive(Debug)]
pub(super) struct ReadAhead {
    chunks: VecDeque<Chunk>,
    open: Option<Open>,
    verify_crc: bool,
}

/// One partition's share of one response.
#[derive(Debug)]
struct Chunk {
    slot: usize,
    version: u64,
    payload: Bytes,
    high_watermark: Offset,
    _held: Held,
}

/// A batch some of whose records may have been handed out.
#[derive(Debug)]
struct Open {
    slot: usize,
    version: u64,
    batch: Batch,
    records: Records,
    high_watermark: Offset,
}

impl ReadAhead {
    pub(super) fn new(verify_crc: bool) -> Self {
        Self { chunks: VecDeque::new(), open: None, verify_crc }
    }

    pub(super) fn push(
        &mut self,
        slot: usize,
        version: u64,
        payload: Bytes,
        high_watermark: Offset,
        held: Held,
    ) {
        if !payload.is_empty() {
            self.chunks.push_back(Chunk { slot, version, payload, high_watermark, _held: held });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.open.is_none()
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.open = None;
    }

    /// The next record in order of arrival; moves its partition's position past it. After damage the
    /// partition is detached at its position.
    pub(super) fn record(
        &mut self,
        slots: &mut Slots,
    ) -> Option<Result<ConsumedRecord, ConsumeError>> {
        loop {
            if self.open.is_none() {
                match self.open_next(slots)? {
                    Ok(()) => {}
                    Err(error) => return Some(Err(error)),
                }
            }
            let open = self.open.as_mut()?;
            let slot = slots.get_mut(open.slot);
            if slot.version != open.version {
                self.open = None;
                continue;
            }
            match open.records.next() {
                Some(Ok(record)) if record.offset < slot.position => {}
                Some(Ok(record)) => {
                    slot.position = record.offset + 1;
                    let epoch = open.batch.header.leader_epoch;
                    let (topic, partition) = (slot.topic.clone(), slot.partition);
                    return Some(Ok(ConsumedRecord::new(topic, partition, epoch, record)));
                }
                Some(Err(error)) => {
                    self.open = None;
                    return Some(Err(damaged(slot, &error)));
                }
                None => {
                    // The last records of a batch may have been compacted away.
                    slot.position = slot.position.max(open.batch.header.next_offset());
                    self.open = None;
                }
            }
        }
    }

    /// The next whole batch, of which records before its `position` have been handed out; moves its
    /// partition's position past it.
    pub(super) fn batch(
        &mut self,
        slots: &mut Slots,
    ) -> Option<Result<ConsumedBatch, ConsumeError>> {
        loop {
            if self.open.is_none() {
                match self.next_batch(slots)? {
                    Ok((at, high_watermark, batch)) => {
                        return Some(Ok(whole(slots.get_mut(at), batch, high_watermark)));
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            let open = self.open.take()?;
            let slot = slots.get_mut(open.slot);
            if slot.version == open.version && slot.position < open.batch.header.next_offset() {
                return Some(Ok(whole(slot, open.batch, open.high_watermark)));
            }
        }
    }

    fn open_next(&mut self, slots: &mut Slots) -> Option<Result<(), ConsumeError>> {
        let (at, high_watermark, batch) = match self.next_batch(slots)? {
            Ok(next) => next,
            Err(error) => return Some(Err(error)),
        };
        let slot = slots.get_mut(at);
        let opened = match batch.iter_records() {
            Ok(records) => {
                let version = slot.version;
                self.open = Some(Open { slot: at, version, batch, records, high_watermark });
                Ok(())
            }
            Err(error) => Err(damaged(slot, &error)),
        };
        Some(opened)
    }

    /// Splits off the next batch that is still wanted and holds something at or after the position.
    fn next_batch(
        &mut self,
        slots: &mut Slots,
    ) -> Option<Result<(usize, Offset, Batch), ConsumeError>> {
        loop {
            let chunk = self.chunks.front_mut()?;
            let slot = slots.get_mut(chunk.slot);
            if slot.version != chunk.version || chunk.payload.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            let parsed = Batch::parse(&mut chunk.payload).and_then(|batch| {
                if self.verify_crc {
                    batch.verify_crc()?;
                }
                Ok(batch)
            });
            let batch = match parsed {
                Ok(batch) => batch,
                Err(error) => return Some(Err(damaged(slot, &error))),
            };
            let next_offset = batch.header.next_offset();
            if next_offset <= slot.position {
                continue;
            }
            if batch.header.is_control() {
                slot.position = next_offset;
                continue;
            }
            return Some(Ok((chunk.slot, chunk.high_watermark, batch)));
        }
    }
}

fn whole(slot: &mut Slot, batch: Batch, high_watermark: Offset) -> ConsumedBatch {
    let position = slot.position;
    slot.position = batch.header.next_offset();
    let (topic, partition) = (slot.topic.clone(), slot.partition);
    ConsumedBatch { topic, partition, batch, position, high_watermark }
}

/// What was read ahead after damage cannot be trusted to be complete: it is read again if the caller goes on.
fn damaged(slot: &mut Slot, error: &BatchError) -> ConsumeError {
    slot.detach();
    ConsumeError::Corrupt {
        topic: Arc::clone(&slot.topic),
        partition: slot.partition,
        offset: slot.position,
        detail: error.to_string().into(),
    }
}
