//! What each command comes to, and what it is refused with.

#![expect(clippy::unwrap_used, reason = "in tests")]

use tidemark_controller::{
    AddPartitions, AlterTopic, Answer, CLUSTER_PARTITIONS_MAX, Command, CreateTopic, DeleteTopic,
    Image, IncarnationId, MetadataRecord, RegisterBroker, TopicDurability,
};
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, TopicId, TopicPartition, limits::TOPIC_PARTITIONS_MAX,
    messages::TopicSettings,
};

fn register(broker_id: BrokerId, run: u8) -> Command {
    Command::RegisterBroker(RegisterBroker {
        broker_id,
        incarnation: IncarnationId([run; 16]),
        host: format!("broker-{broker_id}"),
        port: 9092,
        rack: None,
    })
}

fn create(name: &str, partitions: u32, replication_factor: u16) -> CreateTopic {
    // A different id for every name.
    let mut id = [1; 16];
    for (place, byte) in name.bytes().take(16).enumerate() {
        id[place] ^= byte;
    }
    CreateTopic {
        name: name.to_owned(),
        id: TopicId(id),
        partitions,
        replication_factor,
        settings: TopicSettings::new(),
        seed: 0,
        validate_only: false,
    }
}

fn settings(pairs: &[(&str, &str)]) -> TopicSettings {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Decides and applies.
fn run(image: &mut Image, command: &Command) -> Result<Answer, Failure> {
    let (records, answer) = image.decide(command)?;
    for record in &records {
        image.apply(image.metadata_index(), record).unwrap();
    }
    Ok(answer)
}

fn cluster(brokers: u32) -> Image {
    let mut image = Image::default();
    for id in 1..=brokers {
        run(&mut image, &register(id, 1)).unwrap();
    }
    image
}

#[track_caller]
fn refused(image: &Image, command: &Command, code: ErrorCode, hint: &str) {
    let failure = image.decide(command).expect_err("should be refused");
    assert_eq!(failure.code, code, "{failure}");
    assert!(failure.message.contains(hint), "{:?} lacks {hint:?}", failure.message);
}

#[test]
fn a_topic_is_created_with_its_partitions_in_one_decision() {
    let mut image = cluster(1);
    let mut command = create("orders", 3, 1);
    command.settings = settings(&[("durability", "memory"), ("segment_bytes", "1MiB")]);
    let (records, _) = image.decide(&Command::CreateTopic(command.clone())).unwrap();
    assert_eq!(records.len(), 2);
    let answer = run(&mut image, &Command::CreateTopic(command.clone())).unwrap();
    let Answer::TopicCreated(response) = answer else { panic!("{answer:?}") };
    assert_eq!((response.id, response.partitions), (command.id, 3));
    assert_eq!(response.settings["segment_bytes"], "1048576");

    let topic = image.topic("orders").unwrap();
    assert_eq!(topic.config.durability, TopicDurability::Memory);
    assert_eq!((topic.partition_count(), topic.replication_factor()), (3, 1));
    assert_eq!(image.topic_by_id(command.id), Some(topic));
    assert_eq!((image.topic_count(), image.partition_count()), (1, 3));
    let partition = image.partition(TopicPartition { topic_id: command.id, partition: 2 }).unwrap();
    assert_eq!((partition.leader, partition.leader_epoch), (Some(1), 0));
    assert_eq!((&*partition.replicas, &*partition.isr), (&[1][..], &[1][..]));
}

#[test]
fn a_topic_that_cannot_be_is_refused_with_the_reason() {
    let mut image = cluster(1);
    run(&mut image, &Command::CreateTopic(create("orders", 1, 1))).unwrap();
    let check = |command: CreateTopic, code, hint: &str| {
        refused(&image, &Command::CreateTopic(command), code, hint);
    };
    check(create("orders", 1, 1), ErrorCode::TopicExists, "exists already");
    check(create("or/ders", 1, 1), ErrorCode::InvalidTopicName, "'/'");
    check(create("a", 0, 1), ErrorCode::InvalidPartitions, "1 to 100000");
    check(create("a", TOPIC_PARTITIONS_MAX + 1, 1), ErrorCode::InvalidPartitions, "1 to 100000");
    check(create("a", 1, 0), ErrorCode::InvalidPartitions, "1 to 32");
    check(create("a", 1, 2), ErrorCode::InvalidPartitions, "there is 1");
    let mut command = create("a", 1, 1);
    command.settings = settings(&[("retention", "7d")]);
    check(command, ErrorCode::InvalidConfig, "no topic setting \"retention\"");
    let same_id = CreateTopic { name: "b".to_owned(), ..create("orders", 1, 1) };
    check(same_id, ErrorCode::InvalidRequest, "cannot be given");
    check(CreateTopic { id: TopicId::ZERO, ..create("a", 1, 1) }, ErrorCode::InvalidRequest, "id");
}

#[test]
fn the_cluster_as_a_whole_has_a_bound_too() {
    let mut image = cluster(1);
    for name in ["a", "b"] {
        let command = create(name, TOPIC_PARTITIONS_MAX, 1);
        run(&mut image, &Command::CreateTopic(command)).unwrap();
    }
    assert_eq!(image.partition_count(), CLUSTER_PARTITIONS_MAX);
    let one_more = Command::CreateTopic(create("c", 1, 1));
    refused(&image, &one_more, ErrorCode::InvalidPartitions, "room for 0 more");
    run(&mut image, &Command::DeleteTopic(DeleteTopic { name: "a".to_owned(), id: None })).unwrap();
    run(&mut image, &one_more).unwrap();
}

#[test]
fn validating_changes_nothing() {
    let mut image = cluster(1);
    let create_only = CreateTopic { validate_only: true, ..create("orders", 1, 1) };
    let (records, answer) = image.decide(&Command::CreateTopic(create_only)).unwrap();
    let Answer::TopicCreated(response) = answer else { panic!("{answer:?}") };
    assert_eq!((records.len(), response.id), (0, TopicId::ZERO));
    run(&mut image, &Command::CreateTopic(create("orders", 1, 1))).unwrap();
    for command in [
        Command::AlterTopic(AlterTopic {
            name: "orders".to_owned(),
            set: settings(&[("durability", "memory")]),
            unset: Vec::new(),
            validate_only: true,
        }),
        Command::AddPartitions(AddPartitions {
            name: "orders".to_owned(),
            partitions: 5,
            seed: 0,
            validate_only: true,
        }),
    ] {
        assert_eq!(image.decide(&command).unwrap().0, [], "{command:?}");
    }
}

#[test]
fn a_topic_is_deleted_by_name_but_never_its_successor() {
    let mut image = cluster(1);
    run(&mut image, &Command::CreateTopic(create("orders", 2, 1))).unwrap();
    let id = image.topic("orders").unwrap().id;
    let by_id = |name: &str, id| Command::DeleteTopic(DeleteTopic { name: name.to_owned(), id });
    let unknown = ErrorCode::UnknownTopicOrPartition;
    refused(&image, &by_id("order", None), unknown, "Did you mean \"orders\"?");
    refused(&image, &by_id("orders", Some(TopicId([9; 16]))), unknown, "created again");
    run(&mut image, &by_id("orders", Some(id))).unwrap();
    assert_eq!((image.topic_count(), image.partition_count()), (0, 0));
    assert_eq!((image.topic("orders"), image.topic_by_id(id)), (None, None));
}

#[test]
fn settings_change_all_or_none() {
    let mut image = cluster(1);
    let mut command = create("orders", 1, 1);
    command.settings = settings(&[("retention_ms", "1d"), ("durability", "memory")]);
    run(&mut image, &Command::CreateTopic(command)).unwrap();
    let alter = |set: &[(&str, &str)], unset: &[&str]| {
        Command::AlterTopic(AlterTopic {
            name: "orders".to_owned(),
            set: settings(set),
            unset: unset.iter().map(ToString::to_string).collect(),
            validate_only: false,
        })
    };
    let invalid = ErrorCode::InvalidConfig;
    refused(
        &image,
        &alter(&[("segment_ms", "1h"), ("retention_ms", "x")], &[]),
        invalid,
        "retention_ms",
    );
    refused(&image, &alter(&[], &["durabilty"]), invalid, "Did you mean \"durability\"?");
    refused(
        &image,
        &alter(&[("durability", "disk")], &["durability"]),
        invalid,
        "both set and unset",
    );
    refused(&image, &alter(&[("segment_bytes", "64KiB")], &[]), invalid, "must fit");

    let answer = run(&mut image, &alter(&[("retention_ms", "2d")], &["durability"])).unwrap();
    let Answer::TopicAltered(response) = answer else { panic!("{answer:?}") };
    assert_eq!(response.settings, settings(&[("retention_ms", "172800000")]));
    let topic = image.topic("orders").unwrap();
    assert_eq!(topic.config.durability, TopicDurability::Disk);
    assert_eq!(topic.config.retention_ms, Some(172_800_000));
    let again = image.decide(&alter(&[("retention_ms", "48h")], &["durability"])).unwrap();
    assert_eq!(again.0, [], "nothing to change, nothing to commit");
}

#[test]
fn partitions_are_added_and_never_taken_away() {
    let mut image = cluster(2);
    run(&mut image, &Command::CreateTopic(create("orders", 2, 2))).unwrap();
    let add = |partitions| {
        let name = "orders".to_owned();
        Command::AddPartitions(AddPartitions { name, partitions, seed: 5, validate_only: false })
    };
    refused(&image, &add(1), ErrorCode::InvalidPartitions, "cannot go down to 1");
    refused(&image, &add(100_001), ErrorCode::InvalidPartitions, "1 to 100000");
    assert_eq!(image.decide(&add(2)).unwrap().0, []);
    run(&mut image, &add(5)).unwrap();
    let topic = image.topic("orders").unwrap();
    assert_eq!((topic.partition_count(), image.partition_count()), (5, 5));
    assert!(topic.partitions.iter().all(|partition| partition.replicas.len() == 2));
}

#[test]
fn a_broker_that_starts_anew_gets_a_new_epoch_and_so_does_what_it_leads() {
    let mut image = cluster(1);
    let first_epoch = image.broker(1).unwrap().epoch;
    run(&mut image, &Command::CreateTopic(create("orders", 2, 1))).unwrap();
    let again = run(&mut image, &register(1, 1)).unwrap();
    assert_eq!(again, Answer::BrokerRegistered { broker_epoch: first_epoch }, "the same process");
    let expected = image.metadata_index();
    let anew = run(&mut image, &register(1, 2)).unwrap();
    assert_eq!(anew, Answer::BrokerRegistered { broker_epoch: expected });
    assert_eq!(image.broker(1).unwrap().epoch, expected);
    for partition in &image.topic("orders").unwrap().partitions {
        assert_eq!((partition.leader, partition.leader_epoch), (Some(1), 1));
        assert_eq!((partition.partition_epoch, &*partition.isr), (1, &[1][..]));
    }
}

#[test]
fn a_broker_that_starts_anew_leaves_the_in_sync_sets_it_shared() {
    let mut image = cluster(3);
    run(&mut image, &Command::CreateTopic(create("orders", 3, 3))).unwrap();
    run(&mut image, &register(2, 2)).unwrap();
    for partition in &image.topic("orders").unwrap().partitions {
        assert!(!partition.isr.contains(&2) && partition.isr.len() == 2, "{partition:?}");
        let led = partition.replicas[0] == 2;
        assert_eq!(partition.leader_epoch, u32::from(led), "{partition:?}");
        let heir = partition.replicas.iter().copied().find(|id| *id != 2);
        assert_eq!(partition.leader, heir, "the first in sync, in order of preference");
    }
}

#[test]
fn a_record_that_does_not_fit_is_an_error_and_not_a_guess() {
    let mut image = cluster(1);
    run(&mut image, &Command::CreateTopic(create("orders", 1, 1))).unwrap();
    let topic_id = image.topic("orders").unwrap().id;
    let next = image.metadata_index();
    let change = |isr: &[BrokerId], leader, leader_epoch, partition_epoch| {
        let isr = isr.to_vec();
        let partition = 0;
        MetadataRecord::PartitionChanged {
            topic_id,
            partition,
            isr,
            leader,
            leader_epoch,
            partition_epoch,
        }
    };
    let deleted = MetadataRecord::TopicDeleted { topic_id: TopicId([9; 16]) };
    let added = |first_partition, replicas| MetadataRecord::PartitionsAdded {
        topic_id,
        first_partition,
        replicas,
    };
    for (index, record, problem) in [
        (next + 1, deleted.clone(), "does not follow"),
        (next, deleted, "does not exist"),
        (next, change(&[1], Some(1), 1, 0), "older epoch"),
        (next, change(&[2], Some(2), 1, 1), "not among its replicas"),
        (next, change(&[], None, 1, 1), "not among its replicas"),
        (next, change(&[1], Some(2), 1, 1), "not in sync"),
        (next, change(&[1], None, 0, 1), "same epoch"),
        (next, added(0, vec![vec![1]]), "out of turn"),
        (next, added(1, vec![vec![]]), "without replicas"),
        (next, added(1, vec![vec![1, 1]]), "two replicas"),
    ] {
        let error = image.clone().apply(index, &record).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error:?} lacks {problem:?}");
    }
}
