//! A real file system that runs full answers with an error, never with a signal.

use std::{path::Path, process::Command};

use tidemark_storage::disk::{Disk, DiskFile, PAGE_BYTES, RealDisk};

/// Every Linux has this memory file system, and it refuses at once what is larger than itself, so
/// that anyone can run this test and nothing else on the machine runs out of space.
#[test]
fn asking_for_more_than_the_file_system_has_is_full_and_changes_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in shared memory");
    let disk = RealDisk::new();
    let too_much = disk.space(dir.path()).expect("space").total_bytes + (1 << 30);
    let path = dir.path().join("a");
    assert!(disk.create(&path, too_much, too_much).expect_err("create").is_full());
    assert!(!disk.exists(&path).expect("look up"), "no half-made file is left");

    let file = disk.create(&path, PAGE_BYTES, too_much).expect("create");
    assert!(file.grow(too_much).expect_err("grow").is_full());
    assert_eq!(file.len(), PAGE_BYTES);
    file.write_at(0, b"still writable").expect("write");
    file.grow(2 * PAGE_BYTES).expect("a smaller step fits");
    assert_eq!(file.slice(0..14), b"still writable"[..]);
}

/// The same to the last page, on a file system of one megabyte. It needs the right to mount, which a
/// gate that runs as root has; without it, only the test above runs.
#[test]
fn a_file_system_filled_to_the_last_page_never_signals() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(mounted) = SmallFileSystem::mount(dir.path()) else {
        println!("no right to mount a file system here: the last page is not tested");
        return;
    };
    let disk = RealDisk::new();
    let path = dir.path().join("a");
    let file = disk.create(&path, PAGE_BYTES, 64 << 20).expect("create");
    let mut len = file.len();
    let refused = loop {
        match file.grow(len + 16 * PAGE_BYTES) {
            Ok(()) => {
                len = file.len();
                let page = vec![1; usize::try_from(PAGE_BYTES).expect("small")];
                for at in (0..len).step_by(page.len()) {
                    file.write_at(at, &page).expect("write");
                }
            }
            Err(error) => break error,
        }
    };
    assert!(refused.is_full(), "{refused}");
    assert_eq!(file.len(), len);
    file.sync(0..len).expect("sync");
    assert!(file.slice(0..len).iter().all(|byte| *byte == 1));

    // A hole, which only somebody else can have made, is an error when written to and not a signal.
    let sparse = dir.path().join("sparse");
    std::fs::File::create(&sparse).and_then(|file| file.set_len(4 << 20)).expect("a sparse file");
    let sparse = disk.open(&sparse, 0).expect("open");
    let whole = vec![1; 4 << 20];
    assert!(sparse.write_at(0, &whole).expect_err("there is no space for it").is_full());

    disk.unlink(&path).expect("deleting works on a full disk");
    drop(file);
    drop(disk.create(&path, 16 * PAGE_BYTES, 16 * PAGE_BYTES).expect("space came back"));
    drop(sparse);
    drop(mounted);
}

struct SmallFileSystem<'a> {
    at: &'a Path,
}

impl<'a> SmallFileSystem<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status()
            .ok()?;
        status.success().then_some(Self { at })
    }
}

impl Drop for SmallFileSystem<'_> {
    fn drop(&mut self) {
        // Lazily: a failing test may still have files open, and its message matters more.
        let status = Command::new("umount").arg("--lazy").arg(self.at).status();
        let unmounted = status.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "the file system stays mounted");
    }
}
