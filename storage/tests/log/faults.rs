//! What was durable and is damaged is reported, never served, never taken for the end of the log; a
//! full disk refuses and recovers.

use std::path::{Path, PathBuf};

use tidemark_protocol::{Offset, batch::Compression};
use tidemark_storage::{
    AppendError, Checkpoint, Log, LogConfig, ReadError, ReadOutcome, Residency, StorageError,
    disk::{Disk, PAGE_BYTES},
    testing::{Faults, SimDisk},
};

use crate::model::{Model, Place, batch, flush, small_config};

struct Filled {
    disk: SimDisk,
    place: Place<SimDisk>,
    model: Model,
    checkpoint: Checkpoint,
}

impl Filled {
    fn checkpoint(&self, clean: bool) -> Checkpoint {
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.clean = clean;
        checkpoint
    }
}

/// A closed log of a few segments.
fn filled(seed: u64) -> Filled {
    filled_with(seed, &small_config())
}

fn filled_with(seed: u64, config: &LogConfig) -> Filled {
    let disk = SimDisk::new(seed);
    let place = Place::prepare(disk.clone(), Path::new("/"));
    let mut log = place.create(config);
    let mut model = Model::default();
    for index in 0..30_u8 {
        let batch = batch(Compression::None, i64::from(index), &[vec![index; 450], vec![index]]);
        log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        model.append(&batch, 0);
    }
    flush(&mut log).unwrap();
    assert!(log.segment_count() >= 4);
    let checkpoint = log.close().unwrap();
    Filled { disk, place, model, checkpoint }
}

/// The segment files, oldest first.
fn segments(filled: &Filled) -> Vec<PathBuf> {
    let entries = filled.disk.list(&filled.place.dir).unwrap();
    let paths = entries.into_iter().map(|entry| filled.place.dir.join(entry.name));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
}

/// Reads everything; checks what is served against the model and returns what is refused.
fn read_around_damage(log: &Log<SimDisk>, model: &Model) -> Vec<std::ops::Range<Offset>> {
    let reader = log.reader();
    let mut refused = Vec::new();
    let mut offset = log.log_start_offset();
    while offset < log.log_end_offset() {
        match reader.read(offset, log.log_end_offset(), 1000, Residency::Any) {
            Ok(ReadOutcome::Batches { bytes, next_offset }) => {
                let expected: Vec<u8> = model
                    .batches
                    .iter()
                    .filter(|batch| batch.next > offset && batch.next <= next_offset)
                    .flat_map(|batch| batch.bytes.to_vec())
                    .collect();
                assert_eq!(bytes, expected, "served at {offset} what was never written");
                assert!(next_offset > offset, "no progress at {offset}");
                offset = next_offset;
            }
            Ok(ReadOutcome::Cold) => panic!("this read may block"),
            Err(ReadError::Corrupt { range }) => {
                assert!(range.contains(&offset), "{range:?} at {offset}");
                offset = range.end;
                refused.push(range);
            }
            Err(error) => panic!("read at {offset}: {error}"),
        }
    }
    refused
}

/// Checks that a bit flipped anywhere costs the batch it is in and at most its neighbours up to the
/// next index entry, whatever is used to open the log.
#[test]
fn the_last_flush_of_a_deleted_log_says_nothing_about_the_next_in_its_place() {
    let disk = SimDisk::new(1);
    let place = Place::prepare(disk, Path::new("/"));
    let mut log = place.create(&small_config());
    let written = batch(Compression::None, 0, &[vec![1; 50]]);
    log.append(std::slice::from_ref(&written), 0, 1000).unwrap();
    let job = log.flush_job().unwrap();
    log.delete().unwrap();

    let mut log = place.create(&small_config());
    if let Ok(done) = job.run() {
        log.flushed(done);
    }
    assert_eq!((log.flushed_offset(), log.log_end_offset()), (0, 0));
}

#[test]
fn a_last_segment_shorter_than_the_checkpoint_says_is_damage_and_no_more() {
    for clean in [false, true] {
        let filled = filled(5);
        let path = segments(&filled).pop().unwrap();
        filled.disk.shrink(&path, 300).unwrap();
        let checkpoint = Some(filled.checkpoint(clean));
        let (mut log, _) = filled.place.open(&small_config(), checkpoint).unwrap();
        assert_eq!(log.log_end_offset(), filled.model.log_end);
        flush(&mut log).unwrap();
        let refused = read_around_damage(&log, &filled.model);
        assert_eq!(refused.len(), 1, "{refused:?}");
        let next = batch(Compression::None, 99, &[vec![7; 50]]);
        log.append(std::slice::from_ref(&next), 0, 1000).unwrap();
        flush(&mut log).unwrap();
    }
}

#[test]
fn what_is_recovered_after_a_failed_flush_and_flushed_again_survives_a_loss_of_power() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        flush(&mut log).unwrap();
        for index in 0..4_u8 {
            let batch = batch(Compression::None, 0, &[vec![index; 150]]);
            log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        }
        disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
        assert!(flush(&mut log).is_err(), "seed {seed}");
        drop(log);
        disk.crash();

        let (mut log, _) = place.open(&small_config(), None).unwrap();
        flush(&mut log).unwrap();
        let durable = log.log_end_offset();
        drop(log);
        disk.power_loss();
        let (log, _) = place.open(&small_config(), None).unwrap();
        assert!(log.log_end_offset() >= durable, "seed {seed}: {durable} records were durable");
    }
}

/// The file that says whose a directory is, too: found in memory after a failed flush, it has to be written again.
#[test]
fn whose_a_log_is_survives_a_loss_of_power_after_a_failed_first_flush() {
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        let batch = batch(Compression::None, 0, &[b"one".to_vec()]);
        log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        // The records are flushed, their owner's name is not.
        disk.set_faults(Faults { failing_syncs: 1, sound_syncs: 1, ..Faults::default() });
        flush(&mut log).unwrap_err();
        drop(log);
        disk.crash();
        let (mut log, _) = place.open(&small_config(), None).unwrap();
        flush(&mut log).unwrap();
        assert_eq!(log.log_end_offset(), 1);
        drop(log);
        disk.power_loss();
        let (log, _) = place.open(&small_config(), None).unwrap();
        assert_eq!((seed, log.log_end_offset()), (seed, 1));
    }
}

/// Epochs may be saved before anything was flushed, and show from then on that a flush was completed: only a damaged disk
/// would have lost the name by then.
#[test]
fn epochs_that_are_saved_bring_the_name_of_the_owner_with_them() {
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        let batch = batch(Compression::None, 0, &[b"one".to_vec()]);
        log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        // A leadership without records, which the next leader does not know of.
        log.assign_epoch(3, 1);
        log.truncate(1).unwrap();
        drop(log);
        disk.power_loss();
        let (log, _) = place.open(&small_config(), None).unwrap();
        assert!(log.log_end_offset() <= 1, "seed {seed}");
    }
}

#[test]
fn what_a_truncation_took_back_stays_away_although_its_flush_failed() {
    let mut failed = 0;
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        for index in 0..4_u8 {
            let batch = batch(Compression::None, 0, &[vec![index; 150]]);
            log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        }
        flush(&mut log).unwrap();
        // The first is that of the mark that says what is to be cut.
        disk.set_faults(Faults { failing_syncs: 1, sound_syncs: 1, ..Faults::default() });
        failed += u32::from(log.truncate(1).is_err());
        drop(log);
        disk.crash();

        let (log, _) = place.open(&small_config(), None).unwrap();
        assert_eq!(log.log_end_offset(), 1, "seed {seed}");
        drop(log);
        disk.power_loss();
        let (log, _) = place.open(&small_config(), None).unwrap();
        assert_eq!(log.log_end_offset(), 1, "seed {seed}: what was cut off is back");
    }
    assert!(failed > 0, "no flush of a truncation failed");
}

#[test]
fn a_checkpoint_taken_in_the_middle_of_a_truncation_does_not_prove_what_was_taken_back() {
    for sound_syncs in 0.. {
        let disk = SimDisk::new(sound_syncs.into());
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        for index in 0..80_u8 {
            let batch = batch(Compression::None, 0, &[vec![index; 150]]);
            log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        }
        flush(&mut log).unwrap();
        assert!(log.segment_count() > 3);
        disk.set_faults(Faults { failing_syncs: 1, sound_syncs, ..Faults::default() });
        let truncated = log.truncate(30);
        let checkpoint = log.checkpoint();
        drop(log);
        disk.set_faults(Faults::default());
        disk.crash();
        let (mut log, recovery) = place.open(&small_config(), Some(checkpoint.clone())).unwrap();
        assert_eq!(recovery.corrupt, [], "after {sound_syncs} syncs");
        let next = batch(Compression::None, 0, &[vec![99; 50]]);
        log.append(std::slice::from_ref(&next), 1, 1000).unwrap();
        flush(&mut log).unwrap();
        let end = log.log_end_offset();
        drop(log);

        // No other one has been written since.
        disk.power_loss();
        let (log, recovery) = place.open(&small_config(), Some(checkpoint)).unwrap();
        assert_eq!(recovery.corrupt, [], "after {sound_syncs} syncs, and again");
        assert_eq!(log.log_end_offset(), end, "after {sound_syncs} syncs");
        if truncated.is_ok() {
            assert!(sound_syncs > 2, "{sound_syncs} flushes make a truncation");
            return;
        }
    }
}

#[test]
fn damage_behind_the_end_of_a_recovered_log_is_forgotten() {
    let filled = filled(3);
    let last = filled.model.batches.last().unwrap();
    let path = segments(&filled).pop().unwrap();
    let first: Offset = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let inside = filled.model.batches.iter().filter(|batch| batch.base >= first);
    let end: u64 = inside.map(|batch| batch.bytes.len() as u64).sum();
    let open = |checkpoint| filled.place.open(&small_config(), checkpoint).unwrap().0;
    let log = open(Some(filled.checkpoint(true)));
    filled.disk.bit_rot(&path, end - 1, 0);
    let base = last.next - 2;
    let damaged = log.reader().read(base, last.next, 1000, Residency::Any);
    assert!(matches!(damaged, Err(ReadError::Corrupt { .. })), "{damaged:?}");
    drop(log);

    // Nobody knows any more that it was durable: a torn end, and the log goes on before it.
    filled.disk.crash();
    let mut log = open(None);
    assert_eq!(log.log_end_offset(), base);
    let again = batch(Compression::None, 99, &[vec![7; 50], vec![8]]);
    log.append(std::slice::from_ref(&again), 0, 1000).unwrap();
    let read = log.reader().read(base, base + 2, 1000, Residency::Any);
    assert!(
        matches!(read, Ok(ReadOutcome::Batches { next_offset, .. }) if next_offset == base + 2),
        "{read:?}"
    );
}

/// Damage at the end of a log is cut off, and its offsets are written again: they must be off the list by then, even if the
/// disk does not take the new list.
#[test]
fn what_is_written_where_damage_was_cut_off_is_not_taken_for_it() {
    for sound_syncs in 0..8 {
        let filled = filled(5);
        let path = segments(&filled).last().unwrap().clone();
        let last = filled.model.batches.last().unwrap();
        let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let inside = filled.model.batches.iter().filter(|batch| batch.base >= first);
        let end: u64 = inside.map(|batch| batch.bytes.len() as u64).sum();
        let (log, _) = filled.place.open(&small_config(), Some(filled.checkpoint(true))).unwrap();
        filled.disk.bit_rot(&path, end - 1, 0);
        let damaged = log.reader().read(last.base, last.next, 1000, Residency::Any);
        assert!(matches!(damaged, Err(ReadError::Corrupt { .. })), "{damaged:?}");
        drop(log);

        filled.disk.crash();
        filled.disk.set_faults(Faults { failing_syncs: 1, sound_syncs, ..Faults::default() });
        let opened = filled.place.open(&small_config(), None);
        filled.disk.set_faults(Faults::default());
        let mut log = opened.map_or_else(
            |_refused| filled.place.open(&small_config(), None).unwrap().0,
            |(log, _)| log,
        );
        let base = log.log_end_offset();
        assert!(base < last.next, "the damage is cut off");
        let again = batch(Compression::None, 99, &[vec![7; 50], vec![8]]);
        log.append(std::slice::from_ref(&again), 0, 1000).unwrap();
        flush(&mut log).unwrap();
        drop(log);
        filled.disk.crash();
        let (log, _) = filled.place.open(&small_config(), None).unwrap();
        let read = log.reader().read(base, base + 2, 1000, Residency::Any);
        assert!(
            matches!(read, Ok(ReadOutcome::Batches { next_offset, .. }) if next_offset == base + 2),
            "after {sound_syncs} syncs: {read:?}"
        );
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_quarantined_and_everything_else_served() {
    for (seed, position) in (0..2400_u64).step_by(97).enumerate() {
        for how in 0..3 {
            let filled = filled(seed as u64);
            let victim = segments(&filled)[1].clone();
            filled.disk.bit_rot(&victim, position, seed.to_le_bytes()[0] % 8);
            let checkpoint = match how {
                0 => Some(filled.checkpoint(true)),
                1 => Some(filled.checkpoint(false)),
                _ => None,
            };
            let (log, recovery) = filled.place.open(&small_config(), checkpoint).unwrap();
            let context = format!("bit at {position}, opened {how}");
            assert_eq!(log.log_end_offset(), filled.model.log_end, "{context}: the end stays");
            assert_eq!(log.log_start_offset(), 0, "{context}: the start stays");
            let refused = read_around_damage(&log, &filled.model);
            assert_eq!(refused.len(), 1, "{context}: {refused:?}, recovery {recovery:?}");
            let lost = refused[0].end - refused[0].start;
            assert!(lost <= 6, "{context}: {lost} offsets are refused for one bit");
            assert_eq!(*log.reader().quarantined(), refused, "{context}");
            // The damage is remembered, and the evidence kept.
            drop(log);
            let (log, _) = filled.place.open(&small_config(), None).unwrap();
            assert_eq!(read_around_damage(&log, &filled.model), refused, "{context}: reopened");
            assert!(filled.disk.exists(&victim).unwrap());
        }
    }
}

/// What says where a batch begins and how far it reaches is damaged: whoever reads there is told so, and does not go on
/// behind it as if there had been nothing.
#[test]
fn nothing_is_passed_over_because_a_header_is_damaged() {
    // No entry of an index is close enough to help.
    let config = LogConfig { index_interval_bytes: 1 << 20, ..small_config() };
    let header_bytes = (0..12).chain(23..27);
    for (byte, bit) in header_bytes.flat_map(|byte| [(byte, 0), (byte, 6)]) {
        for victim in 0..12 {
            let filled = filled_with(7, &config);
            let (log, _) = filled.place.open(&config, Some(filled.checkpoint(true))).unwrap();
            let (path, position) = place_of(&filled, victim);
            filled.disk.bit_rot(&path, position + byte, bit);
            let refused = read_around_damage(&log, &filled.model);
            let base = filled.model.batches[victim].base;
            let is_refused = refused.iter().any(|range| range.contains(&base));
            assert!(is_refused, "byte {byte}, bit {bit} of batch {victim}: {refused:?}");
        }
    }
}

/// The same where nothing is verified, because this process has just written it.
#[test]
fn hot_reads_pass_over_nothing_either() {
    let header_bytes = (0..12).chain(23..27);
    for (byte, bit) in header_bytes.flat_map(|byte| [(byte, 0), (byte, 6)]) {
        let disk = SimDisk::new(7);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        let records = vec![vec![1; 50], vec![2]];
        for _ in 0..12 {
            let batch = batch(Compression::None, 0, &records);
            log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
        }
        let path = place.dir.join("00000000000000000000.log");
        let reader = log.reader();
        let size = match reader.read(0, 2, 1, Residency::Hot).unwrap() {
            ReadOutcome::Batches { bytes, .. } => bytes.len() as u64,
            ReadOutcome::Cold => panic!("it was just written"),
        };
        disk.bit_rot(&path, 4 * size + byte, bit);
        for end in [10, log.log_end_offset()] {
            match reader.read(8, end, 1, Residency::Hot) {
                Ok(ReadOutcome::Batches { next_offset, .. }) => {
                    assert_eq!(next_offset, 10, "byte {byte}, bit {bit}, up to {end}");
                }
                Err(ReadError::Corrupt { range }) => assert!(range.contains(&8), "{range:?}"),
                other => panic!("byte {byte}, bit {bit}, up to {end}: {other:?}"),
            }
        }
    }
}

/// The segment of the batch of that number, and where it begins there.
fn place_of(filled: &Filled, number: usize) -> (PathBuf, u64) {
    let base_of = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<Offset>().ok();
    let base = filled.model.batches[number].base;
    let mut paths = segments(filled).into_iter();
    let path = paths.rfind(|path| base_of(path).unwrap() <= base).unwrap();
    let first = base_of(&path).unwrap();
    let before = filled.model.batches[..number].iter().filter(|batch| batch.base >= first);
    let position = before.map(|batch| batch.bytes.len() as u64).sum();
    (path, position)
}

#[test]
fn a_missing_or_foreign_index_is_rebuilt() {
    let original = filled(1);
    let indexes: Vec<_> =
        segments(&original).iter().map(|path| path.with_extension("index")).collect();
    assert!(original.disk.exists(&indexes[1]).unwrap(), "a sealed segment has an index");
    for how in 0..3 {
        let filled = filled(1);
        match how {
            0 => filled.disk.unlink(&indexes[1]).unwrap(),
            1 => filled.disk.write_file(&indexes[1], b"rubbish").unwrap(),
            _ => {
                let foreign = filled.disk.read_file(&indexes[0], 1 << 20).unwrap().unwrap();
                filled.disk.write_file(&indexes[1], &foreign).unwrap();
            }
        }
        for clean in [true, false] {
            let checkpoint = filled.checkpoint(clean);
            let (log, recovery) = filled.place.open(&small_config(), Some(checkpoint)).unwrap();
            assert_eq!(recovery.corrupt, []);
            filled.model.check(&log);
        }
        let (log, _) = filled.place.open(&small_config(), None).unwrap();
        filled.model.check(&log);
    }
}

#[test]
fn an_unreadable_segment_is_an_error_and_the_others_are_served() {
    let filled = filled(1);
    let checkpoint = filled.checkpoint(true);
    let (log, _) = filled.place.open(&small_config(), Some(checkpoint)).unwrap();
    let unreadable = vec![segments(&filled)[1].clone()];
    filled.disk.set_faults(Faults { unreadable, ..Faults::default() });
    let reader = log.reader();
    let end = log.log_end_offset();
    let mut errors = 0;
    for batch in &filled.model.batches {
        match reader.read(batch.base, end, 1, Residency::Any) {
            Ok(ReadOutcome::Batches { bytes, .. }) => assert_eq!(bytes, batch.bytes),
            Err(ReadError::Disk(_)) => errors += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..filled.model.batches.len() / 2).contains(&errors), "{errors} errors");
    // A read error is not damage: what can be read again is served again.
    filled.disk.set_faults(Faults::default());
    filled.model.check(&log);
}

#[test]
fn a_full_disk_refuses_appends_leaves_the_log_as_it_was_and_recovers_by_itself() {
    let disk = SimDisk::new(1);
    let place = Place::prepare(disk.clone(), Path::new("/"));
    let mut log = place.create(&small_config());
    let mut model = Model::default();
    let capacity_bytes = Some(24 * PAGE_BYTES);
    disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    let mut refused = 0;
    for index in 0..200_u8 {
        let batch = batch(Compression::None, 1, &[vec![index; 900]]);
        match log.append(std::slice::from_ref(&batch), 0, 1000) {
            Ok(_) => model.append(&batch, 0),
            Err(AppendError::Full(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the disk ran full");
    model.check(&log);
    assert!(!log.is_fenced(), "a full disk is no reason to give up");

    // Deleting works on a full disk, and makes room.
    let before = model.batches[model.batches.len() / 2].base;
    disk.set_faults(Faults::default());
    flush(&mut log).unwrap();
    disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    log.trim(before).unwrap();
    model.log_start = before;
    model.check(&log);
    let batch = batch(Compression::None, 1, &[vec![9; 900]]);
    log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
    model.append(&batch, 0);
    flush(&mut log).unwrap();
    model.check(&log);
}

/// Leaves so many pages.
fn leave(disk: &SimDisk, pages: u64) {
    const PLENTY_BYTES: u64 = 1 << 40;
    disk.set_faults(Faults { capacity_bytes: Some(PLENTY_BYTES), ..Faults::default() });
    let used_bytes = PLENTY_BYTES - disk.space(Path::new("/")).unwrap().free_bytes;
    let capacity_bytes = Some(used_bytes + pages * PAGE_BYTES);
    disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
}

#[test]
fn a_full_disk_refuses_to_start_over_or_says_that_it_was_begun() {
    let (mut refused, mut interrupted, mut done) = (0, 0, 0);
    for pages in 0..20 {
        let disk = SimDisk::new(pages);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        let mut log = place.create(&small_config());
        leave(&disk, pages);
        match log.restart_at(1000) {
            Ok(()) => done += 1,
            Err(StorageError::Disk(error)) if error.is_full() => {
                assert!(!log.is_fenced() && log.log_end_offset() == 0, "with {pages} pages");
                refused += 1;
                continue;
            }
            Err(error) => {
                assert!(log.is_fenced(), "with {pages} pages: {error}");
                interrupted += 1;
            }
        }
        drop(log);
        disk.crash();
        disk.set_faults(Faults::default());
        let (log, _) = place.open(&small_config(), None).unwrap();
        assert_eq!((log.log_start_offset(), log.log_end_offset()), (1000, 1000));
    }
    assert!(refused > 0 && interrupted > 0 && done > 0, "{refused}, {interrupted}, {done}");
}

#[test]
fn what_a_crash_left_is_flushed_and_shown_although_not_a_byte_is_free() {
    let disk = SimDisk::new(1);
    let place = Place::prepare(disk.clone(), Path::new("/"));
    let mut log = place.create(&small_config());
    let mut model = Model::default();
    let batch = batch(Compression::None, 1, &[vec![7; 900]]);
    log.append(std::slice::from_ref(&batch), 0, 1000).unwrap();
    model.append(&batch, 0);
    flush(&mut log).unwrap();
    drop(log);

    disk.crash();
    disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
    let (mut log, _) = place.open(&small_config(), None).unwrap();
    flush(&mut log).unwrap();
    assert_eq!(log.flushed_offset(), model.log_end);
    model.check(&log);
}
