//! What every disk must do, whatever it is made of.
//!
//! Behaviour without faults, and the errors any disk can be brought to give. Crashes and losses of
//! power are the simulated disk's own tests: nobody can demand them of a real one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::disk::{Disk, DiskError, DiskFile, PAGE_BYTES};

type Case<D> = (&'static str, fn(&D, &Path));

/// Runs every case, each on a fresh disk and an empty directory that `make` provides.
///
/// Panics on the first difference with the name of the case.
pub fn suite<D: Disk>(make: impl Fn() -> (D, PathBuf)) {
    let cases: [Case<D>; 14] = [
        ("a new file is allocated and zero", new_file_is_allocated_and_zero),
        ("a name is taken once", name_is_taken_once),
        ("what is written is read, by slice and by copy", written_is_read),
        ("a reopened file holds what was written", reopened_file_holds_what_was_written),
        ("a file grows up to its capacity and never shrinks", file_grows_and_never_shrinks),
        ("touching beyond the allocated end panics", beyond_the_end_panics),
        ("zeroing clears exactly the range", zeroing_clears_exactly_the_range),
        ("a slice outlives its file and its name", slice_outlives_file_and_name),
        ("a mapped file cannot be cut", mapped_file_cannot_be_cut),
        ("directories list their entries in order", directories_list_in_order),
        ("renaming replaces", renaming_replaces),
        ("what is absent is reported as such", absent_is_reported),
        ("a small file is replaced whole", small_file_is_replaced_whole),
        ("a lock is exclusive until dropped", lock_is_exclusive),
    ];
    for (name, case) in cases {
        let (disk, dir) = make();
        let passed = catch_unwind(AssertUnwindSafe(|| case(&disk, &dir))).is_ok();
        assert!(passed, "the disk fails the case: {name}");
    }
}

fn new_file_is_allocated_and_zero<D: Disk>(disk: &D, dir: &Path) {
    let file = disk.create(&dir.join("a"), 3 * PAGE_BYTES, 100 * PAGE_BYTES).expect("create");
    assert_eq!(file.len(), 3 * PAGE_BYTES);
    assert!(!file.is_empty());
    file.populate_read(0..file.len()).expect("populate for reading");
    assert!(file.slice(0..file.len()).iter().all(|byte| *byte == 0));
    let empty = disk.create(&dir.join("b"), 0, 0).expect("create an empty file");
    assert!(empty.is_empty() && empty.slice(0..0).is_empty());
    empty.sync(0..0).expect("sync nothing");
    let space = disk.space(dir).expect("space");
    assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
}

fn name_is_taken_once<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("a");
    drop(disk.create(&path, PAGE_BYTES, PAGE_BYTES).expect("create"));
    let again = disk.create(&path, PAGE_BYTES, PAGE_BYTES);
    assert!(matches!(again, Err(DiskError::Exists { .. })), "{again:?}");
    let sub = dir.join("d");
    disk.create_dir(&sub).expect("create a directory");
    let again = disk.create_dir(&sub);
    assert!(matches!(again, Err(DiskError::Exists { .. })), "{again:?}");
    assert!(disk.exists(&path).expect("look up") && disk.exists(&sub).expect("look up"));
}

fn written_is_read<D: Disk>(disk: &D, dir: &Path) {
    let file = disk.create(&dir.join("a"), 4 * PAGE_BYTES, 4 * PAGE_BYTES).expect("create");
    let pattern: Vec<u8> = (0..=255).cycle().take(6000).collect();
    file.write_at(PAGE_BYTES - 100, &pattern).expect("write across pages");
    let range = PAGE_BYTES - 100..PAGE_BYTES + 5900;
    assert_eq!(file.slice(range.clone()), pattern);
    let mut copy = vec![0; pattern.len()];
    file.read_at(range.start, &mut copy).expect("read");
    assert_eq!(copy, pattern);
    assert_eq!(file.slice(range.start - 1..range.start)[..], [0], "nothing before it changed");
    assert_eq!(file.slice(range.end..range.end + 1)[..], [0], "nothing behind it changed");
    file.sync(range).expect("sync");
}

fn reopened_file_holds_what_was_written<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("a");
    let file = disk.create(&path, PAGE_BYTES, 8 * PAGE_BYTES).expect("create");
    file.write_at(10, b"tide").expect("write");
    drop(file);
    let file = disk.open(&path, 8 * PAGE_BYTES).expect("open");
    assert_eq!(file.len(), PAGE_BYTES);
    assert_eq!(file.slice(10..14), b"tide"[..]);
    file.grow(2 * PAGE_BYTES).expect("grow after opening");
    file.write_at(PAGE_BYTES, b"mark").expect("write into what was grown");
    let other = disk.open(&path, 0).expect("open twice");
    assert_eq!(other.len(), 2 * PAGE_BYTES);
    assert_eq!(other.slice(PAGE_BYTES..PAGE_BYTES + 4), b"mark"[..], "both see the same bytes");
}

fn file_grows_and_never_shrinks<D: Disk>(disk: &D, dir: &Path) {
    let file = disk.create(&dir.join("a"), PAGE_BYTES, 16 * PAGE_BYTES).expect("create");
    let before = file.slice(0..PAGE_BYTES);
    file.grow(16 * PAGE_BYTES).expect("grow");
    file.grow(2 * PAGE_BYTES).expect("growing to less does nothing");
    assert_eq!(file.len(), 16 * PAGE_BYTES);
    file.write_at(15 * PAGE_BYTES, b"end").expect("write");
    assert_eq!(file.slice(15 * PAGE_BYTES..15 * PAGE_BYTES + 3), b"end"[..]);
    assert!(file.slice(PAGE_BYTES..15 * PAGE_BYTES).iter().all(|byte| *byte == 0));
    assert!(before.iter().all(|byte| *byte == 0), "a slice from before is still good");
    assert!(panics(|| file.grow(17 * PAGE_BYTES).is_ok()), "growth beyond the capacity is a bug");
}

fn beyond_the_end_panics<D: Disk>(disk: &D, dir: &Path) {
    let file = disk.create(&dir.join("a"), PAGE_BYTES, 16 * PAGE_BYTES).expect("create");
    assert!(panics(|| file.slice(PAGE_BYTES - 1..PAGE_BYTES + 1)));
    assert!(panics(|| file.write_at(PAGE_BYTES, b"x").is_ok()));
    assert!(panics(|| file.zero(0..PAGE_BYTES + 1).is_ok()));
    assert!(panics(|| file.populate_read(0..2 * PAGE_BYTES).is_ok()));
    assert!(panics(|| file.write_at(u64::MAX, b"xy").is_ok()));
}

fn zeroing_clears_exactly_the_range<D: Disk>(disk: &D, dir: &Path) {
    let file = disk.create(&dir.join("a"), 3 * PAGE_BYTES, 0).expect("create");
    let len = usize::try_from(file.len()).expect("small");
    file.write_at(0, &vec![7; len]).expect("write");
    file.zero(100..2 * PAGE_BYTES + 5).expect("zero");
    let bytes = file.slice(0..file.len());
    let nonzero = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at);
    let cleared_end = usize::try_from(2 * PAGE_BYTES + 5).expect("small");
    assert!(nonzero.eq((0..100).chain(cleared_end..len)));
}

fn slice_outlives_file_and_name<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("a");
    let file = disk.create(&path, PAGE_BYTES, PAGE_BYTES).expect("create");
    file.write_at(0, b"still here").expect("write");
    let slice = file.slice(0..10);
    drop(file);
    disk.unlink(&path).expect("unlink");
    disk.sync_dir(dir).expect("sync");
    assert!(!disk.exists(&path).expect("look up"));
    assert_eq!(slice, b"still here"[..]);
}

fn mapped_file_cannot_be_cut<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("a");
    let file = disk.create(&path, 4 * PAGE_BYTES, 4 * PAGE_BYTES).expect("create");
    file.write_at(0, b"kept").expect("write");
    let slice = file.slice(0..4);
    assert!(matches!(disk.shrink(&path, PAGE_BYTES), Err(DiskError::InUse { .. })));
    drop(file);
    let refused = disk.shrink(&path, PAGE_BYTES);
    assert!(matches!(refused, Err(DiskError::InUse { .. })), "a slice maps it: {refused:?}");
    drop(slice);
    disk.shrink(&path, PAGE_BYTES).expect("nobody has it open");
    disk.shrink(&path, 2 * PAGE_BYTES).expect("cutting to more does nothing");
    let file = disk.open(&path, 0).expect("open");
    assert_eq!(file.len(), PAGE_BYTES);
    assert_eq!(file.slice(0..4), b"kept"[..]);
}

fn directories_list_in_order<D: Disk>(disk: &D, dir: &Path) {
    disk.create_dir(&dir.join("m")).expect("create a directory");
    for name in ["z", "a"] {
        drop(disk.create(&dir.join(name), 10, 10).expect("create"));
    }
    let entries = disk.list(dir).expect("list");
    let entries: Vec<_> =
        entries.iter().map(|entry| (entry.name.as_str(), entry.is_dir, entry.bytes)).collect();
    assert_eq!(entries, [("a", false, 10), ("m", true, 0), ("z", false, 10)]);
    drop(disk.create(&dir.join("m/inside"), 0, 0).expect("create"));
    assert!(disk.remove_dir(&dir.join("m")).is_err(), "it is not empty");
    disk.unlink(&dir.join("m/inside")).expect("unlink");
    disk.remove_dir(&dir.join("m")).expect("remove the empty directory");
    assert_eq!(disk.list(dir).expect("list").len(), 2);
}

fn renaming_replaces<D: Disk>(disk: &D, dir: &Path) {
    let (old, new) = (dir.join("old"), dir.join("new"));
    for (path, content) in [(&old, b"old"), (&new, b"new")] {
        let file = disk.create(path, 3, 3).expect("create");
        file.write_at(0, content).expect("write");
    }
    disk.rename(&old, &new).expect("rename");
    assert!(!disk.exists(&old).expect("look up"));
    assert_eq!(disk.open(&new, 0).expect("open").slice(0..3), b"old"[..]);
    disk.create_dir(&dir.join("d")).expect("create a directory");
    disk.rename(&new, &dir.join("d/new")).expect("rename into a directory");
    disk.rename(&dir.join("d"), &dir.join("e")).expect("rename a directory");
    assert!(disk.exists(&dir.join("e/new")).expect("look up"));
    disk.sync_dir(dir).expect("sync");
}

fn absent_is_reported<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("absent");
    assert!(!disk.exists(&path).expect("look up"));
    assert!(disk.open(&path, 0).expect_err("open").is_not_found());
    assert!(disk.unlink(&path).expect_err("unlink").is_not_found());
    assert!(disk.rename(&path, &dir.join("b")).expect_err("rename").is_not_found());
    assert!(disk.list(&path).expect_err("list").is_not_found());
    assert!(disk.shrink(&path, 0).expect_err("shrink").is_not_found());
    assert!(disk.create(&path.join("x"), 0, 0).expect_err("create").is_not_found());
    assert!(disk.remove_dir(&path).expect_err("remove").is_not_found());
    assert_eq!(disk.read_file(&path, 10).expect("absence is an answer"), None);
}

fn small_file_is_replaced_whole<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("state");
    for content in [b"first".as_slice(), b"the second", b""] {
        disk.write_file(&path, content).expect("write");
        assert_eq!(disk.read_file(&path, 10).expect("read").as_deref(), Some(content));
    }
    disk.write_file(&path, b"eleven byte").expect("write");
    let refused = disk.read_file(&path, 10);
    assert!(matches!(refused, Err(DiskError::TooLarge { max_bytes: 10, .. })), "{refused:?}");
    assert_eq!(disk.list(dir).expect("list").len(), 1, "nothing temporary is left");
    let leftover = dir.join("state.tmp");
    drop(disk.create(&leftover, 100, 100).expect("what a crash may leave"));
    disk.write_file(&path, b"after").expect("write over the leftover");
    assert_eq!(disk.read_file(&path, 10).expect("read").as_deref(), Some(&b"after"[..]));
}

fn lock_is_exclusive<D: Disk>(disk: &D, dir: &Path) {
    let path = dir.join("LOCK");
    let lock = disk.lock(&path).expect("lock");
    let refused = disk.lock(&path);
    assert!(matches!(refused, Err(DiskError::Locked { .. })), "{refused:?}");
    drop(lock);
    drop(disk.lock(&path).expect("lock again"));
}

/// Whether a call panics, as it should on a caller's bug.
fn panics<T>(call: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}
