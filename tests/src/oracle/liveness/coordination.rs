//! L9: transactions end, whoever has begun them, and what is decided is read to its end. L10: groups settle, every partition
//! with one member.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::TopicPartition;

use super::{Violation, served, violation};
use crate::sim::{shape::LEDGER, world::World};

/// What transactions wait for.
pub(super) fn unmet(world: &World) -> Option<Violation> {
    if !world.can_coordinate() {
        return None;
    }
    let busy = world.transactors.values().filter(|transactor| !transactor.is_idle()).count();
    if busy > 0 {
        return Some(violation("L9", format!("{busy} transactional producers wait for an answer")));
    }
    if let Some(uncopied) = uncopied(world) {
        return Some(violation("L10", uncopied));
    }
    if let Some(unended) = world.ghost.scan.unended() {
        return Some(violation("L9", unended));
    }
    if let Some(unsettled) = unsettled(world) {
        return Some(violation("L10", unsettled));
    }
    let ledger = world.ghost.metadata.image.topic(LEDGER)?;
    for partition in served(world).into_iter().filter(|id| id.topic_id == ledger.id) {
        let end = world.ghost.true_end(partition);
        for reader in world.readers.values() {
            let at = reader.position(partition);
            if at < end {
                let text =
                    format!("a reader of what is decided in {partition} is at {at} of {end}");
                return Some(violation("L9", text));
            }
        }
    }
    None
}

/// What copiers have yet to copy. When there is nothing any more, they have nothing open either.
fn uncopied(world: &World) -> Option<String> {
    let ledger = world.ghost.metadata.image.topic(LEDGER)?;
    for copier in world.copiers.values() {
        for partition in served(world).into_iter().filter(|id| id.topic_id == ledger.id) {
            let at = copier.committed(&world.ghost.scan.exactly_once, partition);
            let end = world.ghost.true_end(partition);
            if at < end && !world.ghost.scan.exactly_once.is_off {
                let group = copier.group();
                return Some(format!("{group} is at {at} of {end} in {partition}"));
            }
        }
    }
    let busy = world.copiers.values().filter(|copier| !copier.is_idle()).count();
    (busy > 0).then(|| format!("{busy} copiers wait for an answer"))
}

/// What groups have yet to agree on.
fn unsettled(world: &World) -> Option<String> {
    let ledger = world.ghost.metadata.image.topic(LEDGER)?;
    let mut given: BTreeMap<&str, (usize, BTreeSet<TopicPartition>)> = BTreeMap::new();
    for member in world.members.values() {
        let Some(has) = member.settled() else {
            return Some(format!("{} of {} is not settled", member.name(), member.group));
        };
        let (count, all) = given.entry(&member.group).or_default();
        *count += has.len();
        all.extend(has);
    }
    let partitions = ledger.partitions.len();
    let is_whole =
        |(count, all): &(usize, BTreeSet<_>)| *count == partitions && all.len() == partitions;
    let (group, given) = given.iter().find(|(_, given)| !is_whole(given))?;
    Some(format!("{group} has given {given:?} of {partitions} partitions"))
}
