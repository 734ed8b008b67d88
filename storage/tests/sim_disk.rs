//! The simulated disk loses what it may lose, keeps what it must keep, and does both by its seed.

use std::path::Path;

use tidemark_storage::{
    disk::{Disk, DiskError, DiskFile, PAGE_BYTES},
    testing::{Faults, SimDisk},
};

const PAGES: u64 = 16;
const PAGE: usize = 4096;
const BYTES: usize = 16 * PAGE;

/// A disk with a synced file of ones over which twos were written without a sync.
fn overwritten(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let file = disk.create(Path::new("/a"), PAGES * PAGE_BYTES, 0).expect("create");
    file.write_at(0, &vec![1; BYTES]).expect("write");
    file.sync(0..file.len()).expect("sync");
    disk.sync_dir(Path::new("/")).expect("sync the directory");
    file.write_at(0, &vec![2; BYTES]).expect("overwrite");
    disk
}

fn content(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(Path::new(path), 0).expect("open");
    file.slice(0..file.len()).to_vec()
}

#[test]
fn a_process_crash_keeps_the_page_cache_and_kills_the_handles() {
    let disk = overwritten(1);
    let file = disk.open(Path::new("/a"), 0).expect("open");
    let lock = disk.lock(Path::new("/LOCK")).expect("lock");
    disk.crash();
    assert!(file.write_at(0, b"x").is_err() && file.sync(0..0).is_err());
    assert_eq!(content(&disk, "/a"), vec![2; BYTES]);
    let relocked = disk.lock(Path::new("/LOCK")).expect("the crash released the lock");
    drop(lock);
    assert!(disk.lock(Path::new("/LOCK")).is_err(), "a dead lock releases nothing");
    drop(relocked);
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_loses_keeps_or_tears_the_rest() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..20 {
        let disk = overwritten(seed);
        let file = disk.open(Path::new("/a"), 0).expect("open");
        file.sync(0..PAGE_BYTES).expect("sync the first page");
        disk.power_loss();
        let after = content(&disk, "/a");
        assert_eq!(after[..PAGE], [2; PAGE], "seed {seed}: the synced page");
        for page in after.chunks(PAGE).skip(1) {
            if page.iter().all(|byte| *byte == 1) {
                lost += 1;
            } else if page.iter().all(|byte| *byte == 2) {
                kept += 1;
            } else {
                torn += 1;
            }
        }
    }
    assert!(kept > 50 && lost > 50 && torn > 50, "{kept} kept, {lost} lost, {torn} torn");
}

#[test]
fn tearing_does_not_damage_bytes_that_did_not_change() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let file = disk.create(Path::new("/a"), PAGE_BYTES, 0).expect("create");
        file.write_at(0, &[1; 1000]).expect("write");
        file.sync(0..file.len()).expect("sync");
        disk.sync_dir(Path::new("/")).expect("sync the directory");
        file.write_at(1000, &[2; 1000]).expect("append in the same page");
        disk.power_loss();
        assert_eq!(content(&disk, "/a")[..1000], [1; 1000], "seed {seed}");
    }
}

#[test]
fn names_are_durable_only_after_their_directory_was_synced() {
    let mut created = 0;
    let mut renamed = 0;
    let mut removed = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        for name in ["/old", "/doomed", "/kept"] {
            drop(disk.create(Path::new(name), 0, 0).expect("create"));
        }
        disk.sync_dir(Path::new("/")).expect("sync the directory");
        drop(disk.create(Path::new("/new"), 0, 0).expect("create"));
        disk.rename(Path::new("/old"), Path::new("/renamed")).expect("rename");
        disk.unlink(Path::new("/doomed")).expect("unlink");
        disk.power_loss();
        let exists = |name: &str| disk.exists(Path::new(name)).expect("look up");
        assert!(exists("/kept"));
        assert_ne!(exists("/old"), exists("/renamed"), "a rename is atomic");
        created += u32::from(exists("/new"));
        renamed += u32::from(exists("/renamed"));
        removed += u32::from(!exists("/doomed"));
    }
    for count in [created, renamed, removed] {
        assert!(
            (5..=35).contains(&count),
            "{created} created, {renamed} renamed, {removed} removed"
        );
    }
}

#[test]
fn a_failed_sync_poisons_its_file_and_leaves_pages_that_look_clean() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = overwritten(seed);
        let file = disk.open(Path::new("/a"), 0).expect("open");
        disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
        assert!(matches!(file.sync(0..file.len()), Err(DiskError::Io { .. })));
        assert!(matches!(file.sync(0..file.len()), Err(DiskError::Poisoned { .. })));
        let other = disk.open(Path::new("/a"), 0).expect("open again");
        other.sync(0..other.len()).expect("the kernel has nothing left to write");
        disk.power_loss();
        lost += u32::from(content(&disk, "/a") != vec![2; BYTES]);
    }
    assert_eq!(lost, 20, "a sync that succeeds after one that failed proves nothing");
}

#[test]
fn the_disk_stops_at_the_chosen_operation_until_the_crash() {
    let workload = |disk: &SimDisk| -> Result<(), DiskError> {
        disk.create_dir(Path::new("/d"))?;
        disk.sync_dir(Path::new("/"))?;
        disk.write_file(Path::new("/d/state"), b"content")
    };
    let disk = SimDisk::new(1);
    workload(&disk).expect("no fault yet");
    let operations = disk.operations();
    assert_eq!(operations, 7, "{:?}", disk.trace());
    for stop_at in 0..operations {
        let disk = SimDisk::new(stop_at);
        disk.stop_at(stop_at);
        workload(&disk).expect_err("it stops");
        assert!(disk.stopped().is_some());
        disk.list(Path::new("/")).expect_err("a stopped process reads nothing either");
        disk.power_loss();
        if let Ok(Some(bytes)) = disk.read_file(Path::new("/d/state"), 100) {
            assert_eq!(bytes, b"content", "stopped at {stop_at}: old or new, nothing between");
        }
    }
}

#[test]
fn a_full_disk_refuses_and_recovers_when_space_is_freed() {
    let disk = SimDisk::new(1);
    let file = disk.create(Path::new("/a"), PAGE_BYTES, 100 * PAGE_BYTES).expect("create");
    drop(disk.create(Path::new("/b"), 2 * PAGE_BYTES, 0).expect("create"));
    let capacity_bytes = Some(4 * PAGE_BYTES);
    disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    assert!(file.grow(3 * PAGE_BYTES).expect_err("one page is free").is_full());
    assert_eq!(file.len(), PAGE_BYTES, "a refusal changes nothing");
    assert!(disk.create(Path::new("/c"), 2 * PAGE_BYTES, 0).expect_err("full").is_full());
    assert!(!disk.exists(Path::new("/c")).expect("look up"));
    disk.unlink(Path::new("/b")).expect("deleting works");
    file.grow(3 * PAGE_BYTES).expect("space came back");
    assert_eq!(disk.space(Path::new("/")).expect("space").free_bytes, PAGE_BYTES);
}

#[test]
fn rotten_and_unreadable_bytes_are_served_as_such() {
    let disk = overwritten(1);
    disk.bit_rot(Path::new("/a"), 5000, 3);
    let file = disk.open(Path::new("/a"), 0).expect("open");
    assert_eq!(file.slice(5000..5001)[..], [2 ^ 8]);
    disk.set_faults(Faults { unreadable: vec!["/a".into()], ..Faults::default() });
    file.populate_read(0..10).expect_err("EIO");
    file.read_at(0, &mut [0; 10]).expect_err("EIO");
}

#[test]
fn the_same_seed_makes_the_same_choices_and_a_fork_its_own() {
    let after = |disk: &SimDisk| {
        disk.power_loss();
        content(disk, "/a")
    };
    assert_eq!(after(&overwritten(7)), after(&overwritten(7)));
    assert_ne!(after(&overwritten(7)), after(&overwritten(8)));
    let original = overwritten(7);
    let forked = after(&original.fork(9));
    assert_ne!(forked, after(&original));
    assert_eq!(forked, after(&overwritten(1).fork(9)), "a fork's choices follow from its seed");
}
