//! Topics and their settings; records that do not fit.

use tidemark_controller::{
    AddPartitions, AlterTopic, Answer, CLUSTER_PARTITIONS_MAX, Command, CreateTopic, DeleteTopic,
    MetadataRecord, Partition, PartitionChange, SetDraining, TopicDurability,
};
use tidemark_protocol::{
    BrokerId, ErrorCode, TopicId, TopicPartition, limits::TOPIC_PARTITIONS_MAX,
};

use crate::cluster::{Cluster, create, register, settings_of as settings};

#[test]
fn a_topic_is_created_with_its_partitions_in_one_decision() {
    let mut cluster = Cluster::new(1);
    let mut command = create("orders", 3, 1);
    command.settings = settings(&[("durability", "memory"), ("segment_bytes", "1MiB")]);
    let (records, _) = cluster.image.decide(&Command::CreateTopic(command.clone())).unwrap();
    assert_eq!(records.len(), 2);
    let answer = cluster.run(&Command::CreateTopic(command.clone()));
    let Answer::TopicCreated(response) = answer else { panic!("{answer:?}") };
    assert_eq!((response.id, response.partitions), (command.id, 3));
    assert_eq!(response.settings["segment_bytes"], "1048576");

    let topic = cluster.image.topic("orders").unwrap();
    assert_eq!(topic.config.durability, TopicDurability::Memory);
    assert_eq!((topic.partition_count(), topic.replication_factor()), (3, 1));
    assert_eq!(cluster.image.topic_by_id(command.id), Some(topic));
    assert_eq!((cluster.image.topic_count(), cluster.image.partition_count()), (1, 3));
    let partition =
        cluster.image.partition(TopicPartition { topic_id: command.id, partition: 2 }).unwrap();
    assert_eq!((partition.leader, partition.leader_epoch), (Some(1), 0));
    assert_eq!((&*partition.replicas, &*partition.isr), (&[1][..], &[1][..]));
}

#[test]
fn a_topic_of_three_replicas_or_more_wants_a_majority_of_them_in_sync() {
    for (replicas, min) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3)] {
        let mut cluster = Cluster::new(5);
        cluster.run(&Command::CreateTopic(create("orders", 1, replicas)));
        let in_force =
            |cluster: &Cluster| cluster.image.topic("orders").unwrap().config.min_insync_replicas;
        assert_eq!(in_force(&cluster), min, "of {replicas}");
        let alter = |set: &[(&str, &str)], unset: &[&str]| {
            Command::AlterTopic(AlterTopic {
                name: "orders".to_owned(),
                set: settings(set),
                unset: unset.iter().map(ToString::to_string).collect(),
                validate_only: false,
            })
        };
        cluster.run(&alter(&[("min_insync_replicas", "1")], &[]));
        assert_eq!(in_force(&cluster), 1, "what is asked for is what one gets");
        cluster.run(&alter(&[], &["min_insync_replicas"]));
        assert_eq!(in_force(&cluster), min, "and without it what a new topic gets");
    }
    let mut cluster = Cluster::new(3);
    let settings = settings(&[("min_insync_replicas", "3")]);
    cluster.run(&Command::CreateTopic(CreateTopic { settings, ..create("orders", 1, 3) }));
    assert_eq!(cluster.image.topic("orders").unwrap().config.min_insync_replicas, 3);
}

#[test]
fn a_topic_that_cannot_be_is_refused_with_the_reason() {
    let mut cluster = Cluster::new(1);
    cluster.run(&Command::CreateTopic(create("orders", 1, 1)));
    let check = |command: CreateTopic, code, hint: &str| {
        cluster.refused(&Command::CreateTopic(command), code, hint);
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
    let mut cluster = Cluster::new(1);
    for name in ["a", "b"] {
        let command = create(name, TOPIC_PARTITIONS_MAX, 1);
        cluster.run(&Command::CreateTopic(command));
    }
    assert_eq!(cluster.image.partition_count(), CLUSTER_PARTITIONS_MAX);
    let one_more = Command::CreateTopic(create("c", 1, 1));
    cluster.refused(&one_more, ErrorCode::InvalidPartitions, "room for 0 more");
    cluster.run(&Command::DeleteTopic(DeleteTopic { name: "a".to_owned(), id: None }));
    cluster.run(&one_more);
}

#[test]
fn validating_changes_nothing() {
    let mut cluster = Cluster::new(1);
    let create_only = CreateTopic { validate_only: true, ..create("orders", 1, 1) };
    let (records, answer) = cluster.image.decide(&Command::CreateTopic(create_only)).unwrap();
    let Answer::TopicCreated(response) = answer else { panic!("{answer:?}") };
    assert_eq!((records.len(), response.id), (0, TopicId::ZERO));
    cluster.run(&Command::CreateTopic(create("orders", 1, 1)));
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
        assert_eq!(cluster.image.decide(&command).unwrap().0, [], "{command:?}");
    }
}

#[test]
fn a_topic_is_deleted_by_name_but_never_its_successor() {
    let mut cluster = Cluster::new(1);
    cluster.run(&Command::CreateTopic(create("orders", 2, 1)));
    let id = cluster.image.topic("orders").unwrap().id;
    let by_id = |name: &str, id| Command::DeleteTopic(DeleteTopic { name: name.to_owned(), id });
    let unknown = ErrorCode::UnknownTopicOrPartition;
    cluster.refused(&by_id("order", None), unknown, "Did you mean \"orders\"?");
    cluster.refused(&by_id("orders", Some(TopicId([9; 16]))), unknown, "created again");
    cluster.run(&by_id("orders", Some(id)));
    assert_eq!((cluster.image.topic_count(), cluster.image.partition_count()), (0, 0));
    assert_eq!((cluster.image.topic("orders"), cluster.image.topic_by_id(id)), (None, None));
}

#[test]
fn settings_change_all_or_none() {
    let mut cluster = Cluster::new(1);
    let mut command = create("orders", 1, 1);
    command.settings = settings(&[("retention_ms", "1d"), ("durability", "memory")]);
    cluster.run(&Command::CreateTopic(command));
    let alter = |set: &[(&str, &str)], unset: &[&str]| {
        Command::AlterTopic(AlterTopic {
            name: "orders".to_owned(),
            set: settings(set),
            unset: unset.iter().map(ToString::to_string).collect(),
            validate_only: false,
        })
    };
    let invalid = ErrorCode::InvalidConfig;
    cluster.refused(
        &alter(&[("segment_ms", "1h"), ("retention_ms", "x")], &[]),
        invalid,
        "retention_ms",
    );
    cluster.refused(&alter(&[], &["durabilty"]), invalid, "Did you mean \"durability\"?");
    cluster.refused(
        &alter(&[("durability", "disk")], &["durability"]),
        invalid,
        "both set and unset",
    );
    cluster.refused(&alter(&[("segment_bytes", "64KiB")], &[]), invalid, "must fit");

    let answer = cluster.run(&alter(&[("retention_ms", "2d")], &["durability"]));
    let Answer::TopicAltered(response) = answer else { panic!("{answer:?}") };
    assert_eq!(response.settings, settings(&[("retention_ms", "172800000")]));
    let topic = cluster.image.topic("orders").unwrap();
    assert_eq!(topic.config.durability, TopicDurability::Disk);
    assert_eq!(topic.config.retention_ms, Some(172_800_000));
    let again = cluster.image.decide(&alter(&[("retention_ms", "48h")], &["durability"])).unwrap();
    assert_eq!(again.0, [], "nothing to change, nothing to commit");
}

#[test]
fn partitions_are_added_and_never_taken_away() {
    let mut cluster = Cluster::new(2);
    cluster.run(&Command::CreateTopic(create("orders", 2, 2)));
    let add = |partitions| {
        let name = "orders".to_owned();
        Command::AddPartitions(AddPartitions { name, partitions, seed: 5, validate_only: false })
    };
    cluster.refused(&add(1), ErrorCode::InvalidPartitions, "cannot go down to 1");
    cluster.refused(&add(100_001), ErrorCode::InvalidPartitions, "1 to 100000");
    assert_eq!(cluster.image.decide(&add(2)).unwrap().0, []);
    cluster.run(&add(5));
    let topic = cluster.image.topic("orders").unwrap();
    assert_eq!((topic.partition_count(), cluster.image.partition_count()), (5, 5));
    assert!(topic.partitions.iter().all(|partition| partition.replicas.len() == 2));
}

#[test]
fn a_record_that_does_not_fit_is_an_error_and_not_a_guess() {
    let mut cluster = Cluster::new(1);
    cluster.run(&Command::CreateTopic(create("orders", 1, 1)));
    let topic_id = cluster.image.topic("orders").unwrap().id;
    let next = cluster.image.metadata_index();
    let change = |alter: &dyn Fn(&mut Partition)| {
        let mut state = cluster.image.topic("orders").unwrap().partitions[0].as_ref().clone();
        state.partition_epoch += 1;
        alter(&mut state);
        let changes = vec![PartitionChange { partition: 0, state, is_unclean: false }];
        MetadataRecord::PartitionsChanged { topic_id, changes }
    };
    let deleted = MetadataRecord::TopicDeleted { topic_id: TopicId([9; 16]) };
    let added = |first_partition, replicas: Vec<Vec<BrokerId>>| MetadataRecord::PartitionsAdded {
        topic_id,
        first_partition,
        replicas,
    };
    let broker = |broker_id, broker_epoch| MetadataRecord::BrokerChanged {
        broker_id,
        broker_epoch,
        fenced: false,
        in_controlled_shutdown: false,
        draining: false,
    };
    for (index, record, problem) in [
        (next + 1, deleted.clone(), "does not follow"),
        (next, deleted, "does not exist"),
        (next, change(&|state| state.partition_epoch = 0), "out of turn"),
        (next, change(&|state| state.partition_epoch = 2), "out of turn"),
        (next, change(&|state| state.leader_epoch = 2), "does not follow"),
        (next, change(&|state| state.isr = vec![2]), "not among its replicas"),
        (next, change(&|state| state.isr = vec![1, 1]), "two replicas"),
        (next, change(&|state| state.leader = None), "same epoch"),
        (next, change(&|state| state.isr.clear()), "not among its replicas"),
        (next, change(&|state| state.elr = vec![1]), "are in sync"),
        (next, change(&|state| state.elr = vec![2]), "no replicas"),
        (next, change(&|state| state.last_known_leader = Some(1)), "not needed"),
        (next, change(&|state| state.adding = vec![2]), "makes no sense"),
        (next, change(&|state| state.removing = vec![1]), "makes no sense"),
        (next, added(0, vec![vec![1]]), "out of turn"),
        (next, added(1, vec![vec![]]), "without replicas"),
        (next, added(1, vec![vec![1, 1]]), "two replicas"),
        (next, broker(1, 99), "earlier run"),
        (next, broker(9, 0), "not registered"),
        (next, MetadataRecord::BrokerUnregistered { broker_id: 9 }, "not registered"),
    ] {
        let error = cluster.image.clone().apply(index, &[record]).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error:?} lacks {problem:?}");
    }
}

#[test]
fn an_entry_without_records_counts() {
    let mut cluster = Cluster::new(1);
    let index = cluster.image.metadata_index();
    cluster.image.apply(index, &[]).unwrap();
    assert_eq!(cluster.image.metadata_index(), index + 1);
    cluster.run(&register(2, 1));
    assert_eq!(cluster.image.broker(2).unwrap().epoch, index + 1);
}

#[test]
fn a_new_topic_is_placed_on_brokers_that_stay() {
    let mut cluster = Cluster::new(4);
    cluster.fence(1);
    cluster.shut_down(2);
    cluster.run(&Command::SetDraining(SetDraining { broker_id: 3, draining: true }));
    let two = Command::CreateTopic(create("orders", 1, 2));
    cluster.refused(&two, ErrorCode::InvalidPartitions, "not being drained");
    cluster.run(&Command::CreateTopic(create("orders", 1, 1)));
    assert_eq!(cluster.partition().replicas, [4]);
}
