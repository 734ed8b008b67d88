//! From batch to batch through a segment.
//!
//! The one place that turns positions into headers. It checks bounds and nothing else: who walks
//! over bytes that may be damaged checks what it needs to.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_protocol::batch::{Batch, BatchError, BatchHeader};

use crate::{
    disk::{Disk, DiskError, DiskFile},
    index::IndexEntry,
    segment::{self, OpenFile},
};

/// Bytes looked at (and, if need be, brought into memory) at a time.
const WINDOW_BYTES: u64 = 256 << 10;

/// Why a walk cannot go on.
#[derive(Debug)]
pub(crate) enum WalkError {
    /// No batch starts here: zeros, garbage, or one that would reach beyond the end.
    NoBatch,
    Disk(DiskError),
}

impl From<DiskError> for WalkError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// A walk over the batches in `position..end` of a file.
#[derive(Debug)]
pub(crate) struct Walk<D: Disk> {
    file: Arc<OpenFile<D>>,
    position: u64,
    end: u64,
    window: Bytes,
    window_start: u64,
    /// Bring bytes into memory before touching them.
    populate: bool,
}

impl<D: Disk> Walk<D> {
    pub(crate) fn new(file: Arc<OpenFile<D>>, position: u64, end: u64, populate: bool) -> Self {
        // A file that somebody has cut is damage, and no reason to reach beyond a mapping.
        let end = end.min(file.file.len());
        Self { file, position, end, window: Bytes::new(), window_start: position, populate }
    }

    /// Where the next batch starts.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The header of the batch at the current position, without moving; `None` at the end.
    pub(crate) fn peek(&mut self) -> Result<Option<BatchHeader>, WalkError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let header = BatchHeader::parse(self.bytes(BatchHeader::BYTES)?)
            .map_err(|_: BatchError| WalkError::NoBatch)?;
        if self.position + header.batch_bytes as u64 > self.end {
            return Err(WalkError::NoBatch);
        }
        Ok(Some(header))
    }

    /// Moves behind the batch whose header was peeked at.
    pub(crate) fn skip(&mut self, header: &BatchHeader) {
        self.position += header.batch_bytes as u64;
    }

    /// Moves behind the next batch, and the boundary `at` with it; `false` at the end.
    pub(crate) fn step(&mut self, at: &mut IndexEntry) -> Result<bool, WalkError> {
        let Some(header) = self.peek()? else { return Ok(false) };
        *at = self.boundary_after(at, &header)?;
        self.skip(&header);
        Ok(true)
    }

    /// The boundary behind the batch whose header was peeked at.
    pub(crate) fn boundary_after(
        &mut self,
        at: &IndexEntry,
        header: &BatchHeader,
    ) -> Result<IndexEntry, WalkError> {
        Ok(IndexEntry {
            offset: header.next_offset(),
            position: at.position + header.batch_bytes as u64,
            chain: segment::chain(at.chain, self.header_bytes()?),
            max_timestamp: at.max_timestamp.max(header.max_timestamp),
        })
    }

    /// The first bytes of the batch at the current position: its header, as stored.
    fn header_bytes(&mut self) -> Result<&[u8], WalkError> {
        self.bytes(BatchHeader::BYTES)
    }

    /// The whole batch whose header was peeked at.
    pub(crate) fn batch(&mut self, header: &BatchHeader) -> Result<Batch, WalkError> {
        self.bytes(header.batch_bytes)?;
        let from = self.offset_in_window();
        let mut bytes = self.window.slice(from..from + header.batch_bytes);
        Batch::parse(&mut bytes).map_err(|_: BatchError| WalkError::NoBatch)
    }

    fn offset_in_window(&self) -> usize {
        usize::try_from(self.position - self.window_start).expect("a window fits memory")
    }

    /// `wanted` bytes at the current position.
    fn bytes(&mut self, wanted: usize) -> Result<&[u8], WalkError> {
        let until = self.position + wanted as u64;
        if until > self.end {
            return Err(WalkError::NoBatch);
        }
        let window_end = self.window_start + self.window.len() as u64;
        if self.position < self.window_start || until > window_end {
            let end = self.end.min(self.position + WINDOW_BYTES.max(wanted as u64));
            if self.populate {
                self.file.file.populate_read(self.position..end)?;
            }
            self.window = self.file.file.slice(self.position..end);
            self.window_start = self.position;
        }
        let from = self.offset_in_window();
        Ok(&self.window[from..from + wanted])
    }
}
