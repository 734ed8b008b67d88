//! Replicas move. A move first adds, then waits until all who stay are in sync, then removes; the waiting ends in
//! the in-sync change that makes it true. Taking a move back is refused if it would leave nobody with the records.

use std::collections::BTreeSet;

use tidemark_protocol::{BrokerId, ErrorCode, Failure, TopicPartition};

use super::{
    Changes, Decision,
    change::{After, Change},
    check_request_partitions, named_twice, throttle,
};
use crate::{
    command::{Answer, Reassign, ReassignPartition},
    image::{Image, Partition, REPLICAS_MAX},
};

pub(super) fn decide(image: &Image, command: &Reassign) -> Result<Decision, Failure> {
    check_request_partitions(command.changes.len())?;
    let mut seen = BTreeSet::new();
    let mut changes = Changes::default();
    let mut outcomes = Vec::with_capacity(command.changes.len());
    for change in &command.changes {
        outcomes.push(reassign(image, change, &mut seen).map(|after| {
            changes.add(change.partition.topic_id, change.partition.partition, after);
        }));
    }
    let limit = command.throttle_bytes_per_second;
    // 0 takes the bound away.
    let bound = limit.filter(|limit| *limit > 0);
    let mut records: Vec<_> = limit.and_then(|_| throttle(image, bound)).into_iter().collect();
    records.extend(changes.into_records());
    Ok((records, Answer::Reassigned(outcomes)))
}

fn reassign(
    image: &Image,
    change: &ReassignPartition,
    seen: &mut BTreeSet<TopicPartition>,
) -> Result<Option<After>, Failure> {
    let (topic, partition) = image.require_partition(change.partition)?;
    if !seen.insert(change.partition) {
        return Err(named_twice(topic, change.partition.partition));
    }
    let may_be_unclean = topic.config.unclean_leader_election;
    let base = Change::of(image, &topic.config, partition);
    let after = match &change.replicas {
        Some(target) => {
            check_target(image, partition, target)?;
            base.moved_to(target).build()
        }
        None if partition.is_reassigning() => base.cancelled().build(),
        None => return Err(invalid("no reassignment of the partition is under way".to_owned())),
    };
    match after {
        Some(after) if !may_be_unclean && loses_all(partition, &after.state) => {
            Err(invalid(format!(
                "of the replicas that have all records, {:?}, none would stay",
                holders(partition)
            )))
        }
        Some(after) if !may_be_unclean && loses_last_leader(partition, &after.state) => {
            let last = partition.last_known_leader;
            Err(invalid(format!(
                "the partition has no leader, and the last one, {last:?}, would go: if the eligible replicas, {:?}, come \
                 back without their data, nobody else could lead",
                partition.elr
            )))
        }
        after => Ok(after),
    }
}

fn check_target(image: &Image, partition: &Partition, target: &[BrokerId]) -> Result<(), Failure> {
    if !(1..=usize::from(REPLICAS_MAX)).contains(&target.len()) {
        let message = format!(
            "a partition has 1 to {REPLICAS_MAX} replicas; {} were asked for",
            target.len()
        );
        return Err(Failure::new(ErrorCode::InvalidPartitions, message));
    }
    for (place, id) in target.iter().enumerate() {
        if target[..place].contains(id) {
            return Err(invalid(format!("broker {id} is named twice")));
        }
        let broker = image.require_broker(*id)?;
        if partition.replicas.contains(id) {
            continue;
        }
        if !broker.is_eligible() {
            return Err(invalid(format!("broker {id} is not alive")));
        }
        if broker.draining {
            return Err(invalid(format!("broker {id} is being drained")));
        }
    }
    Ok(())
}

/// Whether nobody is left who has every committed record, when there was somebody.
fn loses_all(before: &Partition, after: &Partition) -> bool {
    let holders = holders(before);
    !holders.is_empty() && !holders.iter().any(|id| after.replicas.contains(id))
}

/// Whether the last leader goes while nobody leads. Whoever is eligible is dead then, and is not eligible any more if it
/// comes back without having stopped in order.
fn loses_last_leader(before: &Partition, after: &Partition) -> bool {
    let last = before.last_known_leader.filter(|_| before.leader.is_none());
    last.is_some_and(|last| !after.replicas.contains(&last))
}

/// Who has every committed record.
fn holders(partition: &Partition) -> Vec<BrokerId> {
    if partition.isr.is_empty() && partition.elr.is_empty() {
        return partition.last_known_leader.into_iter().collect();
    }
    partition.isr.iter().chain(&partition.elr).copied().collect()
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, message)
}
