//! Hostile bytes through the entry functions of the fuzz targets: the committed corpora, random bytes, damaged
//! corpora, and bombs whose cost in memory is measured.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(unreachable_pub, reason = "a library for the fuzz targets")]
#[path = "../fuzz/entry.rs"]
mod entry;

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*};
use tidemark_protocol::messages::FetchMetadataResponse;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 3] =
    [("frame", entry::frame), ("batch", entry::batch), ("message", entry::message)];

/// The corpus of a target, sorted by file name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpora_pass() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 10, "the corpus of {name} has {} seeds", corpus.len());
        for seed in corpus {
            target(&seed);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_pass(bytes in vec(any::<u8>(), 0..600)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }

    #[test]
    fn damaged_seeds_pass(
        choice: prop::sample::Index,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
        cuts: bool,
    ) {
        for (name, target) in TARGETS {
            let mut seed = choice.get(&corpus(name)).clone();
            if seed.is_empty() {
                continue;
            }
            for (at, byte) in &changes {
                let at = at.index(seed.len());
                seed[at] = *byte;
            }
            if cuts {
                seed.truncate(cut.index(seed.len()));
            }
            target(&seed);
        }
    }
}

#[test]
fn a_metadata_payload_that_was_damaged_on_its_way_is_told_apart() {
    let mut response = FetchMetadataResponse {
        cluster_id: "demo".to_owned(),
        leader: Some(1),
        term: 2,
        committed_index: 41,
        entries: Vec::new(),
        snapshot: None,
        payload_crc: 0,
    };
    let payload = b"records of entries".to_vec();
    response.seal(&payload);
    assert!(response.is_of(&payload));
    for at in 0..payload.len() {
        let mut damaged = payload.clone();
        damaged[at] ^= 0x10;
        assert!(!response.is_of(&damaged), "byte {at}");
    }
    assert!(!response.is_of(&payload[1..]));
}
