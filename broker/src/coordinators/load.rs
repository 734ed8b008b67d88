//! Reading a coordinator's log from its start to its end, before anything is served from it.

use std::{sync::Arc, time::Duration};

use tidemark_coordinator::{LoadError, Now, Record};
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, Offset, batch::batches};

use super::{Coordinator, DecisionOf, Start, led};
use crate::{broker::Broker, partitions::PartitionView, reads};

/// A log that was read.
pub(super) struct Read<C: Coordinator> {
    pub(super) machine: C,
    /// What the machine wants first.
    pub(super) first: DecisionOf<C>,
    pub(super) records: u64,
    pub(super) took: Duration,
}

/// Bytes read before others have their turn on the thread.
const STEP_BYTES: usize = 1 << 20;

/// Why there is no coordinator.
#[derive(Debug)]
pub(crate) enum Unloadable {
    /// Trying again may help, or leadership has ended.
    ForNow(Failure),
    /// Somebody has to look. Nothing is served.
    Broken(String),
}

impl From<LoadError> for Unloadable {
    fn from(error: LoadError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<Failure> for Unloadable {
    fn from(failure: Failure) -> Self {
        match failure.code {
            ErrorCode::CorruptData => Self::Broken(failure.message),
            _ => Self::ForNow(failure),
        }
    }
}

/// Reads everything, committed or not: the machine decides on all of it, and answers when it is committed. Nobody else
/// writes in this leader epoch, so that the end stays where it is.
pub(super) async fn load<C: Coordinator>(
    broker: &Broker,
    view: &Arc<PartitionView>,
    leader_epoch: LeaderEpoch,
) -> Result<Read<C>, Unloadable> {
    let began = broker.clock.now();
    let mut loader = C::Loader::default();
    let mut offset = view.reader.log_start_offset();
    let mut records = 0_u64;
    let log_end_offset = loop {
        let (pool, metrics) = (&broker.cold_reads, &broker.metrics);
        let read =
            reads::read_for_replica(pool, view, leader_epoch, offset, STEP_BYTES, metrics).await?;
        if read.bytes.is_empty() {
            break view.reader.log_end_offset();
        }
        for batch in batches(read.bytes) {
            records += replay::<C>(&mut loader, batch, offset)?;
        }
        offset = read.next_offset;
        tokio::task::yield_now().await;
    };
    view.leader_epoch(Some(leader_epoch))?;
    let excerpt = C::excerpt(&broker.image());
    let now = now(broker);
    let first_offset = led::first_offset(log_end_offset);
    let start = Start { broker, leader_epoch, first_offset, excerpt: &excerpt, now };
    let (machine, first) = C::finish(loader, start)?;
    Ok(Read { machine, first, records, took: broker.clock.since(began) })
}

/// Replays what a batch holds from `from` on; says how many records that was.
pub(crate) fn replay<C: Coordinator>(
    loader: &mut C::Loader,
    batch: Result<tidemark_protocol::batch::Batch, tidemark_protocol::batch::BatchError>,
    from: Offset,
) -> Result<u64, Unloadable> {
    let damaged = |error: &dyn std::fmt::Display| Unloadable::Broken(format!("{error}"));
    let batch = batch.map_err(|error| damaged(&error))?;
    // Reading does not look: a disk that has failed a flush may show what a page held before, and that may well decode.
    batch.verify_crc().map_err(|error| damaged(&error))?;
    if batch.header.is_control() {
        let offset = batch.header.base_offset;
        return Err(Unloadable::Broken(format!("there is a control batch at offset {offset}")));
    }
    let mut count = 0;
    for record in batch.iter_records().map_err(|error| damaged(&error))? {
        let record = record.map_err(|error| damaged(&error))?;
        if record.offset < from {
            continue;
        }
        let key = record.key.map(|key| key.to_vec()).unwrap_or_default();
        let value = record.value.map(|value| value.to_vec());
        let said = Record { key, value };
        if !said.is_opening() {
            C::replay(loader, record.offset, &said)?;
            count += 1;
        }
    }
    Ok(count)
}

/// The time, as machines are told it.
pub(super) fn now(broker: &Broker) -> Now {
    Now { mono_ms: broker.clock.monotonic_ms(), wall_ms: broker.clock.wall_ms() }
}

#[cfg(test)]
mod tests {
    use tidemark_coordinator::{GroupCoordinator, GroupLoader, TransactionCoordinator};
    use tidemark_protocol::batch::{Batch, BatchBuilder, Compression};

    use super::*;

    /// A batch whose checksums hold.
    fn batch(key: &[u8], value: Option<&[u8]>, is_control: bool) -> Batch {
        let builder = BatchBuilder::new(Compression::None);
        let mut builder = if is_control { builder.into_control() } else { builder };
        builder.push(0, Some(key), value, &[]);
        Batch::parse(&mut builder.build().unwrap()).unwrap()
    }

    fn why<C: Coordinator>(batch: Batch) -> String {
        match replay::<C>(&mut C::Loader::default(), Ok(batch), 0) {
            Err(Unloadable::Broken(why)) => why,
            other => panic!("it is replayed: {other:?}"),
        }
    }

    #[test]
    fn a_record_that_says_nothing_known_is_not_skipped() {
        for (key, value) in [(&b""[..], None), (b"\xc1", None), (b"key", Some(&b"value"[..]))] {
            let told = why::<GroupCoordinator>(batch(key, value, false));
            assert!(told.contains("record 0"), "{told}");
            let told = why::<TransactionCoordinator>(batch(key, value, false));
            assert!(told.contains("record 0"), "{told}");
        }
    }

    #[test]
    fn a_batch_that_is_damaged_is_not_believed() {
        let mut bytes = batch(b"\xc1", None, false).bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let damaged = Batch::parse(&mut bytes.into()).unwrap();
        let error = damaged.verify_crc().unwrap_err().to_string();
        assert_eq!(why::<GroupCoordinator>(damaged), error);
    }

    #[test]
    fn control_batches_do_not_belong_there() {
        let told = why::<GroupCoordinator>(batch(b"key", None, true));
        assert!(told.contains("control batch"), "{told}");
    }

    /// A batch that begins in front of where reading begins.
    #[test]
    fn what_was_read_already_is_not_replayed() {
        let count = replay::<GroupCoordinator>(
            &mut GroupLoader::default(),
            Ok(batch(b"\xc1", None, false)),
            1,
        );
        assert_eq!(count.unwrap(), 0);
    }
}
