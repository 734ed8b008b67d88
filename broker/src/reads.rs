//! Reads, of what is committed and for followers. They do not visit the owner: hot data is sliced on the
//! caller's task, cold data goes through a bounded pool of blocking threads first, so that a reader of old
//! data stalls nobody but itself.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, Offset,
    batch::BatchHeader,
    messages::{AbortedRecords, Isolation, StablePart},
};
use tidemark_storage::{ReadError, ReadOutcome, Residency};
use tokio::sync::Semaphore;

use crate::{
    metrics::{Flow, Metrics, Protocol, disk::Tier},
    partitions::{PartitionView, unknown_partition},
};

/// What a read found in one partition.
#[derive(Debug)]
pub(crate) struct Read {
    /// Whole batches; empty when there is nothing to read yet.
    pub(crate) bytes: Bytes,
    pub(crate) next_offset: Offset,
    /// As of before the read.
    pub(crate) high_watermark: Offset,
    pub(crate) log_start_offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    /// For readers of what is decided only.
    pub(crate) stable: Option<StablePart>,
}

/// What somebody wants to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The leader epoch believed in; `None` skips the check.
    pub(crate) leader_epoch: Option<LeaderEpoch>,
    pub(crate) offset: Offset,
    pub(crate) max_bytes: usize,
    pub(crate) isolation: Isolation,
}

/// The pool for reads that may wait for the disk.
#[derive(Debug)]
pub(crate) struct ColdReads {
    /// `None`: whoever reads waits for the disk himself.
    threads: Option<Arc<Semaphore>>,
}

impl ColdReads {
    /// At most `threads` reads at the same time; others wait their turn, in order.
    pub(crate) fn new(threads: u32) -> Self {
        Self { threads: Some(Arc::new(Semaphore::new(threads as usize))) }
    }

    /// Reads on the caller's thread: for whoever steers the disk, which answers at once.
    pub(crate) fn inline() -> Self {
        Self { threads: None }
    }

    /// Runs `read` where it may block. Once begun it is run to its end, and counted until then, whether or not
    /// somebody still waits for it.
    pub(crate) async fn run<T, F>(&self, read: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let Some(threads) = &self.threads else { return Ok(read()) };
        let permit = Arc::clone(threads).acquire_owned().await;
        let counted = move || {
            let _permit = permit;
            read()
        };
        tokio::task::spawn_blocking(counted)
            .await
            .map_err(|_aborted| Failure::new(ErrorCode::NotReady, "the broker is stopping"))
    }
}

/// Reads whole batches from the one that holds `offset`, below the high watermark: about `max_bytes`, at
/// least one batch.
pub(crate) async fn read(
    pool: &ColdReads,
    view: &Arc<PartitionView>,
    wanted: Wanted,
    metrics: &Metrics,
) -> Result<Read, Failure> {
    let Wanted { leader_epoch, offset, max_bytes, isolation } = wanted;
    let leader_epoch = view.leader_epoch(leader_epoch)?;
    // Before the watermark: it is never above it then.
    let last_stable_offset = view.last_stable_offset();
    let high_watermark = view.high_watermark();
    let log_start_offset = view.reader.log_start_offset();
    let (end, stable) = match isolation {
        Isolation::ReadUncommitted => (high_watermark, None),
        Isolation::ReadCommitted => {
            (last_stable_offset, Some(StablePart { last_stable_offset, aborted: Vec::new() }))
        }
    };
    let ends = (high_watermark, log_start_offset);
    if offset > end {
        if offset > view.reader.log_end_offset() {
            return Err(out_of_range(view, offset, high_watermark));
        }
        // There is a record, or will be; it is only not committed. A reader that was there before this leader
        // knew the watermark is to wait, not to be told that it is out of range.
        return Ok(Read::new((Bytes::new(), offset), ends, leader_epoch, stable));
    }
    let (bytes, next_offset) = read_batches(pool, view, offset..end, max_bytes, metrics).await?;
    let stable = stable
        .map(|stable| StablePart { aborted: aborted(view, &bytes, offset, next_offset), ..stable });
    Ok(Read::new((bytes, next_offset), ends, leader_epoch, stable))
}

impl Read {
    fn new(
        (bytes, next_offset): (Bytes, Offset),
        (high_watermark, log_start_offset): (Offset, Offset),
        leader_epoch: LeaderEpoch,
        stable: Option<StablePart>,
    ) -> Self {
        Self { bytes, next_offset, high_watermark, log_start_offset, leader_epoch, stable }
    }
}

/// Transactions that were aborted and have records in what was read, from the beginning of its first batch on.
fn aborted(
    view: &PartitionView,
    bytes: &[u8],
    offset: Offset,
    next_offset: Offset,
) -> Vec<AbortedRecords> {
    let Ok(first) = BatchHeader::parse(bytes) else { return Vec::new() };
    let aborted = view.aborted(first.base_offset.min(offset)..next_offset);
    let shown = aborted.into_iter().map(|one| AbortedRecords {
        producer_id: one.producer_id,
        first_offset: one.first_offset,
        last_offset: one.last_offset,
    });
    shown.collect()
}

/// Reads whole batches for a follower, from the one that holds `offset` up to the log end, committed or not: about
/// `max_bytes`, at least one batch if there is any.
///
/// What is not committed may be cut off and overwritten as soon as this broker leads no more. It is copied, and
/// given away only if the leadership was still the same after that.
pub(crate) async fn read_for_replica(
    pool: &ColdReads,
    view: &Arc<PartitionView>,
    leader_epoch: LeaderEpoch,
    offset: Offset,
    max_bytes: usize,
    metrics: &Metrics,
) -> Result<Read, Failure> {
    view.leader_epoch(Some(leader_epoch))?;
    let high_watermark = view.high_watermark();
    let log_start_offset = view.reader.log_start_offset();
    let log_end = view.reader.log_end_offset();
    let (mut bytes, next_offset) =
        read_batches(pool, view, offset..log_end, max_bytes, metrics).await?;
    if next_offset > high_watermark {
        bytes = Bytes::copy_from_slice(&bytes);
    }
    view.leader_epoch(Some(leader_epoch))?;
    let ends = (high_watermark, log_start_offset);
    Ok(Read::new((bytes, next_offset), ends, leader_epoch, None))
}

/// Reads whole batches in a range of offsets, on the caller's task if they are in memory.
async fn read_batches(
    pool: &ColdReads,
    view: &Arc<PartitionView>,
    range: Range<Offset>,
    max_bytes: usize,
    metrics: &Metrics,
) -> Result<(Bytes, Offset), Failure> {
    let Range { start: offset, end } = range;
    let mut tier = Tier::Hot;
    let mut outcome = view.reader.read(offset, end, max_bytes, Residency::Hot);
    if let Ok(ReadOutcome::Cold) = outcome {
        tier = Tier::Cold;
        let reader = view.reader.clone();
        let read = move || reader.read(offset, end, max_bytes, Residency::Any);
        outcome = pool.run(read).await?;
    }
    match outcome {
        Ok(ReadOutcome::Batches { bytes, next_offset }) => {
            metrics.disk().read(tier, bytes.len() as u64);
            Ok((bytes, next_offset))
        }
        Ok(ReadOutcome::Cold) => {
            Err(Failure::new(ErrorCode::Internal, "storage answered cold to a read that may wait"))
        }
        Err(error) => Err(read_failure(view, offset, error, metrics)),
    }
}

/// Puts a failed read into words.
pub(crate) fn read_failure(
    view: &PartitionView,
    offset: Offset,
    error: ReadError,
    metrics: &Metrics,
) -> Failure {
    match error {
        _ if view.is_deleted() => unknown_partition(view.id),
        ReadError::OutOfRange { offset, .. } => out_of_range(view, offset, view.high_watermark()),
        ReadError::Corrupt { range } => {
            metrics.disk().checksum_failed();
            let message = format!(
                "offsets {} to {} of {} are damaged on disk and will not be served; reading can go on at {}",
                range.start,
                range.end,
                view.name(),
                range.end
            );
            Failure::new(ErrorCode::CorruptData, message)
        }
        ReadError::Disk(error) => {
            let name = view.name();
            tracing::error!(partition = %name, offset, %error, "read failed");
            Failure::new(ErrorCode::StorageFailed, format!("reading {name} at {offset}: {error}"))
        }
    }
}

fn out_of_range(view: &PartitionView, offset: Offset, high_watermark: Offset) -> Failure {
    let message = format!(
        "{} has offsets {} to {high_watermark}, not {offset}",
        view.name(),
        view.reader.log_start_offset()
    );
    Failure::new(ErrorCode::OffsetOutOfRange, message)
}

/// Counts batches that are handed to a reader.
pub(crate) fn count(view: &PartitionView, mut bytes: &[u8]) {
    let mut flow = Flow { batches: 0, records: 0, bytes: bytes.len() as u64 };
    while let Ok(header) = BatchHeader::parse(bytes)
        && let Some(rest) = bytes.get(header.batch_bytes..)
    {
        flow.batches += 1;
        flow.records += u64::from(header.record_count);
        bytes = rest;
    }
    view.metrics.consumed(Protocol::Native, flow);
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_any_more_still_counts() {
        let pool = ColdReads::new(1);
        let (release, released) = mpsc::channel::<()>();
        let given_up = pool.run(move || released.recv());
        assert!(tokio::time::timeout(Duration::from_millis(10), given_up).await.is_err());
        let next = pool.run(|| ());
        tokio::pin!(next);
        let early = tokio::time::timeout(Duration::from_millis(50), next.as_mut()).await;
        assert!(early.is_err(), "two reads run at the same time");
        drop(release);
        next.await.unwrap();
    }
}
