//! Brokers come, stop, die and come back; what becomes of what they led.

use tidemark_controller::{
    Answer, BrokerRun, Command, ElectLeaders, Election, Image, MetadataRecord, SetDraining,
    UnregisterBroker,
};
use tidemark_protocol::ErrorCode;

use crate::cluster::{Cluster, Restart, create, register, settings_of};

#[test]
fn a_broker_registers_once_per_run_and_is_fenced_until_it_is_heard() {
    let mut cluster = Cluster::new(0);
    let index = cluster.image.metadata_index();
    let first = cluster.run(&register(1, 1));
    assert_eq!(first, Answer::BrokerRegistered { broker_epoch: index });
    assert!(cluster.image.broker(1).unwrap().fenced);
    cluster.unfence(1);
    let again = cluster.image.decide(&register(1, 1)).unwrap();
    assert_eq!(again, (Vec::new(), first), "the same run");
    let epoch = cluster.image.metadata_index();
    assert_eq!(cluster.run(&register(1, 2)), Answer::BrokerRegistered { broker_epoch: epoch });
    assert!(cluster.image.broker(1).unwrap().fenced);
}

#[test]
fn only_the_run_that_is_registered_is_heard() {
    let mut cluster = Cluster::with_topic(2, &[]);
    let old = cluster.broker_run(1);
    let alter = cluster.alter_command(&[1]);
    cluster.restart(1, Restart::Killed);
    for command in [
        Command::FenceBroker(old),
        Command::UnfenceBroker(old),
        Command::BeginControlledShutdown(old),
        Command::AlterPartitions(alter),
    ] {
        cluster.refused(&command, ErrorCode::StaleBrokerEpoch, "started again");
    }
    let nobody = BrokerRun { broker_id: 9, broker_epoch: 0 };
    cluster.refused(&Command::FenceBroker(nobody), ErrorCode::UnknownBroker, "there are [1, 2]");
}

#[test]
fn when_the_leader_is_fenced_the_next_in_sync_leads() {
    let mut cluster = Cluster::with_topic(3, &[]);
    cluster.fence(1);
    assert_eq!(cluster.shown(), "leader 2 isr [2, 3] elr [] last -");
    assert_eq!((cluster.partition().leader_epoch, cluster.partition().partition_epoch), (1, 1));
    cluster.fence(3);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -");
    assert_eq!(cluster.partition().leader_epoch, 1, "the same leader");
    cluster.unfence(1);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -", "its leader lets it in");
    let idle = cluster.image.decide(&Command::UnfenceBroker(cluster.broker_run(1))).unwrap();
    assert_eq!(idle, (Vec::new(), Answer::BrokerUnfenced));
}

#[test]
fn whoever_has_every_committed_record_is_eligible_and_nobody_else() {
    let mut cluster = Cluster::with_topic(3, &[("min_insync_replicas", "2")]);
    cluster.in_sync(&[1, 2]);
    assert_eq!(cluster.shown(), "leader 1 isr [1, 2] elr [] last -", "records go on without 3");
    cluster.fence(2);
    assert_eq!(cluster.shown(), "leader 1 isr [1] elr [2] last -");
    cluster.fence(1);
    assert_eq!(cluster.shown(), "leader - isr [] elr [1, 2] last 1");
    cluster.restart(3, Restart::Killed);
    cluster.unfence(3);
    assert_eq!(cluster.shown(), "leader - isr [] elr [1, 2] last 1", "3 lacks records");
    cluster.unfence(2);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [1] last -");
    cluster.in_sync(&[2, 3]);
    assert_eq!(cluster.shown(), "leader 2 isr [2, 3] elr [] last -", "records go on without 1");
}

#[test]
fn an_unclean_restart_makes_a_broker_eligible_nowhere() {
    let mut cluster = Cluster::with_topic(3, &[("min_insync_replicas", "2")]);
    cluster.in_sync(&[1, 2]);
    cluster.restart(1, Restart::Killed);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -", "without a fence before");
    cluster.unfence(1);
    cluster.in_sync(&[1, 2]);
    cluster.fence(1);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [1] last -");
    cluster.restart(1, Restart::Killed);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -", "fenced before");
    cluster.fence(2);
    cluster.unfence(1);
    assert_eq!(cluster.shown(), "leader - isr [] elr [2] last 2", "1 waits for 2");
}

#[test]
fn a_clean_restart_keeps_what_it_had() {
    let mut cluster = Cluster::with_topic(3, &[("min_insync_replicas", "2")]);
    cluster.in_sync(&[1, 2]);
    for id in [2, 1] {
        cluster.shut_down(id);
        cluster.fence(id);
    }
    assert_eq!(cluster.shown(), "leader - isr [] elr [1, 2] last 1");
    cluster.restart(2, Restart::Clean);
    cluster.unfence(2);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [1] last -");
}

#[test]
fn the_only_replica_comes_back_and_leads_however_it_stopped() {
    for restart in [Restart::Clean, Restart::Killed] {
        for is_fenced_before in [true, false] {
            let mut cluster = Cluster::with_topic(1, &[]);
            if is_fenced_before {
                cluster.fence(1);
                assert_eq!(cluster.shown(), "leader - isr [] elr [1] last 1");
            }
            cluster.restart(1, restart);
            let elr = if restart == Restart::Clean { "[1]" } else { "[]" };
            assert_eq!(cluster.shown(), format!("leader - isr [] elr {elr} last 1"));
            cluster.unfence(1);
            assert_eq!(cluster.shown(), "leader 1 isr [1] elr [] last -");
            let partition = cluster.partition();
            assert_eq!((partition.leader_epoch, partition.partition_epoch >= 2), (2, true));
        }
    }
}

#[test]
fn a_disk_that_was_wiped_is_never_trusted_with_what_it_had() {
    for is_fenced_before in [true, false] {
        let mut cluster = Cluster::with_topic(2, &[]);
        cluster.in_sync(&[1]);
        if is_fenced_before {
            cluster.fence(1);
        }
        cluster.restart(1, Restart::Wiped);
        assert_eq!(cluster.shown(), "leader - isr [] elr [] last -");
        cluster.unfence(1);
        assert_eq!(cluster.shown(), "leader - isr [] elr [] last -", "only an unclean election");
        cluster.restart(1, Restart::Killed);
        cluster.unfence(1);
        assert_eq!(cluster.shown(), "leader - isr [] elr [] last -", "nor later");
    }
    let mut cluster = Cluster::with_topic(1, &[]);
    cluster.restart(1, Restart::Killed);
    cluster.restart(1, Restart::Wiped);
    assert_eq!(cluster.shown(), "leader - isr [] elr [] last -", "nor as the last leader");
}

#[test]
fn another_last_leader_may_lead_when_its_records_are_durable() {
    let mut cluster = Cluster::with_topic(3, &[]);
    for id in [3, 2, 1] {
        cluster.fence(id);
    }
    for id in [1, 2, 3] {
        cluster.restart(id, Restart::Killed);
        assert_eq!(cluster.partition().last_known_leader, Some(1));
    }
    for id in [2, 3] {
        cluster.unfence(id);
        assert_eq!(cluster.shown(), "leader - isr [] elr [] last 1");
    }
    cluster.unfence(1);
    assert_eq!(cluster.shown(), "leader 1 isr [1] elr [] last -");
}

#[test]
fn a_broker_that_is_about_to_stop_hands_over_and_is_not_let_in_again() {
    let mut cluster = Cluster::with_topic(2, &[]);
    cluster.shut_down(1);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -");
    let failure = cluster.alter(&[1, 2]).unwrap_err();
    assert_eq!(failure.code, ErrorCode::IneligibleReplica);
    cluster.fence(1);
    cluster.unfence(1);
    assert!(cluster.image.broker(1).unwrap().fenced, "this run does not come back");
    cluster.shut_down(2);
    assert_eq!(cluster.shown(), "leader - isr [] elr [2] last 2", "there is nobody else");
}

#[test]
fn an_unclean_election_needs_somebody_to_ask_for_it() {
    let lost = |settings: &[(&str, &str)]| {
        let mut cluster = Cluster::with_topic(2, settings);
        cluster.in_sync(&[1]);
        cluster.fence(1);
        cluster
    };
    let elect = |partitions| {
        Command::ElectLeaders(ElectLeaders { election: Election::Unclean, partitions })
    };
    let mut by_hand = lost(&[]);
    assert_eq!(by_hand.shown(), "leader - isr [] elr [1] last 1");
    let id = by_hand.id();
    let Answer::LeadersElected(elected) = by_hand.run(&elect(Some(vec![id]))) else { panic!() };
    assert_eq!((elected.partitions, elected.remaining), (vec![(id, Ok(2))], 0));
    assert_eq!(by_hand.shown(), "leader 2 isr [2] elr [] last -", "its log is the truth now");
    let idle = by_hand.image.decide(&elect(None)).unwrap();
    assert_eq!(idle.0, [], "only where nobody leads");

    let by_setting = lost(&[("unclean_leader_election", "true")]);
    assert_eq!(by_setting.shown(), "leader 2 isr [2] elr [] last -");

    let mut later = lost(&[]);
    later.set(&[("unclean_leader_election", "true")]);
    assert_eq!(later.shown(), "leader 2 isr [2] elr [] last -");

    let mut nobody = lost(&[]);
    nobody.fence(2);
    let answer = nobody.run(&elect(Some(vec![nobody.id()])));
    let Answer::LeadersElected(elected) = answer else { panic!() };
    assert_eq!(elected.partitions[0].1.as_ref().unwrap_err().code, ErrorCode::IneligibleReplica);
    nobody.unfence(1);
    assert_eq!(nobody.shown(), "leader 1 isr [1] elr [] last -");
}

#[test]
fn the_preferred_leader_is_elected_when_it_is_in_sync() {
    let mut cluster = Cluster::with_topic(2, &[]);
    cluster.fence(1);
    cluster.unfence(1);
    let id = cluster.id();
    let elect = |partitions| {
        Command::ElectLeaders(ElectLeaders { election: Election::Preferred, partitions })
    };
    let answer = cluster.run(&elect(Some(vec![id, id])));
    let Answer::LeadersElected(elected) = answer else { panic!() };
    let codes: Vec<_> =
        elected.partitions.iter().map(|(_, outcome)| outcome.as_ref().unwrap_err().code).collect();
    assert_eq!(codes, [ErrorCode::IneligibleReplica, ErrorCode::InvalidRequest]);
    assert_eq!(cluster.shown(), "leader 2 isr [2] elr [] last -");
    cluster.in_sync(&[1, 2]);
    let Answer::LeadersElected(elected) = cluster.run(&elect(None)) else { panic!() };
    assert_eq!(elected.partitions, [(id, Ok(1))]);
    assert_eq!(cluster.shown(), "leader 1 isr [1, 2] elr [] last -");
}

#[test]
fn leadership_is_handed_to_whom_one_names_if_that_one_is_in_sync() {
    let mut cluster = Cluster::with_topic(3, &[]);
    cluster.in_sync(&[1, 3]);
    let id = cluster.id();
    let mut transfer = |to| {
        let (election, partitions) = (Election::Transfer { to }, Some(vec![id]));
        let answer = cluster.run(&Command::ElectLeaders(ElectLeaders { election, partitions }));
        let Answer::LeadersElected(mut elected) = answer else { panic!() };
        (elected.partitions.remove(0).1.map_err(|failure| failure.code), cluster.shown())
    };
    let unchanged = "leader 1 isr [1, 3] elr [] last -".to_owned();
    assert_eq!(transfer(2), (Err(ErrorCode::IneligibleReplica), unchanged.clone()));
    assert_eq!(transfer(9), (Err(ErrorCode::IneligibleReplica), unchanged.clone()));
    assert_eq!(transfer(1), (Ok(1), unchanged));
    assert_eq!(transfer(3), (Ok(3), "leader 3 isr [1, 3] elr [] last -".to_owned()));
}

#[test]
fn a_broker_is_forgotten_when_it_is_stopped_and_empty() {
    let mut cluster = Cluster::new(2);
    let unregister = Command::UnregisterBroker(UnregisterBroker { broker_id: 2 });
    cluster.refused(&unregister, ErrorCode::InvalidRequest, "alive");
    cluster.run(&Command::CreateTopic(create("orders", 1, 2)));
    cluster.fence(2);
    cluster.refused(&unregister, ErrorCode::InvalidRequest, "holds 1 replicas");
    cluster.run(&Command::DeleteTopic(tidemark_controller::DeleteTopic {
        name: "orders".to_owned(),
        id: None,
    }));
    cluster.run(&unregister);
    assert_eq!(cluster.image.broker(2), None);
    cluster.refused(&unregister, ErrorCode::UnknownBroker, "no broker 2");
}

#[test]
fn being_drained_outlives_the_process() {
    let mut cluster = Cluster::new(1);
    let set = |draining| Command::SetDraining(SetDraining { broker_id: 1, draining });
    cluster.run(&set(true));
    cluster.restart(1, Restart::Killed);
    assert!(cluster.image.broker(1).unwrap().draining);
    assert_eq!(cluster.image.decide(&set(true)).unwrap().0, []);
    cluster.run(&set(false));
    assert!(!cluster.image.broker(1).unwrap().draining);
}

#[test]
fn another_minimum_takes_effect_with_the_setting() {
    let mut cluster = Cluster::with_topic(3, &settings_pairs());
    cluster.in_sync(&[1, 2]);
    cluster.in_sync(&[1]);
    assert_eq!(cluster.shown(), "leader 1 isr [1] elr [2] last -");
    let stale = Command::AlterPartitions(cluster.alter_command(&[1, 2]));
    cluster.set(&[("min_insync_replicas", "1")]);
    assert_eq!(cluster.shown(), "leader 1 isr [1] elr [] last -", "1 commits alone now");
    let Answer::PartitionsAltered(outcomes) = cluster.run(&stale) else { panic!() };
    let failure = outcomes[0].as_ref().unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidUpdateVersion, "made under the old minimum");
    let epoch = cluster.partition().partition_epoch;
    cluster.set(&[("min_insync_replicas", "3")]);
    assert_eq!(cluster.partition().partition_epoch, epoch + 1);
    cluster.set(&[("retention_ms", "1h"), ("min_insync_replicas", "32")]);
    assert_eq!(cluster.partition().partition_epoch, epoch + 1, "three of three it was before");
    assert_eq!(settings_of(&settings_pairs()).len(), 1);
}

fn settings_pairs() -> [(&'static str, &'static str); 1] {
    [("min_insync_replicas", "2")]
}

#[test]
fn every_block_of_producer_ids_is_another() {
    let mut cluster = Cluster::new(2);
    let mut next = 0;
    for id in [1, 2, 1, 1] {
        let allocate = Command::AllocateProducerIds(cluster.broker_run(id));
        let Answer::ProducerIdsAllocated { first, end } = cluster.run(&allocate) else { panic!() };
        assert_eq!(first, next, "they follow each other");
        assert!(end > first);
        next = end;
        let snapshot = cluster.image.to_snapshot();
        assert_eq!(Image::from_snapshot(&snapshot).unwrap(), cluster.image);
    }
    let stale = Command::AllocateProducerIds(cluster.broker_run(1));
    cluster.restart(1, Restart::Killed);
    cluster.refused(&stale, ErrorCode::StaleBrokerEpoch, "started again");
    // A log that hands out the same twice is not the one that this image came from.
    let index = cluster.image.metadata_index();
    for wrong in [next, 1, u64::MAX] {
        let record = MetadataRecord::ProducerIdsAllocated { next: wrong };
        assert!(cluster.image.clone().apply(index, &[record]).is_err(), "{wrong}");
    }
}
