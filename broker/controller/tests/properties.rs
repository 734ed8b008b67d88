//! Random commands against what must hold of every image, and of every way to get to it.

#![expect(clippy::unwrap_used, reason = "in tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use tidemark_controller::{
    AddPartitions, AlterTopic, Command, CreateTopic, DeleteTopic, Image, IncarnationId,
    MetadataRecord, RegisterBroker, settings::SETTINGS,
};
use tidemark_protocol::{TopicId, messages::TopicSettings};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => (0..6_u8).prop_map(|n| format!("topic-{n}")),
        1 => ".{0,4}",
    ]
}

fn name_of_setting() -> impl Strategy<Value = String> {
    let known = (0..SETTINGS.len()).prop_map(|index| SETTINGS[index].name.to_owned());
    prop_oneof![9 => known, 1 => "[a-z_]{0,12}"]
}

fn value_of_setting() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("1MiB".to_owned()),
        Just("1d".to_owned()),
        Just("compact".to_owned()),
        Just("memory".to_owned()),
        Just("unlimited".to_owned()),
        Just("2".to_owned()),
        ".{0,8}",
    ]
}

fn some_settings() -> impl Strategy<Value = TopicSettings> {
    prop::collection::btree_map(name_of_setting(), value_of_setting(), 0..3)
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => (0..4_u32, any::<u8>()).prop_map(|(broker_id, run)| {
            Command::RegisterBroker(RegisterBroker {
                broker_id,
                incarnation: IncarnationId([run; 16]),
                host: "localhost".to_owned(),
                port: 9092,
                rack: None,
            })
        }),
        4 => (name(), any::<[u8; 16]>(), 0..9_u32, 0..5_u16, some_settings(), any::<u64>(), prop::bool::weighted(0.1))
            .prop_map(|(name, id, partitions, replication_factor, settings, seed, validate_only)| {
                Command::CreateTopic(CreateTopic {
                    name, id: TopicId(id), partitions, replication_factor, settings, seed, validate_only,
                })
            }),
        1 => (name(), prop::option::weighted(0.2, any::<[u8; 16]>()))
            .prop_map(|(name, id)| Command::DeleteTopic(DeleteTopic { name, id: id.map(TopicId) })),
        2 => (name(), some_settings(), prop::collection::vec(name_of_setting(), 0..2), any::<bool>())
            .prop_map(|(name, set, unset, validate_only)| {
                Command::AlterTopic(AlterTopic { name, set, unset, validate_only })
            }),
        2 => (name(), 0..20_u32, any::<u64>(), prop::bool::weighted(0.1))
            .prop_map(|(name, partitions, seed, validate_only)| {
                Command::AddPartitions(AddPartitions { name, partitions, seed, validate_only })
            }),
    ]
}

/// What holds of every image.
fn check(image: &Image) {
    let topics: Vec<_> = image.topics().collect();
    assert!(topics.is_sorted_by(|a, b| a.name < b.name));
    let partitions: u32 = topics.iter().map(|topic| topic.partition_count()).sum();
    assert_eq!(partitions, image.partition_count());
    assert_eq!(topics.len(), image.topic_count());
    for topic in topics {
        assert_eq!(image.topic(&topic.name), Some(topic));
        assert_eq!(image.topic_by_id(topic.id), Some(topic));
        assert!(topic.partition_count() > 0);
        for partition in &topic.partitions {
            let replicas: BTreeSet<_> = partition.replicas.iter().collect();
            assert_eq!(replicas.len(), usize::from(topic.replication_factor()), "{partition:?}");
            assert!(replicas.iter().all(|id| image.broker(**id).is_some()), "{partition:?}");
            assert!(!partition.isr.is_empty(), "{partition:?}");
            assert!(partition.isr.iter().all(|id| replicas.contains(id)), "{partition:?}");
            assert!(
                partition.leader.is_some_and(|id| partition.isr.contains(&id)),
                "{partition:?}"
            );
        }
    }
}

/// Epochs only grow, and a leader changes only with its epoch.
fn check_step(before: &Image, after: &Image) {
    assert!(after.metadata_index() >= before.metadata_index());
    for broker in before.brokers() {
        assert!(after.broker(broker.id).unwrap().epoch >= broker.epoch);
    }
    for old in before.topics() {
        let Some(new) = after.topic_by_id(old.id) else { continue };
        assert!(new.partition_count() >= old.partition_count());
        for (old, new) in old.partitions.iter().zip(&new.partitions) {
            assert!(
                new.leader_epoch >= old.leader_epoch && new.partition_epoch >= old.partition_epoch
            );
            assert!(old == new || new.partition_epoch > old.partition_epoch, "{old:?} {new:?}");
            assert!(old.leader == new.leader || new.leader_epoch > old.leader_epoch);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_image_is_what_its_log_says(commands in prop::collection::vec(command(), 1..60)) {
        let mut image = Image::default();
        let mut log: Vec<Vec<u8>> = Vec::new();
        for command in &commands {
            let before = image.clone();
            let Ok((records, _)) = image.decide(command) else { continue };
            for record in &records {
                image.apply(image.metadata_index(), record).unwrap();
            }
            log.extend(records.iter().map(MetadataRecord::encode));
            check(&image);
            check_step(&before, &image);
        }
        prop_assert_eq!(image.metadata_index(), log.len() as u64);

        // Replayed from the beginning, and from a snapshot taken half-way.
        let mut replayed = Image::default();
        let half = log.len() / 2;
        let mut resumed = Image::default();
        for (index, bytes) in log.iter().enumerate() {
            let record = MetadataRecord::decode(bytes).unwrap();
            replayed.apply(index as u64, &record).unwrap();
            if index < half {
                resumed.apply(index as u64, &record).unwrap();
            }
        }
        let mut resumed = Image::from_snapshot(&resumed.to_snapshot()).unwrap();
        for (index, bytes) in log.iter().enumerate().skip(half) {
            resumed.apply(index as u64, &MetadataRecord::decode(bytes).unwrap()).unwrap();
        }
        prop_assert_eq!(&replayed, &image);
        prop_assert_eq!(&resumed, &image);
        prop_assert_eq!(Image::from_snapshot(&image.to_snapshot()).unwrap(), image);
    }

    #[test]
    fn bytes_that_are_no_record_or_snapshot_are_refused_in_peace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Image::from_snapshot(&bytes).is_err());
        if let Ok(record) = MetadataRecord::decode(&bytes) {
            drop(Image::default().apply(0, &record));
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
