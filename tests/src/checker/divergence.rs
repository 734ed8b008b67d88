//! Divergence: replicas that hold different records, or not the records that clients saw.
//!
//! Compares logs as they were read from the disks of stopped nodes. Not for compacted topics, whose replicas may well
//! differ in what is gone.

use std::collections::BTreeMap;

use tidemark_protocol::{NodeId, Offset};

use super::{Findings, Kind, index::Index};
use crate::history::{Partition, Read, ReplicaLog};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    let mut by_partition: BTreeMap<&Partition, Vec<&ReplicaLog>> = BTreeMap::new();
    for log in &index.history.replicas {
        by_partition.entry(&log.partition).or_default().push(log);
    }
    for (partition, logs) in by_partition {
        let mut union: BTreeMap<Offset, (NodeId, Read)> = BTreeMap::new();
        for log in &logs {
            for read in &log.records {
                let (node, first) = *union.entry(read.offset).or_insert((log.node, *read));
                if first != *read {
                    findings.add(Kind::Divergence, || {
                        format!(
                            "{partition}: {first:?} on node {node}, {read:?} on node {}",
                            log.node
                        )
                    });
                }
            }
        }
        for log in logs {
            holes(log, &union, findings);
            against_clients(index, log, findings);
        }
    }
}

/// Where this replica has nothing and another has something.
fn holes(log: &ReplicaLog, union: &BTreeMap<Offset, (NodeId, Read)>, findings: &mut Findings) {
    let held = by_offset(log);
    let ours = union.range(log.start..log.end.max(log.start));
    for (offset, (node, read)) in ours.filter(|(offset, _)| !held.contains_key(offset)) {
        findings.add(Kind::Divergence, || {
            let (partition, here) = (&log.partition, log.node);
            format!("{partition} at {offset}: nothing on node {here}, {read:?} on node {node}")
        });
    }
}

/// What clients saw, and this replica does not have.
fn against_clients(index: &Index<'_>, log: &ReplicaLog, findings: &mut Findings) {
    let Some(versions) = index.partitions.get(&log.partition) else { return };
    let held = by_offset(log);
    for sighting in versions.sightings.iter().filter(|sighting| sighting.firm) {
        let seen = sighting.read;
        if seen.offset < log.start.max(versions.log_start) {
            continue;
        }
        let here = held.get(&seen.offset);
        let expected = log.complete || seen.offset < log.end;
        if expected && here.is_none_or(|here| here.value != seen.value) {
            findings.add(Kind::Divergence, || {
                let (partition, node, op) = (&log.partition, log.node, sighting.by);
                format!(
                    "{partition} at {}: {here:?} on node {node}, {} for operation {op}",
                    seen.offset, seen.value
                )
            });
        }
    }
}

fn by_offset(log: &ReplicaLog) -> BTreeMap<Offset, Read> {
    log.records.iter().map(|read| (read.offset, *read)).collect()
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::ReplicaLog,
    };

    fn log(node: u32, end: u64, records: &[(u64, u64)]) -> ReplicaLog {
        let (partition, records) = (partition(), reads(records));
        ReplicaLog { node, partition, start: 0, end, records, complete: true }
    }

    fn story(logs: [ReplicaLog; 2]) -> Story {
        let mut story = Story::default().ok(1, 10, 0).ok(1, 11, 1);
        story.history.replicas = logs.into();
        story
    }

    #[test]
    fn two_replicas_hold_different_records() {
        let story =
            story([log(1, 3, &[(0, 10), (1, 11), (2, 7)]), log(2, 3, &[(0, 10), (1, 11), (2, 8)])]);
        story.finds(&[Kind::Divergence]);
    }

    #[test]
    fn one_replica_has_a_hole() {
        let story = story([
            log(1, 4, &[(0, 10), (1, 11), (3, 7)]),
            log(2, 4, &[(0, 10), (1, 11), (2, 8), (3, 7)]),
        ]);
        story.finds(&[Kind::Divergence]);
    }

    #[test]
    fn replicas_that_agree_may_lack_what_was_acknowledged() {
        let story = story([log(1, 1, &[(0, 10)]), log(2, 1, &[(0, 10)])]);
        story.finds(&[Kind::Divergence]);
    }

    #[test]
    fn a_replica_that_was_not_in_sync_may_be_behind() {
        let behind = ReplicaLog { complete: false, ..log(2, 1, &[(0, 10)]) };
        story([log(1, 2, &[(0, 10), (1, 11)]), behind]).is_clean();
    }

    #[test]
    fn a_replica_may_hold_more_than_was_acknowledged() {
        let story = story([log(1, 3, &[(0, 10), (1, 11), (2, 7)]), log(2, 2, &[(0, 10), (1, 11)])]);
        story.is_clean();
    }
}
