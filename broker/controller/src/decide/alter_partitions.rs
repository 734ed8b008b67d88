//! A leader changes in-sync sets: a compare-and-swap on the partition epoch each. The order of the checks says
//! who is behind: the controller, the leader, or nobody.

use std::collections::BTreeSet;

use tidemark_protocol::{BrokerId, ErrorCode, Failure, TopicPartition, bug};

use super::{
    Changes, Decision,
    change::{After, Change},
    check_request_partitions, named_twice,
};
use crate::{
    command::{AlterPartition, AlterPartitions, Answer, IsrMember, PartitionState},
    image::{Image, Partition},
};

pub(super) fn decide(image: &Image, command: &AlterPartitions) -> Result<Decision, Failure> {
    check_request_partitions(command.changes.len())?;
    image.require_run(command.broker_id, command.broker_epoch)?;
    let mut seen = BTreeSet::new();
    let mut changes = Changes::default();
    let mut outcomes = Vec::with_capacity(command.changes.len());
    for change in &command.changes {
        let outcome = alter(image, command.broker_id, change, &mut seen);
        outcomes.push(outcome.map(|after| {
            let state = state_of(&after.state);
            changes.add(change.topic_id, change.partition, Some(after));
            state
        }));
    }
    Ok((changes.into_records().collect(), Answer::PartitionsAltered(outcomes)))
}

/// The partition after the change, in a new partition epoch even if nothing else of it changes.
fn alter(
    image: &Image,
    sender: BrokerId,
    change: &AlterPartition,
    seen: &mut BTreeSet<TopicPartition>,
) -> Result<After, Failure> {
    let id = TopicPartition { topic_id: change.topic_id, partition: change.partition };
    let (topic, partition) = image.require_partition(id)?;
    check_base(sender, partition, change)?;
    check_members(image, sender, partition, &change.isr)?;
    if !seen.insert(id) {
        return Err(named_twice(topic, change.partition));
    }
    let isr = change.isr.iter().map(|member| member.id).collect();
    // The set that is committed is proposed by a leader that takes back what it proposed before: the partition epoch of
    // that proposal must not be valid any more, whenever a copy of it arrives.
    let after = Change::of(image, &topic.config, partition).with_isr(isr).forced().build();
    Ok(after.expect("what is forced is a change"))
}

/// Whether the sender may change the partition, and knows the state it changes.
fn check_base(
    sender: BrokerId,
    partition: &Partition,
    change: &AlterPartition,
) -> Result<(), Failure> {
    let refuse = |code, message: String| Err(Failure::new(code, message));
    let Partition { leader, leader_epoch, partition_epoch, .. } = partition;
    let has_cas = !bug::is_put_back("isr-change-without-cas");
    let is_behind = change.partition_epoch > *partition_epoch && has_cas;
    if change.leader_epoch > *leader_epoch || is_behind {
        let message = "the leader has newer metadata than this controller";
        return refuse(ErrorCode::NotController, message.to_owned());
    }
    if change.leader_epoch < *leader_epoch {
        let message = format!("the leader epoch is {leader_epoch}, not {}", change.leader_epoch);
        return refuse(ErrorCode::FencedLeaderEpoch, message);
    }
    if *leader != Some(sender) {
        let message = format!("broker {sender} does not lead the partition");
        return refuse(ErrorCode::InvalidRequest, message);
    }
    if change.partition_epoch < *partition_epoch && has_cas {
        let message =
            format!("the partition epoch is {partition_epoch}, not {}", change.partition_epoch);
        return refuse(ErrorCode::InvalidUpdateVersion, message);
    }
    Ok(())
}

/// Whether the in-sync set makes sense, and every member may be in it, in the run of it that the leader means.
fn check_members(
    image: &Image,
    sender: BrokerId,
    partition: &Partition,
    isr: &[IsrMember],
) -> Result<(), Failure> {
    let is_repeated =
        |place: usize, id: BrokerId| isr[..place].iter().any(|member| member.id == id);
    for (place, member) in isr.iter().enumerate() {
        if !partition.replicas.contains(&member.id) || is_repeated(place, member.id) {
            let message = format!("broker {} is no replica, or named twice", member.id);
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
    }
    if !isr.iter().any(|member| member.id == sender) {
        let message = "a leader is always in sync with itself";
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    for member in isr {
        let is_same_run =
            |epoch| epoch == member.broker_epoch || bug::is_put_back("stale-broker-epoch-accepted");
        let broker = image.broker(member.id);
        if !broker.is_some_and(|broker| broker.is_eligible() && is_same_run(broker.epoch)) {
            let message = format!(
                "broker {} is fenced, about to stop, or not in the run with epoch {}",
                member.id, member.broker_epoch
            );
            return Err(Failure::new(ErrorCode::IneligibleReplica, message));
        }
    }
    Ok(())
}

fn state_of(partition: &Partition) -> PartitionState {
    PartitionState {
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        isr: partition.isr.clone(),
        partition_epoch: partition.partition_epoch,
    }
}
