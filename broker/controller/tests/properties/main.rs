//! Random commands against what must hold of every image, and of every way to get to it.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod ghost;
mod invariants;
mod ops;

use proptest::prelude::*;
use tidemark_controller::{Answer, Command, Image, MetadataRecord, decode_entry, encode_entry};
use tidemark_protocol::messagepack;

use crate::{ghost::Ghost, invariants::check, ops::Player};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_image_is_what_its_log_says(ops in prop::collection::vec(ops::op(), 1..120)) {
        let mut image = Image::default();
        let mut player = Player::default();
        let mut ghost = Ghost::default();
        let mut log: Vec<Vec<u8>> = Vec::new();
        for op in ops::beginning().iter().chain(&ops) {
            let before = image.clone();
            let Some(command) = player.command(&image, op) else { continue };
            prop_assert_eq!(&Command::decode(&command.encode()).unwrap(), &command);
            let Ok((records, answer)) = image.decide(&command) else { continue };
            prop_assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer.clone());
            if records.is_empty() {
                continue;
            }
            image.apply(image.metadata_index(), &records).unwrap();
            log.push(encode_entry(&records));
            invariants::check_step(&before, &image);
            check(&image);
            ghost.follow(&before, &command, &answer, &image);
        }
        prop_assert_eq!(image.metadata_index(), log.len() as u64);
        check_replay(&image, &log);
    }

    #[test]
    fn bytes_that_are_nothing_are_refused_in_peace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Image::from_snapshot(&bytes).is_err());
        drop((Command::decode(&bytes), Answer::decode(&bytes)));
        if let Ok(records) = decode_entry(&bytes) {
            drop(Image::default().apply(0, &records));
        }
    }

    #[test]
    fn a_snapshot_with_any_bit_flipped_is_refused(place in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = Image::default().to_snapshot();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(Image::from_snapshot(&bytes).is_err());
    }
}

/// Replayed from the beginning, and from a snapshot taken half-way.
fn check_replay(image: &Image, log: &[Vec<u8>]) {
    let replay = |image: &mut Image, entries: &[Vec<u8>]| {
        for bytes in entries {
            image.apply(image.metadata_index(), &decode_entry(bytes).unwrap()).unwrap();
        }
    };
    let mut replayed = Image::default();
    replay(&mut replayed, &log[..log.len() / 2]);
    let mut resumed = Image::from_snapshot(&replayed.to_snapshot()).unwrap();
    assert_eq!(resumed, replayed);
    for image in [&mut replayed, &mut resumed] {
        replay(image, &log[log.len() / 2..]);
    }
    assert_eq!(&replayed, image);
    assert_eq!(&resumed, image);
    assert_eq!(&Image::from_snapshot(&image.to_snapshot()).unwrap(), image);
}

#[test]
fn lists_are_bounded_before_they_are_read() {
    let record = MetadataRecord::BrokerUnregistered { broker_id: 1 };
    let mut bytes = encode_entry(&vec![record; 200_001]);
    assert!(decode_entry(&bytes).is_err());
    bytes[0] = 9;
    assert!(decode_entry(&bytes).unwrap_err().to_string().contains("version 9"));
    let mut answer = Vec::new();
    messagepack::encode(&Answer::Reassigned(vec![Ok(()); 10_001]), &mut answer).unwrap();
    assert!(Answer::decode(&answer).is_err());
}
