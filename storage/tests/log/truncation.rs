//! Taking back the end of a log down into what had been sealed, or compacted: what a replica does whose disk has rotted.

use std::path::Path;

use tidemark_protocol::{
    Offset,
    batch::{Batch, BatchBuilder, Compression, batches},
};
use tidemark_storage::{
    Cleanup, Disk, Log, LogConfig, ReadOutcome, RealDisk, Residency, testing::SimDisk,
};

use crate::model::{Place, all, batch, flush, parse, small_config};

fn of_bytes(bytes: usize) -> Batch {
    batch(Compression::None, 1000, &[vec![7; bytes]])
}

/// Where the batches of a log begin.
fn bases<D: Disk>(log: &Log<D>) -> Vec<Offset> {
    let reader = log.reader();
    let (mut offset, end) = (log.log_start_offset(), log.log_end_offset());
    let mut bases = Vec::new();
    while offset < end {
        let outcome = reader.read(offset, end, 1 << 20, Residency::Any).expect("it reads");
        let ReadOutcome::Batches { bytes, next_offset } = outcome else {
            panic!("this read may block")
        };
        for batch in batches(bytes) {
            let batch = batch.unwrap();
            batch.verify_crc().unwrap();
            bases.push(batch.header.base_offset);
        }
        offset = next_offset;
    }
    bases
}

/// A segment is mapped as far as it goes when it is sealed. Found by the simulator: the first batch behind a truncation to its
/// beginning was larger than what had been in it, and the broker panicked.
fn a_sealed_segment_takes_more<D: Disk>(place: &Place<D>) {
    let mut log = place.create(&small_config());
    log.append(&[of_bytes(100)], 1, 1000).unwrap();
    log.roll_if_due(50_000);
    log.append(&[of_bytes(100)], 1, 50_000).unwrap();
    flush(&mut log).unwrap();
    let checkpoint = log.close().unwrap();
    let (mut log, _) = place.open(&small_config(), Some(checkpoint)).unwrap();
    log.truncate(0).unwrap();
    let large: Vec<_> = (0..40).map(|_| of_bytes(60_000)).collect();
    log.append(&large, 2, 50_000).unwrap();
    log.append(&large, 2, 50_000).unwrap();
    flush(&mut log).unwrap();
    assert_eq!(bases(&log), (0..80).collect::<Vec<_>>());
    let checkpoint = log.close().unwrap();
    let (log, recovery) = place.open(&small_config(), Some(checkpoint)).unwrap();
    assert_eq!(recovery.corrupt, []);
    assert_eq!(bases(&log), (0..80).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_was_sealed_takes_more_than_it_had_when_all_of_it_is_taken_back() {
    a_sealed_segment_takes_more(&Place::prepare(SimDisk::new(1), Path::new("/")));
    let dir = tempfile::tempdir().unwrap();
    a_sealed_segment_takes_more(&Place::prepare(RealDisk::new(), dir.path()));
}

/// And what was there before it was taken back is not believed to be there again.
#[test]
fn what_a_compacted_segment_was_is_forgotten_when_its_end_is_taken_back() {
    let config = LogConfig { cleanup: Cleanup { delete: false, compact: true }, ..small_config() };
    let keyed = |value: usize| {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1000, Some(b"key"), Some(&vec![7; value]), &[]);
        parse(builder.build().unwrap())
    };
    let place = Place::prepare(SimDisk::new(2), Path::new("/"));
    let mut log = place.create(&config);
    let other = of_bytes(50);
    for value in 0..8 {
        log.append(&[keyed(100 + value), other.clone()], 1, 1000).unwrap();
    }
    log.roll_if_due(50_000);
    log.append(std::slice::from_ref(&other), 1, 50_000).unwrap();
    flush(&mut log).unwrap();
    let job = log.compaction_job(all(&log), 50_000).expect("a pass is due");
    let done = job.run().unwrap();
    assert_eq!(log.install_compaction(done).unwrap().segments, 1);
    log.truncate(9).unwrap();
    assert_eq!(log.log_end_offset(), 9);
    for clean in [true, false] {
        let mut checkpoint = log.close().unwrap();
        checkpoint.clean = clean;
        let recovery;
        (log, recovery) = place.open(&config, Some(checkpoint)).unwrap();
        assert_eq!((recovery.corrupt.as_slice(), log.log_end_offset()), (&[][..], 9));
    }
    log.append(&[other], 2, 50_000).unwrap();
    flush(&mut log).unwrap();
    assert_eq!(bases(&log).last(), Some(&9));
}
