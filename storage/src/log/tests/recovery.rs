//! Opening again: after a clean stop, a crash, damage.

use super::*;

/// A log of 200 batches of five records in several segments, all flushed, dropped as by a crash.
fn crashed(bench: &Bench) -> Checkpoint {
    let mut log = bench.create();
    fill(&mut log, 200);
    flush(&mut log);
    log.checkpoint()
}

fn last_log(bench: &Bench) -> PathBuf {
    bench.path(bench.names("log").last().unwrap())
}

#[test]
fn a_clean_stop_needs_no_scan() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    let checkpoint = Checkpoint { clean: true, ..log.close().unwrap() };
    let (mut log, recovery) = bench.open(Some(checkpoint));
    assert_eq!(recovery, Recovery { from_checkpoint: true, ..Recovery::default() });
    assert_eq!(bench.files.open_count(), 0, "nothing is opened before it is needed");
    assert_eq!((log.log_end_offset(), log.flushed_offset()), (1000, 1000));
    assert_eq!(hot(&log, 990), ReadOutcome::Cold);
    fill(&mut log, 1);
    assert!(matches!(hot(&log, 1000), ReadOutcome::Batches { .. }));
    assert_eq!(read_all(&log, 0), every_fifth(0..1005));
    assert_eq!(log.epochs().latest(), Some(1));
}

#[test]
fn after_a_crash_only_what_follows_the_checkpoint_is_read() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 150);
    flush(&mut log);
    let checkpoint = log.checkpoint();
    fill(&mut log, 100);
    let scanned = log.size_bytes();
    drop(log);
    let (mut log, recovery) = bench.open(Some(checkpoint));
    assert!(recovery.from_checkpoint);
    assert!(recovery.scanned_bytes < scanned / 2, "{} of {scanned}", recovery.scanned_bytes);
    assert_eq!((log.log_end_offset(), log.flushed_offset()), (1250, 750));
    assert_eq!(read_all(&log, 0), every_fifth(0..1250));
    flush(&mut log);
    assert_eq!(log.flushed_offset(), 1250);
    fill(&mut log, 1);
    assert_eq!(read_all(&log, 1240), every_fifth(1240..1255));
}

#[test]
fn without_a_checkpoint_everything_is_read() {
    let bench = Bench::new();
    crashed(&bench);
    let (mut log, recovery) = bench.open(None);
    assert!(!recovery.from_checkpoint);
    assert_eq!(recovery.scanned_bytes, log.size_bytes());
    assert_eq!((log.log_end_offset(), recovery.corrupt), (1000, vec![]));
    fill(&mut log, 1);
    flush(&mut log);
    assert_eq!(read_all(&log, 0), every_fifth(0..1005));
}

#[test]
fn a_torn_tail_is_cleared_and_does_not_come_back() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    let tip = checkpoint.tip.unwrap();
    let mut bytes = std::fs::read(last_log(&bench)).unwrap();
    let torn = batch(5, 1000, 0);
    let at = usize::try_from(tip.at.position).unwrap();
    let len = torn.bytes().len();
    bytes.resize(bytes.len().max(at + len), 0);
    // Everything but the header's end, as if a page was lost.
    bytes[at..at + len].copy_from_slice(torn.bytes());
    bytes[at..at + 8].copy_from_slice(&1000_u64.to_be_bytes());
    bytes[at + len - 1] ^= 1;
    std::fs::write(last_log(&bench), bytes).unwrap();
    let (log, recovery) = bench.open(Some(checkpoint.clone()));
    assert_eq!(recovery.torn_bytes, len as u64);
    assert_eq!((log.log_end_offset(), recovery.torn_batches), (1000, 0));
    drop(log);
    let (_, recovery) = bench.open(Some(checkpoint));
    assert_eq!(recovery.torn_bytes, 0);
}

#[test]
fn whole_batches_behind_a_torn_one_are_kept_aside() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 3);
    let tear_at = log.size_bytes();
    fill(&mut log, 3);
    drop(log);
    flip(&last_log(&bench), tear_at + 100);
    let (log, recovery) = bench.open(None);
    assert_eq!((log.log_end_offset(), recovery.torn_batches), (15, 2));
    assert_eq!(recovery.corrupt, []);
    assert!(bench.path("torn").exists());
    assert_eq!(read_all(&log, 0), [0, 5, 10]);
}

#[test]
fn segments_behind_a_torn_one_are_set_aside() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    let segments = log.segment_count();
    drop(log);
    flip(&bench.path("00000000000000000000.log"), 30_000);
    let (mut log, recovery) = bench.open(None);
    assert_eq!(recovery.segments_removed, segments - 1);
    assert_eq!(log.segment_count(), 1);
    let end = log.log_end_offset();
    assert!((100..200).contains(&end), "{end}");
    fill(&mut log, 100);
    flush(&mut log);
    assert_eq!(read_all(&log, 0), every_fifth(0..end + 500));
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_quarantined_never_served_never_removed() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    let path = bench.path("00000000000000000000.log");
    flip(&path, 30_000);
    let damaged = std::fs::read(&path).unwrap();
    for known in [Some(checkpoint), None] {
        let scans = known.is_none();
        let (log, recovery) = bench.open(known);
        assert_eq!(log.log_end_offset(), 1000);
        assert_eq!(recovery.corrupt.len(), usize::from(scans));
        let reader = log.reader();
        let mut offset = 0;
        let mut served = Vec::new();
        let mut refused = Vec::new();
        while offset < 1000 {
            match reader.read(offset, Offset::MAX, 4096, Residency::Any) {
                Ok(ReadOutcome::Batches { bytes, next_offset }) => {
                    for batch in batches(bytes) {
                        let batch = batch.unwrap();
                        batch.verify_crc().unwrap();
                        served.push(batch.header.base_offset);
                    }
                    offset = next_offset;
                }
                Err(ReadError::Corrupt { range }) => {
                    assert!(range.contains(&offset));
                    offset = range.end;
                    refused.push(range);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].end - refused[0].start, 5, "one batch only: {refused:?}");
        assert_eq!(served.len(), 199);
        assert_eq!(*reader.quarantined(), refused);
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }
    assert!(bench.path("quarantine").exists());
}

#[test]
fn a_header_changed_outside_its_crc_is_noticed() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    // The leader epoch of the second batch.
    let bytes = std::fs::read(bench.path("00000000000000000000.log")).unwrap();
    let first = Batch::parse(&mut Bytes::from(bytes)).unwrap();
    flip(&bench.path("00000000000000000000.log"), first.header.batch_bytes as u64 + 13);
    let (log, _) = bench.open(Some(checkpoint));
    let error = log.reader().read(0, Offset::MAX, 1 << 20, Residency::Any);
    let found = match error {
        Ok(ReadOutcome::Batches { next_offset, .. }) => {
            log.reader().read(next_offset, Offset::MAX, 1 << 20, Residency::Any)
        }
        other => other,
    };
    assert!(matches!(found, Err(ReadError::Corrupt { .. })), "{found:?}");
    drop(log);
    let (_, recovery) = bench.open(None);
    assert_eq!(recovery.corrupt.len(), 1, "{recovery:?}");
}

#[test]
fn damage_below_the_checkpoint_is_corruption_and_nothing_is_cut() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    let tip = checkpoint.tip.unwrap();
    flip(&last_log(&bench), tip.last_batch + 70);
    let (mut log, recovery) = bench.open(Some(checkpoint));
    assert_eq!(recovery.corrupt, vec![995..1000]);
    assert_eq!((log.log_end_offset(), recovery.torn_bytes), (1000, 0));
    fill(&mut log, 2);
    flush(&mut log);
    assert_eq!(read_all(&log, 1000), [1000, 1005]);
    let error = log.reader().read(995, 1000, 100, Residency::Any).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { range } if range == (995..1000)));
}

#[test]
fn missing_files_below_the_checkpoint_are_corruption() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    std::fs::remove_file(last_log(&bench)).unwrap();
    let base = checkpoint.tip.unwrap().segment_base;
    let (mut log, recovery) = bench.open(Some(checkpoint));
    assert_eq!(recovery.corrupt, vec![base..1000]);
    assert_eq!(log.log_end_offset(), 1000, "no offset is given out twice");
    fill(&mut log, 1);
    assert_eq!(read_all(&log, 1000), [1000]);
    assert_eq!(read_all_below(&log, base), every_fifth(0..base));
}

fn read_all_below(log: &Log<RealDisk>, bound: Offset) -> Vec<Offset> {
    let mut offset = 0;
    let mut bases = Vec::new();
    while offset < bound {
        let outcome = log.reader().read(offset, bound, 1 << 20, Residency::Any).unwrap();
        let ReadOutcome::Batches { bytes, next_offset } = outcome else { panic!("cold") };
        bases.extend(batches(bytes).map(|batch| batch.unwrap().header.base_offset));
        offset = next_offset;
    }
    bases
}

#[test]
fn indexes_may_be_missing_damaged_or_anothers() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    let indexes = bench.names("index");
    assert!(indexes.len() >= 3);
    std::fs::remove_file(bench.path(&indexes[0])).unwrap();
    flip(&bench.path(&indexes[1]), 100);
    std::fs::copy(bench.path(&indexes[1]), bench.path(&indexes[2])).unwrap();
    let (log, _) = bench.open(Some(Checkpoint { clean: true, ..checkpoint }));
    assert_eq!(read_all(&log, 0), every_fifth(0..1000));
    assert_eq!(
        log.reader().offset_for_timestamp(100_000, Offset::MAX).unwrap(),
        Some((100, 100_000))
    );
}

#[test]
fn an_interrupted_truncation_is_finished_at_open() {
    let bench = Bench::new();
    let checkpoint = crashed(&bench);
    let mut truncations = Truncations::default();
    truncations.begin(500);
    let path = bench.path(crate::truncations::TRUNCATIONS_FILE);
    let kind = crate::state_file::Kind::Truncations;
    for known in [Some(checkpoint), None] {
        crate::state_file::write(bench.files.disk(), &path, kind, &truncations).unwrap();
        let (log, recovery) = bench.open(known);
        assert!(recovery.truncation_completed);
        assert_eq!((log.log_end_offset(), recovery.corrupt), (500, vec![]));
        assert_eq!(read_all(&log, 0), every_fifth(0..500));
        assert!(!bench.path("torn").exists(), "what was to go is not kept");
    }
    let (log, recovery) = bench.open(None);
    assert!(!recovery.truncation_completed);
    assert_eq!(log.log_end_offset(), 500);
}

#[test]
fn anothers_partition_is_refused() {
    let bench = Bench::new();
    crashed(&bench);
    let partition = TopicPartition { partition: 5, ..IDENTITY.partition };
    let opened =
        Log::open(&bench.files, &bench.dir, LogIdentity { partition }, bench.config.clone(), None);
    assert!(matches!(opened, Err(OpenError::Foreign { .. })));
}

#[test]
fn leader_epochs_survive_a_crash_even_when_their_file_does_not() {
    let bench = Bench::new();
    let mut log = bench.create();
    for epoch in 1..4 {
        log.append(&[batch(5, 100, 0)], epoch, NOW).unwrap();
    }
    let entries = log.epochs().entries().to_vec();
    flush(&mut log);
    drop(log);
    let (log, _) = bench.open(None);
    assert_eq!(log.epochs().entries(), entries);
    drop(log);
    std::fs::remove_file(bench.path("epochs")).unwrap();
    let (log, _) = bench.open(None);
    assert_eq!(log.epochs().entries(), entries);
}

#[test]
fn a_directory_says_whose_it_is_before_it_has_a_batch() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 1);
    drop(log);
    let disk = bench.files.disk();
    assert_eq!(log_dir_owner(disk, &bench.dir).unwrap(), Some(IDENTITY.partition));
    assert!(!is_nobodys_log_dir(disk, &bench.dir).unwrap());
    let another = LogIdentity {
        partition: TopicPartition { topic_id: TopicId([8; 16]), ..IDENTITY.partition },
    };
    let refused = Log::open(&bench.files, &bench.dir, another, bench.config.clone(), None);
    assert!(matches!(refused, Err(OpenError::Foreign { .. })), "{refused:?}");
    let (log, _) = bench.open(None);
    assert_eq!(log.log_end_offset(), 5);
}

#[test]
fn only_a_directory_without_a_completed_flush_can_be_nobodys() {
    let bench = Bench::new();
    let disk = bench.files.disk();
    assert!(is_nobodys_log_dir(disk, &bench.dir).unwrap());
    let mut log = bench.create();
    fill(&mut log, 1);
    let meta = bench.path("partition.meta");
    let whole = std::fs::read(&meta).unwrap();
    for left in [&whole[..0], &whole[..5]] {
        std::fs::write(&meta, left).unwrap();
        assert!(is_nobodys_log_dir(disk, &bench.dir).unwrap(), "a loss of power left {left:?}");
    }
    std::fs::write(&meta, whole).unwrap();
    flush(&mut log);
    std::fs::write(&meta, b"rotten").unwrap();
    assert!(matches!(is_nobodys_log_dir(disk, &bench.dir), Err(OpenError::Damaged { .. })));
    std::fs::remove_file(&meta).unwrap();
    assert!(!is_nobodys_log_dir(disk, &bench.dir).unwrap());
}

/// Flips a bit of the sixth batch's leader epoch in a log of ten. No index was saved that would vouch for it.
fn rot_an_epoch(bench: &Bench, log_bytes: u64) {
    let epoch_at = usize::try_from(5 * log_bytes / 10).unwrap() + 12;
    let path = last_log(bench);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[epoch_at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_rotten_epoch_is_not_believed_where_the_next_batch_contradicts_it() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 10);
    flush(&mut log);
    let log_bytes = log.size_bytes();
    drop(log);
    rot_an_epoch(&bench, log_bytes);
    let (log, recovery) = bench.open(None);
    assert_eq!((log.log_end_offset(), log.epochs().latest()), (25, Some(1)));
    assert!(recovery.torn_bytes > 0);
}

#[test]
fn a_rotten_epoch_in_front_of_the_checkpoint_is_never_served() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 10);
    let log_bytes = log.size_bytes();
    let checkpoint = Checkpoint { clean: true, ..log.close().unwrap() };
    rot_an_epoch(&bench, log_bytes);
    let (mut log, _) = bench.open(Some(checkpoint));
    fill(&mut log, 1);
    for offset in [0, 25, 49] {
        let refused = log.reader().read(offset, 55, 1000, Residency::Any);
        assert!(matches!(refused, Err(ReadError::Corrupt { .. })), "{offset}: {refused:?}");
    }
    assert!(log.reader().read(50, 55, 1000, Residency::Any).is_ok());
}

#[test]
fn what_is_in_front_of_damage_that_turns_up_in_memory_is_read() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 10);
    flush(&mut log);
    // Pages of a flush that failed may go back to what is on the disk under a process that goes on.
    let at = log.size_bytes() / 10 * 9;
    let file = std::fs::OpenOptions::new().write(true).open(last_log(&bench)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 100], at).unwrap();
    for _ in 0..2 {
        let read = log.reader().read(0, 50, 1 << 20, Residency::Any).unwrap();
        assert!(matches!(read, ReadOutcome::Batches { next_offset: 45, .. }), "{read:?}");
    }
    let refused = log.reader().read(45, 50, 1000, Residency::Any);
    assert!(matches!(refused, Err(ReadError::Corrupt { .. })), "{refused:?}");
}
