//! What a log knows of tombstones that compaction has dropped: nobody may keep what they hid.

use std::path::Path;

use tidemark_protocol::batch::Compression;
use tidemark_storage::{Compacted, CompactionBounds, Log, testing::SimDisk};

use crate::{
    compaction::{
        DELETE_RETENTION_MS, History, compact, compact_within, config, contents, fill, keyed,
    },
    model::{Place, all, flush},
};

/// A log with a tombstone, compacted until that may go.
fn with_a_tombstone(seed: u64) -> (Place<SimDisk>, Log<SimDisk>, u64) {
    let place = Place::prepare(SimDisk::new(seed), Path::new("/"));
    let (mut log, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
    assert_eq!(log.removals_end(), 0, "nothing has gone that anybody could miss");
    (place, log, now_ms + DELETE_RETENTION_MS)
}

#[test]
fn a_tombstone_stays_for_who_has_yet_to_read_it() {
    let (_place, mut log, now_ms) = with_a_tombstone(1);
    let size = log.size_bytes();
    let tombstone =
        contents(&log).iter().find(|r| r.key.is_some() && r.value.is_none()).unwrap().offset;
    let up_to = |removals_max| CompactionBounds { removals_max, ..all(&log) };
    let (behind, past) = (up_to(tombstone), up_to(tombstone + 1));
    let held = compact_within(&mut log, behind, now_ms, 1000).unwrap().expect("its time is up");
    assert_eq!((held, log.size_bytes()), (Compacted::default(), size));
    assert!(compact_within(&mut log, behind, now_ms, 1000).unwrap().is_none(), "nothing new");
    compact_within(&mut log, past, now_ms, 1000).unwrap().expect("everybody has it");
    assert!(log.size_bytes() < size && log.removals_end() == tombstone + 1);
}

#[test]
fn where_a_tombstone_was_is_known_until_the_log_starts_over() {
    let (place, mut log, now_ms) = with_a_tombstone(1);
    compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
    let end = log.removals_end();
    assert!(end > 0 && log.reader().removals_end() == end);
    log.note_removals(end - 1).unwrap();
    assert_eq!(log.removals_end(), end, "it only grows");
    drop(log);
    place.disk.power_loss();
    let (mut log, _) = place.open(&config(), None).unwrap();
    assert_eq!(log.removals_end(), end);
    log.restart_at(0).unwrap();
    assert_eq!(log.removals_end(), 0);
    drop(log);
    let (mut log, _) = place.open(&config(), None).unwrap();
    assert_eq!(log.removals_end(), 0);
    log.note_removals(7).unwrap();
    assert_eq!(log.removals_end(), 7, "an empty log is to be a copy of one that lacks them");
    log.forget_removals_ahead().unwrap();
    assert_eq!(log.removals_end(), 0, "and is to be one of another");
    log.note_removals(7).unwrap();
    drop(log);
    assert_eq!(place.open(&config(), None).unwrap().0.removals_end(), 0, "and was none yet");
}

#[test]
fn what_is_taken_back_lacks_no_tombstone() {
    let (place, mut log, now_ms) = with_a_tombstone(1);
    compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
    let cut = log.removals_end() - 1;
    log.truncate(cut).unwrap();
    let end = log.log_end_offset();
    assert!(end <= cut && log.removals_end() == end);
    let mut history = History::default();
    for _ in 0..9 {
        let batch = keyed(Compression::None, 1000, &[(Some(1), Some(3))]);
        history.append(&mut log, &batch, now_ms).unwrap();
    }
    flush(&mut log).unwrap();
    drop(log);
    let (log, _) = place.open(&config(), None).unwrap();
    assert!(log.log_end_offset() > cut && log.removals_end() == end, "not even after a restart");
}
