//! Bytes that nobody means well with: the corpus of the fuzz target, and damage made at random.

#[expect(unreachable_pub, reason = "a library for the fuzz target")]
#[path = "../../fuzz/entry.rs"]
mod entry;

use std::path::Path;

use proptest::prelude::*;
use tidemark_protocol::batch::{Compression, stamp};

use crate::model::batch;

/// A segment as a log writes it.
fn segment() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = 0;
    for (index, codec) in Compression::ALL.into_iter().enumerate() {
        let batch = batch(codec, 1000, &[vec![7; 40 * index], b"second".to_vec()]);
        let start = bytes.len();
        bytes.extend_from_slice(batch.bytes());
        stamp(&mut bytes[start..], next, 1);
        next += 2;
    }
    bytes
}

#[test]
fn the_corpus_of_the_fuzz_target_opens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/recovery");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        entry::recovery(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 5, "{count} files: the corpus is there");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_segment_with_arbitrary_damage_opens(
        setting in 0_u8..4,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = segment();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend_from_slice(&tail);
        bytes.insert(0, setting);
        entry::recovery(&bytes);
    }

    #[test]
    fn arbitrary_bytes_open(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        entry::recovery(&bytes);
    }
}
