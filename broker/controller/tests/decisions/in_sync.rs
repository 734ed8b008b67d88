//! A leader's changes to the in-sync set: what is taken, what is refused and as what.

use tidemark_controller::{AlterPartition, AlterPartitions, Answer, Command, IsrMember};
use tidemark_protocol::{
    ErrorCode::{self, self as E},
    TopicId,
};

use crate::cluster::{Cluster, Restart};

/// The outcome of a change that differs from a good one in what `alter` does to it.
#[track_caller]
fn refused(cluster: &Cluster, alter: impl Fn(&mut AlterPartition), code: ErrorCode) {
    let mut command = cluster.alter_command(&[1, 2]);
    alter(&mut command.changes[0]);
    let decided = cluster.image.decide(&Command::AlterPartitions(command)).unwrap();
    let (records, Answer::PartitionsAltered(outcomes)) = decided else { panic!() };
    assert_eq!(outcomes[0].as_ref().unwrap_err().code, code);
    assert_eq!(records, []);
}

#[test]
fn a_change_moves_the_partition_epoch_and_nothing_else() {
    let mut cluster = Cluster::with_topic(3, &[]);
    let state = cluster.in_sync(&[3, 1]);
    assert_eq!((state.leader, state.leader_epoch, state.partition_epoch), (Some(1), 0, 1));
    assert_eq!(state.isr, [1, 3], "in order of preference");
    assert_eq!(cluster.partition().isr, [1, 3]);
    let again = cluster.in_sync(&[1, 3]);
    let again_on = state.partition_epoch + 1;
    assert_eq!(again.partition_epoch, again_on, "what was proposed before is void");
    assert_eq!((again.leader, again.leader_epoch, again.isr), (Some(1), 0, state.isr));
}

#[test]
fn a_change_is_refused_as_what_it_is() {
    let mut cluster = Cluster::with_topic(3, &[]);
    cluster.fence(1);
    cluster.unfence(1);
    cluster.in_sync(&[1, 2]);
    // Broker 2 leads in leader epoch 1 and partition epoch 2.
    let state = cluster.partition();
    assert_eq!((state.leader, state.leader_epoch, state.partition_epoch), (Some(2), 1, 2));
    let c = &cluster;
    refused(c, |a| a.topic_id = TopicId([9; 16]), E::UnknownTopicOrPartition);
    refused(c, |a| a.partition = 1, E::UnknownTopicOrPartition);
    refused(c, |a| a.leader_epoch = 2, E::NotController);
    refused(c, |a| a.partition_epoch = 3, E::NotController);
    refused(c, |a| (a.leader_epoch, a.partition_epoch) = (0, 3), E::NotController);
    refused(c, |a| (a.leader_epoch, a.partition_epoch) = (0, 0), E::FencedLeaderEpoch);
    refused(c, |a| a.partition_epoch = 1, E::InvalidUpdateVersion);
    refused(c, |a| a.isr[0].id = 9, E::InvalidRequest);
    refused(c, |a| a.isr[0].id = 2, E::InvalidRequest);
    refused(c, |a| a.isr.truncate(1), E::InvalidRequest);
    refused(c, |a| a.isr.clear(), E::InvalidRequest);
    refused(c, |a| a.isr[0].broker_epoch += 1, E::IneligibleReplica);

    let command = AlterPartitions { broker_id: 1, ..cluster.alter_command(&[1, 2]) };
    let epoch = cluster.image.broker(1).unwrap().epoch;
    let command = Command::AlterPartitions(AlterPartitions { broker_epoch: epoch, ..command });
    let (_, Answer::PartitionsAltered(outcomes)) = cluster.image.decide(&command).unwrap() else {
        panic!()
    };
    assert_eq!(outcomes[0].as_ref().unwrap_err().code, E::InvalidRequest, "1 does not lead");
}

#[test]
fn a_member_must_be_alive_and_in_the_run_that_its_leader_has_heard_of() {
    let mut cluster = Cluster::with_topic(3, &[]);
    let before = cluster.image.broker(2).unwrap().epoch;
    cluster.restart(2, Restart::Killed);
    assert_eq!(cluster.alter(&[1, 2]).unwrap_err().code, ErrorCode::IneligibleReplica, "fenced");
    cluster.unfence(2);
    refused(&cluster, |change| change.isr[1].broker_epoch = before, ErrorCode::IneligibleReplica);
    cluster.in_sync(&[1, 2]);
}

#[test]
fn partitions_of_a_request_stand_for_themselves() {
    let mut cluster = Cluster::with_topic(2, &[]);
    let mut command = cluster.alter_command(&[1]);
    let good = command.changes[0].clone();
    let strange = IsrMember { id: 9, broker_epoch: 0 };
    command.changes = vec![
        AlterPartition { isr: vec![strange], ..good.clone() },
        good.clone(),
        good.clone(),
        AlterPartition { partition: 7, ..good },
    ];
    let answer = cluster.run(&Command::AlterPartitions(command));
    let Answer::PartitionsAltered(outcomes) = answer else { panic!() };
    let codes: Vec<_> = outcomes.iter().map(|one| one.as_ref().map_err(|f| f.code).err()).collect();
    let (twice, unknown) = (ErrorCode::InvalidRequest, ErrorCode::UnknownTopicOrPartition);
    assert_eq!(codes, [Some(twice), None, Some(twice), Some(unknown)]);
    assert_eq!(cluster.shown(), "leader 1 isr [1] elr [] last -");
}
