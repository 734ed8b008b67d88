//! L1 to L12: what must come to be when nothing is in the way any more. Each goal that is not reached says what
//! it waits for; which one that is after all the time there was, is the failure.
//!
//! First the cluster has to come to order; then fresh writes must succeed and be read; then everybody stops writing, and
//! all replicas must become equal.

mod coordination;

use std::collections::BTreeMap;

use tidemark_protocol::{NodeId, Offset, TopicPartition};

use super::{Violation, ghost::Shadow, marks::Held, violation};
use crate::sim::{node::Node, world::World};

/// Most that may wait in the queues of one process when all is in order.
const WAITING_MAX: usize = 2_000;
/// Most parcels on their way, and most timers.
const IN_FLIGHT_MAX: usize = 20_000;
const TIMERS_MAX: usize = 50_000;

/// What is still to be reached.
#[derive(Debug)]
pub struct Goals {
    /// How far everything was committed when all was in order: fresh writes come behind this.
    ordered: Option<BTreeMap<TopicPartition, Offset>>,
    are_writes_done: bool,
}

impl Goals {
    /// Everything has just been mended.
    pub fn begin(world: &mut World) -> Self {
        for consumer in world.consumers.values_mut() {
            consumer.hurry();
        }
        Self { ordered: None, are_writes_done: false }
    }

    /// The first goal that is not reached; `None`: all are.
    pub fn unmet(&mut self, world: &mut World) -> Option<Violation> {
        if let Some(unmet) = is_in_order(world) {
            return Some(unmet);
        }
        let ends = |world: &World| {
            let ids = served(world);
            ids.into_iter().map(|id| (id, committed_end(world, id))).collect::<BTreeMap<_, _>>()
        };
        let ordered = self.ordered.get_or_insert_with(|| ends(world));
        if !self.are_writes_done {
            if let Some(unmet) = are_writes_read(world, ordered) {
                return Some(unmet);
            }
            self.are_writes_done = true;
            for producer in world.producers.values_mut() {
                producer.is_done = true;
            }
            for transactor in world.transactors.values_mut() {
                transactor.is_done = true;
            }
            for member in world.members.values_mut() {
                member.is_done = true;
            }
            for copier in world.copiers.values_mut() {
                copier.is_draining = true;
            }
        }
        coordination::unmet(world)
            .or_else(|| is_answered(world))
            .or_else(|| are_equal(world))
            .or_else(|| are_queues_short(world))
    }
}

/// Partitions that somebody can lead. Where a disk was replaced while the others were away, nobody may be left whom the
/// controller would elect: whether what another replica has is good enough is for an operator to say. That it is there
/// is S6.
pub fn served(world: &World) -> Vec<TopicPartition> {
    let mut partitions = world.partitions();
    partitions.retain(|partition| {
        let assigned = world.ghost.metadata.partition(*partition).expect("it was just listed");
        let is_stuck = assigned.leader.is_none()
            && assigned.isr.is_empty()
            && assigned.elr.is_empty()
            && assigned.last_known_leader.is_none();
        let is_left = is_stuck && world.ghost.wiped.contains(partition);
        !is_left && !waits_for_lost(world, *partition)
    });
    partitions
}

/// Whether a replica waits for records that have rotted on its leader's disk, and the disk of the last other one that had
/// them was replaced: nobody can give them to it. Whether to go on behind them is for an operator to say, too.
fn waits_for_lost(world: &World, partition: TopicPartition) -> bool {
    let ghost = &world.ghost;
    let assigned = ghost.metadata.partition(partition).expect("it was just listed");
    let Some(leader) = assigned.leader.filter(|_| ghost.lost.contains(&partition)) else {
        return false;
    };
    let end = |node| ghost.replicas.get(&(node, partition)).map(Shadow::end);
    let Some(process) = world.nodes[&leader].process() else { return false };
    let is_readable = |from: Offset, to: Offset| {
        let bytes = process.broker.read_log(partition, from, to);
        Held::read(bytes, (from, to)).readable() > 0
    };
    let behind = assigned.replicas.iter().filter(|id| !assigned.isr.contains(id));
    behind.filter_map(|id| Some((end(*id)?, end(leader)?))).any(|(from, to)| {
        from < to && ghost.damaged.contains(&(leader, partition)) && !is_readable(from, to)
    })
}

fn is_in_order(world: &World) -> Option<Violation> {
    let up = || world.nodes.values().filter_map(|node| Some((node.id, node.process()?)));
    if up().count() < world.nodes.len() {
        return Some(violation("L2", "not every node is up"));
    }
    if !world.wiped.is_empty() {
        return Some(violation("L1", format!("the disks of {:?} have no vote yet", world.wiped)));
    }
    let statuses: Vec<_> = up().filter_map(|(_, process)| process.quorum()).collect();
    let leaders = statuses.iter().filter(|status| status.is_leader).count();
    let known = statuses.first().and_then(|status| status.leader);
    if leaders != 1 || known.is_none() || statuses.iter().any(|status| status.leader != known) {
        return Some(violation("L1", format!("{leaders} controllers lead the quorum")));
    }
    let image = &world.ghost.metadata.image;
    for (id, process) in up() {
        if !image.is_eligible(id) || !process.is_active() {
            return Some(violation("L2", format!("broker {id} is fenced: {:?}", image.broker(id))));
        }
        let (has, all) = (process.followed().metadata_index(), world.ghost.metadata.end());
        if has < all {
            return Some(violation("L4", format!("broker {id} has followed to {has} of {all}")));
        }
    }
    if !world.admin.is_idle() {
        return Some(violation("L5", "the administrator waits for an answer"));
    }
    for partition in served(world) {
        let assigned = image.partition(partition).expect("it was just listed");
        let Some(leader) = assigned.leader else {
            return Some(violation("L3", format!("nobody leads {partition}: {assigned:?}")));
        };
        if assigned.is_reassigning() {
            return Some(violation("L8", format!("{partition} is still moving: {assigned:?}")));
        }
        if assigned.isr.len() < assigned.replicas.len() {
            let lagging: Vec<_> = assigned
                .replicas
                .iter()
                .map(|id| (id, world.ghost.replicas.get(&(*id, partition)).map(Shadow::end)))
                .collect();
            return Some(violation(
                "L7",
                format!("{partition} is not in sync: {assigned:?}; ends {lagging:?}"),
            ));
        }
        let led = world.ghost.replicas.get(&(leader, partition)).and_then(|it| it.led.as_ref());
        let Some(led) = led else {
            return Some(violation(
                "L3",
                format!("{leader} does not know that it leads {partition}"),
            ));
        };
        if led.maximal_isr.len() != led.isr.len() {
            return Some(violation("L5", format!("a change of {partition} is pending: {led:?}")));
        }
    }
    None
}

fn are_writes_read(world: &World, ordered: &BTreeMap<TopicPartition, Offset>) -> Option<Violation> {
    for (partition, before) in ordered {
        if !world.is_plain(*partition) {
            continue;
        }
        if committed_end(world, *partition) <= *before {
            return Some(violation(
                "L11",
                format!("nothing new is committed in {partition} after {before}"),
            ));
        }
        for consumer in world.consumers.values() {
            let at = consumer.positions().get(partition).copied().unwrap_or(0);
            if at <= *before {
                let text = format!("a consumer of {partition} is at {at}, not beyond {before}");
                return Some(violation("L11", text));
            }
        }
    }
    None
}

fn is_answered(world: &World) -> Option<Violation> {
    let waiting = world.producers.values().map(crate::sim::client::producer::Producer::pending);
    let waiting: usize = waiting.sum();
    (waiting > 0).then(|| violation("L6", format!("{waiting} produce requests are not answered")))
}

/// How far a partition is committed: as far as it ever was, or, where that is gone beyond what was promised, as far as its
/// leader has it now.
fn committed_end(world: &World, partition: TopicPartition) -> Offset {
    if !world.ghost.is_beyond_promise(partition) {
        return world.ghost.true_end(partition);
    }
    let leader = world.ghost.metadata.partition(partition).and_then(|assigned| assigned.leader);
    let shadow = leader.and_then(|leader| world.ghost.replicas.get(&(leader, partition)));
    shadow.map_or(0, |shadow| shadow.high_watermark)
}

/// Whether a replica has what was committed, or, where that is gone, what its leader has.
fn has_all(world: &mut World, node: NodeId, partition: TopicPartition, leader: NodeId) -> bool {
    if !world.ghost.is_beyond_promise(partition) {
        return world.ghost.is_complete((node, partition));
    }
    let shadow = |node| world.ghost.replicas.get(&(node, partition));
    let (Some(own), Some(its)) = (shadow(node), shadow(leader)) else { return false };
    (own.start.max(its.start)..its.end()).all(|offset| match (own.mark(offset), its.mark(offset)) {
        (Some(mine), Some(other)) => mine == other,
        _ => offset < own.end(),
    })
}

fn are_equal(world: &mut World) -> Option<Violation> {
    for partition in served(world) {
        let end = committed_end(world, partition);
        let assigned = world.ghost.metadata.partition(partition)?;
        let (replicas, leader) = (assigned.replicas.clone(), assigned.leader?);
        for node in replicas {
            if !has_all(world, node, partition, leader) {
                return Some(violation(
                    "L7",
                    format!("node {node} has not all {end} of {partition}"),
                ));
            }
            let shadow = &world.ghost.replicas[&(node, partition)];
            if shadow.end() != end || shadow.high_watermark != end {
                let text = format!(
                    "node {node} has {partition} up to {}, watermark {}; {end} are committed",
                    shadow.end(),
                    shadow.high_watermark
                );
                return Some(violation("L7", text));
            }
        }
        for consumer in world.consumers.values().filter(|_| world.is_plain(partition)) {
            let at = consumer.positions().get(&partition).copied().unwrap_or(0);
            if at < end {
                let text = format!("a consumer of {partition} is at {at} of {end}");
                return Some(violation("L11", text));
            }
        }
    }
    None
}

fn are_queues_short(world: &World) -> Option<Violation> {
    for (id, process) in world.nodes.values().filter_map(|it: &Node| Some((it.id, it.process()?))) {
        let waiting = process.waiting();
        if waiting > WAITING_MAX {
            return Some(violation("L12", format!("{waiting} things wait in node {id}")));
        }
    }
    let (in_flight, timers) = (world.net.in_flight(), world.core.queued());
    if in_flight > IN_FLIGHT_MAX || timers > TIMERS_MAX {
        return Some(violation("L12", format!("{in_flight} parcels, {timers} timers")));
    }
    None
}
