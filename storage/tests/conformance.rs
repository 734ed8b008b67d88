//! Both disks pass the same suite.

use std::path::PathBuf;

use tidemark_storage::{
    disk::RealDisk,
    testing::{SimDisk, suite},
};

#[test]
fn real_disk_passes_the_suite() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let count = std::cell::Cell::new(0);
    suite(|| {
        count.set(count.get() + 1);
        let dir = root.path().join(count.get().to_string());
        std::fs::create_dir(&dir).expect("a fresh directory");
        (RealDisk::new(), dir)
    });
}

#[test]
fn simulated_disk_passes_the_suite() {
    suite(|| (SimDisk::new(1), PathBuf::from("/")));
}
