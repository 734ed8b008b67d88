//! Fetch: read what is committed, or wait for it.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{FetchRequest, FetchResponse, FetchedPartition},
};
use tokio::time::Instant;

use super::{find_partition, timeout};
use crate::{
    broker::Broker,
    partitions::{PartitionView, Waiter},
    reads::{self, Wanted},
};

/// Most payload bytes in one answer, whatever was asked for; its first batch may exceed it.
const FETCH_BYTES_MAX: usize = 24 << 20;

/// An answer and its payload: the batches of each partition, in order.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) response: FetchResponse,
    pub(crate) payload: Vec<Bytes>,
}

/// One look at all partitions.
struct Look {
    fetched: Fetched,
    bytes: usize,
    any_failed: bool,
}

/// Answers when there is enough to read, when a partition fails, after the request's longest wait, or when
/// the broker stops.
pub(crate) async fn fetch(broker: &Arc<Broker>, request: &FetchRequest) -> Fetched {
    let deadline = Instant::now() + timeout(request.max_wait_ms);
    let mut views = Vec::with_capacity(request.partitions.len());
    for wanted in &request.partitions {
        views.push(find_partition(broker, wanted.partition));
    }
    // More than an answer may hold would be waited for in vain.
    let min_bytes = (request.min_bytes as usize).min(max_bytes(request));
    let first = look(broker, request, &views).await;
    if first.bytes >= min_bytes || first.any_failed || request.max_wait_ms == 0 {
        return first.hand_over(&views);
    }
    let waiter = Arc::new(Waiter::default());
    let watched: Vec<_> = views.iter().flatten().zip(0..).collect();
    let _watching: Vec<_> =
        watched.into_iter().map(|(view, slot)| view.watch(&waiter, slot)).collect();
    loop {
        // Again before the first wait: something may have changed before it was watched.
        let found = look(broker, request, &views).await;
        if found.bytes >= min_bytes || found.any_failed {
            return found.hand_over(&views);
        }
        tokio::select! {
            _slots = waiter.changed() => {}
            () = tokio::time::sleep_until(deadline) => return found.hand_over(&views),
            () = broker.tasks.shutdown().started() => return found.hand_over(&views),
        }
    }
}

fn max_bytes(request: &FetchRequest) -> usize {
    (request.max_bytes as usize).min(FETCH_BYTES_MAX)
}

async fn look(
    broker: &Broker,
    request: &FetchRequest,
    views: &[Result<Arc<PartitionView>, Failure>],
) -> Look {
    let max_bytes = max_bytes(request);
    let mut look = Look {
        fetched: Fetched {
            response: FetchResponse { partitions: Vec::with_capacity(views.len()) },
            payload: Vec::with_capacity(views.len()),
        },
        bytes: 0,
        any_failed: false,
    };
    for (wanted, view) in request.partitions.iter().zip(views) {
        let room = max_bytes.saturating_sub(look.bytes).min(wanted.max_bytes as usize);
        let read = match view {
            Ok(view) => {
                let wanted = Wanted {
                    leader_epoch: wanted.leader_epoch,
                    offset: wanted.offset,
                    max_bytes: room,
                    isolation: request.isolation,
                };
                read_one(broker, view, wanted, look.bytes == 0).await
            }
            Err(failure) => Err(failure.clone()),
        };
        match read {
            Ok((partition, bytes)) => {
                look.bytes += bytes.len();
                look.fetched.response.partitions.push(Ok(partition));
                look.fetched.payload.push(bytes);
            }
            Err(failure) => {
                look.any_failed = true;
                look.fetched.response.partitions.push(Err(failure));
                look.fetched.payload.push(Bytes::new());
            }
        }
    }
    look
}

async fn read_one(
    broker: &Broker,
    view: &Arc<PartitionView>,
    wanted: Wanted,
    is_first: bool,
) -> Result<(FetchedPartition, Bytes), Failure> {
    let mut read = reads::read(&broker.cold_reads, view, wanted, &broker.metrics).await?;
    // Storage gives at least one batch, which is one too many when others have filled the answer.
    if read.bytes.len() > wanted.max_bytes && !is_first {
        read.bytes = Bytes::new();
    }
    let batch_bytes = u32::try_from(read.bytes.len()).map_err(|_too_long| {
        Failure::new(ErrorCode::Internal, "a read is longer than it was asked to be")
    })?;
    let partition = FetchedPartition {
        high_watermark: read.high_watermark,
        log_start_offset: read.log_start_offset,
        leader_epoch: read.leader_epoch,
        batch_bytes,
        stable: read.stable,
    };
    Ok((partition, read.bytes))
}

impl Look {
    fn hand_over(self, views: &[Result<Arc<PartitionView>, Failure>]) -> Fetched {
        for (view, bytes) in views.iter().zip(&self.fetched.payload) {
            if let Ok(view) = view {
                reads::count(view, bytes);
            }
        }
        self.fetched
    }
}
