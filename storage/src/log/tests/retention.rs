//! Giving up the front.

use super::*;

#[test]
fn trimming_hides_records_at_once_and_deletes_whole_segments() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    flush(&mut log);
    let segments = log.segment_count();
    assert_eq!(log.trim(503).unwrap(), 503);
    assert_eq!(log.log_start_offset(), 503);
    assert!(log.segment_count() < segments);
    let error = log.reader().read(502, 1000, 1, Residency::Any).unwrap_err();
    assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
    assert_eq!(read_all(&log, 503), every_fifth(500..1000));
    assert_eq!(log.trim(100).unwrap(), 503, "never back");
    assert!(log.trim(1001).is_err());
    drop(log);
    let (log, recovery) = bench.open(None);
    assert_eq!((log.log_start_offset(), recovery.corrupt), (503, vec![]));
}

#[test]
fn a_log_trimmed_to_its_end_keeps_its_end() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    flush(&mut log);
    let checkpoint = log.checkpoint();
    log.trim(1000).unwrap();
    assert_eq!((log.log_start_offset(), log.segment_count()), (1000, 0));
    flush(&mut log);
    drop(log);
    for known in [Some(checkpoint), None] {
        let (log, recovery) = bench.open(known);
        assert_eq!((log.log_start_offset(), log.log_end_offset()), (1000, 1000));
        assert_eq!(recovery.corrupt, []);
    }
    let (mut log, _) = bench.open(None);
    fill(&mut log, 2);
    flush(&mut log);
    assert_eq!(read_all(&log, 1000), [1000, 1005]);
}

#[test]
fn retention_by_size_keeps_at_least_that_much() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 600);
    let keep = 100 << 10;
    log.set_config(LogConfig { retention_bytes: Some(keep), retention_ms: None, ..bench.config });
    let nothing = log.apply_retention(0, NOW).unwrap();
    assert_eq!(nothing.segments, 0, "everything is above the high watermark");
    let deleted = log.apply_retention(3000, NOW).unwrap();
    assert!(deleted.segments > 5);
    assert_eq!(deleted.oversize_bytes, deleted.bytes, "nothing is old enough");
    assert!(log.size_bytes() >= keep && log.size_bytes() < keep + (64 << 10));
    assert_eq!(read_all(&log, deleted.log_start), every_fifth(deleted.log_start..3000));
}

#[test]
fn retention_by_age_takes_everything_old_and_the_log_goes_on() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 600);
    flush(&mut log);
    let retention_ms = bench.config.retention_ms.unwrap();
    let deleted = log.apply_retention(3000, retention_ms + 1_000_000).unwrap();
    assert!(deleted.log_start < 1100 && deleted.log_start > 800, "{deleted:?}");
    let deleted = log.apply_retention(3000, retention_ms * 2).unwrap();
    assert_eq!((deleted.log_start, log.segment_count()), (3000, 0));
    assert_eq!(deleted.oversize_bytes, 0, "there is no limit to the size");
    fill(&mut log, 1);
    flush(&mut log);
    drop(log);
    let (log, recovery) = bench.open(None);
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (3000, 3005));
    assert_eq!(recovery.corrupt, []);
    assert_eq!(read_all(&log, 3000), [3000]);
}

#[test]
fn a_log_starts_over_wherever_it_is_told_to() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    log.assign_epoch(4, 1000);
    flush(&mut log);
    let before = log.checkpoint();
    let reader = log.reader();
    for offset in [5_000, 500, 0] {
        log.restart_at(offset).unwrap();
        assert_eq!((log.log_start_offset(), log.log_end_offset()), (offset, offset));
        assert_eq!((log.flushed_offset(), log.segment_count()), (offset, 0));
        assert!(log.epochs().entries().is_empty(), "nothing is known of who wrote here");
        assert!(reader.read(offset + 1, 9_000, 1, Residency::Any).is_err());
        drop(log);
        // An older checkpoint is about an earlier life.
        for known in [None, Some(before.clone())] {
            let (log, recovery) = bench.open(known);
            assert_eq!((log.log_start_offset(), log.log_end_offset()), (offset, offset));
            assert_eq!((recovery.corrupt, recovery.torn_bytes), (vec![], 0));
            assert!(log.epochs().entries().is_empty());
        }
        log = bench.open(Some(before.clone())).0;
    }
    fill(&mut log, 3);
    assert_eq!(read_all(&log, 0), every_fifth(0..15));
}

#[test]
fn a_log_without_files_remembers_where_it_starts() {
    let bench = Bench::new();
    let mut log = bench.create();
    log.restart_at(70).unwrap();
    drop(log);
    let (log, _) = bench.open(None);
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (70, 70));
}

#[test]
fn a_flush_that_began_before_a_restart_says_nothing_of_what_follows() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 4);
    let job = log.flush_job().unwrap();
    log.restart_at(2).unwrap();
    let done = job.run().unwrap();
    fill(&mut log, 1);
    log.flushed(done);
    assert_eq!((log.flushed_offset(), log.log_end_offset()), (2, 7));
    flush(&mut log);
    let checkpoint = log.checkpoint();
    drop(log);
    let (log, recovery) = bench.open(Some(checkpoint));
    assert!(recovery.from_checkpoint, "the directory is in the life that the checkpoint is about");
    assert_eq!((recovery.corrupt, log.log_end_offset()), (vec![], 7));
}
