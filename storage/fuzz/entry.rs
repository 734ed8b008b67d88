//! What the fuzz target does with its bytes; the ordinary tests include this file to replay the corpus.

use std::path::Path;

use bytes::Bytes;
use tidemark_protocol::{
    TopicId, TopicPartition,
    batch::{Batch, BatchBuilder, Compression, batches},
};
use tidemark_storage::{
    Disk, DiskFile, Log, LogConfig, LogIdentity, ReadError, ReadOutcome, Residency, SegmentFiles,
    testing::SimDisk,
};

/// Whatever lies in a log's directory, opening it does not panic, and what opens is a log: verified
/// batches without gaps, appendable, and the same when it is opened again.
///
/// The first byte chooses a bit of the setting; the rest is the first segment file.
pub fn recovery(data: &[u8]) {
    let Some((setting, segment)) = data.split_first() else { return };
    let disk = SimDisk::new(1);
    for dir in ["/topics", "/topics/t", "/topics/t/0"] {
        disk.create_dir(Path::new(dir)).expect("an empty disk");
    }
    // The data directory is there for certain; the log's own is the log's business.
    disk.sync_dir(Path::new("/")).expect("the disk works");
    write(&disk, "/topics/t/0/00000000000000000000.log", segment);
    if setting & 1 != 0 {
        // Another segment where the first one may or may not end.
        write(&disk, "/topics/t/0/00000000000000000003.log", segment);
    }
    if setting & 2 != 0 {
        write(&disk, "/topics/t/0/00000000000000000000.index", segment);
    }
    let mut log = open(&disk);
    let end = check(&log);
    let batch = batch();
    let appended = log.append(std::slice::from_ref(&batch), u32::MAX, 1).expect("it takes appends");
    assert_eq!(appended.base_offset, end);
    while let Some(job) = log.flush_job() {
        let done = job.run().expect("the disk works");
        log.flushed(done);
    }
    drop(log);
    disk.power_loss();
    assert_eq!(check(&open(&disk)), end + 1, "what was flushed is there");
}

fn open(disk: &SimDisk) -> Log<SimDisk> {
    let identity =
        LogIdentity { partition: TopicPartition { topic_id: TopicId([1; 16]), partition: 0 } };
    let files = SegmentFiles::new(disk.clone(), 8);
    let dir = Path::new("/topics/t/0");
    let opened = Log::open(&files, dir, identity, LogConfig::default(), None);
    opened.expect("bad segments are no reason not to open").0
}

/// Reads everything. Returns the log end.
fn check(log: &Log<SimDisk>) -> u64 {
    let reader = log.reader();
    let (mut offset, end) = (log.log_start_offset(), log.log_end_offset());
    while offset < end {
        match reader.read(offset, end, 1 << 20, Residency::Any) {
            Ok(ReadOutcome::Batches { bytes, next_offset }) => {
                for batch in batches(bytes) {
                    let batch = batch.expect("whole batches");
                    batch.verify_crc().expect("verified batches");
                    assert_eq!(batch.header.base_offset, offset, "no gaps");
                    offset = batch.header.next_offset();
                }
                assert_eq!(next_offset, offset, "progress");
            }
            Err(ReadError::Corrupt { range }) => {
                assert!(range.contains(&offset), "damage where it was met");
                offset = range.end;
            }
            other => panic!("a read that may block: {other:?}"),
        }
    }
    assert_eq!(offset, end, "the damage ends where the log ends");
    end
}

fn batch() -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(1, None, Some(b"value"), &[]);
    let mut bytes: Bytes = builder.build().expect("a small batch");
    Batch::parse(&mut bytes).expect("it was just built")
}

fn write(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let file = disk.create(Path::new(path), bytes.len() as u64, 0).expect("an empty disk");
    file.write_at(0, bytes).expect("it has the space");
}
