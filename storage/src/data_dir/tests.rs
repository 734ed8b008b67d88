//! Tests of a data directory on the real disk.

use std::path::Path;

use tidemark_protocol::TopicId;

use super::*;
use crate::disk::RealDisk;

fn identity(node_id: BrokerId) -> DataDirIdentity {
    DataDirIdentity { cluster_id: "c".to_owned(), node_id, directory_id: [7; 16] }
}

fn open(root: &Path) -> DataDir<RealDisk> {
    let locked = LockedDataDir::lock(RealDisk::new(), root, "pid 1").unwrap();
    locked.open(identity(1)).unwrap()
}

fn checkpoint(flushed_offset: u64) -> Checkpoint {
    Checkpoint {
        incarnation: 1,
        log_start: 0,
        flushed_offset,
        sealed: Vec::new(),
        tip: None,
        truncations: 0,
        epochs: Vec::new(),
        summary: None,
        clean: false,
    }
}

const LOG: TopicPartition = TopicPartition { topic_id: TopicId([1; 16]), partition: 3 };

#[test]
fn a_directory_is_created_then_opened_again_by_its_owner() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("data");
    drop(open(&root));
    let locked = LockedDataDir::lock(RealDisk::new(), &root, "pid 2").unwrap();
    assert_eq!(locked.identity().unwrap(), Some(identity(1)));
    locked.open(identity(1)).unwrap();
}

#[test]
fn a_locked_directory_is_refused_and_says_who_holds_it() {
    let temp = tempfile::tempdir().unwrap();
    let _held = open(temp.path());
    let error = LockedDataDir::lock(RealDisk::new(), temp.path(), "pid 2").unwrap_err();
    assert!(matches!(&error, OpenError::Locked { holder, .. } if holder == "pid 1"), "{error}");
}

#[test]
fn somebody_elses_directory_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    let locked = LockedDataDir::lock(RealDisk::new(), temp.path(), "pid 2").unwrap();
    let error = locked.open(identity(2)).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn a_damaged_missing_or_newer_format_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    let path = temp.path().join(FORMAT_FILE);
    let good = std::fs::read(&path).unwrap();
    let refusal = || {
        let locked = LockedDataDir::lock(RealDisk::new(), temp.path(), "pid 2").unwrap();
        locked.open(identity(1)).unwrap_err()
    };
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(matches!(refusal(), OpenError::Damaged { .. }));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(refusal(), OpenError::Damaged { .. }));
    let mut newer = good[..good.len() - 4].to_vec();
    newer[5] = 2;
    let crc = crc32fast::hash(&newer).to_be_bytes();
    newer.extend_from_slice(&crc);
    std::fs::write(&path, newer).unwrap();
    assert!(matches!(refusal(), OpenError::NewerFormat { found: 2, .. }));
}

#[test]
fn checkpoints_come_back_and_only_a_closed_directory_is_clean() {
    let temp = tempfile::tempdir().unwrap();
    let dir = open(temp.path());
    dir.write_checkpoints(&[(LOG, checkpoint(5))]).unwrap();
    drop(dir);
    let dir = open(temp.path());
    let mut checkpoints = dir.load_checkpoints().unwrap();
    assert!(!checkpoints.is_clean());
    assert_eq!(checkpoints.metadata_index(), 0);
    assert_eq!(checkpoints.take_logs().remove(&LOG), Some(checkpoint(5)));
    dir.close(&[(LOG, checkpoint(9))], Some(7), 12).unwrap();
    let dir = open(temp.path());
    let mut checkpoints = dir.load_checkpoints().unwrap();
    assert!(checkpoints.is_clean());
    assert_eq!((checkpoints.clean_epoch(), checkpoints.metadata_index()), (Some(7), 12));
    let closed = checkpoints.take_logs().remove(&LOG);
    assert_eq!(closed, Some(Checkpoint { clean: true, ..checkpoint(9) }));
    let again = dir.load_checkpoints().unwrap();
    assert!(!again.is_clean(), "the mark is used up");
}

#[test]
fn a_forgotten_log_does_not_come_back_with_checkpoints_that_were_taken_before() {
    const OTHER: TopicPartition = TopicPartition { partition: 4, ..LOG };
    let temp = tempfile::tempdir().unwrap();
    let dir = open(temp.path());
    let both = [(LOG, checkpoint(5)), (OTHER, checkpoint(6))];
    dir.begin_checkpoints();
    dir.write_checkpoints(&both).unwrap();
    dir.begin_checkpoints();
    dir.forget_checkpoints(&[LOG]).unwrap();
    for write_again in [false, true] {
        if write_again {
            dir.write_checkpoints(&both).unwrap();
        }
        let mut checkpoints = dir.load_checkpoints().unwrap();
        assert!(checkpoints.take_logs().into_keys().eq([OTHER]));
    }
    // What is taken from then on is of another log in its place.
    dir.begin_checkpoints();
    dir.write_checkpoints(&both).unwrap();
    assert_eq!(dir.load_checkpoints().unwrap().len(), 2);
}

#[test]
fn a_damaged_checkpoint_file_counts_as_absent() {
    let temp = tempfile::tempdir().unwrap();
    let dir = open(temp.path());
    dir.write_checkpoints(&[(LOG, checkpoint(5))]).unwrap();
    let path = temp.path().join(CHECKPOINT_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(dir.load_checkpoints().unwrap().is_empty());
}
