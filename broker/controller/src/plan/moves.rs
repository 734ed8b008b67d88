//! Which replicas should move: off a broker that is being drained, or onto brokers that hold less than others. As
//! few as possible, and never so that a partition is in fewer racks than before. The same image gives the same plan.

use std::collections::BTreeMap;

use tidemark_protocol::{BrokerId, TopicPartition};

use crate::{
    assignment::{Place, open_places},
    command::ReassignPartition,
    image::{Image, Partition},
};

/// A plan: what to ask for with [`crate::Command::Reassign`], and what it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    pub changes: Vec<ReassignPartition>,
    /// More of the same is left to do when these are done.
    pub has_more: bool,
    /// Partitions for which there is no broker to go to.
    pub stuck: Vec<TopicPartition>,
}

/// Partitions as they will be once everything under way and planned is done.
struct Board {
    places: Vec<Place>,
    /// Replicas held and partitions led, by those that may be given some.
    held: BTreeMap<BrokerId, u32>,
    led: BTreeMap<BrokerId, u32>,
    racks: BTreeMap<BrokerId, Option<String>>,
    /// What everybody holds when all is even: this many, or one more where it does not divide.
    fewest: u32,
    most: u32,
}

impl Board {
    fn of(image: &Image) -> Self {
        let places = open_places(image);
        let none = || places.iter().map(|place| (place.broker, 0)).collect();
        let (held, led) = (none(), none());
        let racks = image.brokers().map(|broker| (broker.id, broker.rack.clone())).collect();
        let mut board = Self { places, held, led, racks, fewest: 0, most: 0 };
        for (_, partition) in partitions(image) {
            let target: Vec<_> = partition.target_replicas().collect();
            board.count(&target, 1);
        }
        let total: u32 = board.held.values().sum();
        let brokers =
            u32::try_from(board.held.len()).expect("a broker id fits, so does their number");
        board.fewest = total / brokers.max(1);
        board.most = total.div_ceil(brokers.max(1));
        board
    }

    fn count(&mut self, replicas: &[BrokerId], by: i32) {
        for (place, id) in replicas.iter().enumerate() {
            let counts = [Some(&mut self.held), (place == 0).then_some(&mut self.led)];
            for count in counts.into_iter().flatten().filter_map(|counts| counts.get_mut(id)) {
                *count = count.saturating_add_signed(by);
            }
        }
    }

    /// How many of the replicas are in the broker's rack.
    fn in_rack(&self, replicas: &[BrokerId], broker: BrokerId) -> usize {
        let rack = self.racks.get(&broker);
        replicas.iter().filter(|id| self.racks.get(id) == rack).count()
    }

    /// What it is worth to move a replica from one broker to another; `None` when one of the two would have to be
    /// set right again later.
    fn gain(&self, giver: BrokerId, taker: BrokerId) -> Option<u32> {
        let (gives, takes) = (*self.held.get(&giver)?, *self.held.get(&taker)?);
        let is_needed = (gives > self.most && takes < self.most)
            || (gives > self.fewest && takes < self.fewest);
        is_needed.then(|| gives - takes)
    }

    /// Who takes the place of a replica next to `others`: spread over racks first, then even.
    fn heir(&self, others: &[BrokerId], leads: bool) -> Option<BrokerId> {
        let candidates = self.places.iter().map(|place| place.broker);
        candidates.filter(|id| !others.contains(id)).min_by_key(|id| {
            let led = if leads { self.led[id] } else { 0 };
            (self.in_rack(others, *id), led, self.held[id], *id)
        })
    }
}

/// At most `moves_max` partitions to move off the brokers that are being drained. Partitions that are on the move
/// already are left alone.
pub fn drain(image: &Image, moves_max: usize) -> Moves {
    let mut moves = Moves::default();
    let leaves = |id: &BrokerId| image.broker(*id).is_some_and(|broker| broker.draining);
    if !image.brokers().any(|broker| broker.draining) {
        return moves;
    }
    let mut board = Board::of(image);
    for (id, partition) in partitions(image) {
        if partition.is_reassigning() || !partition.replicas.iter().any(leaves) {
            continue;
        }
        if moves.changes.len() == moves_max {
            moves.has_more = true;
            break;
        }
        let mut target = partition.replicas.clone();
        for place in 0..target.len() {
            if !leaves(&target[place]) {
                continue;
            }
            let gone = target[place];
            let others: Vec<_> = target.iter().copied().filter(|id| *id != gone).collect();
            let Some(heir) = board.heir(&others, place == 0) else { break };
            target[place] = heir;
        }
        if target.iter().any(leaves) {
            moves.stuck.push(id);
            continue;
        }
        board.count(&partition.replicas, -1);
        board.count(&target, 1);
        moves.changes.push(ReassignPartition { partition: id, replicas: Some(target) });
    }
    moves
}

/// At most `moves_max` partitions to move so that brokers hold equally many replicas, give or take one.
pub fn balance(image: &Image, moves_max: usize) -> Moves {
    let mut moves = Moves::default();
    let mut board = Board::of(image);
    for (id, partition) in partitions(image) {
        if partition.is_reassigning() {
            continue;
        }
        let Some(target) = better(&board, partition) else { continue };
        if moves.changes.len() == moves_max {
            moves.has_more = true;
            break;
        }
        board.count(&partition.replicas, -1);
        board.count(&target, 1);
        moves.changes.push(ReassignPartition { partition: id, replicas: Some(target) });
    }
    moves
}

/// The partition with one replica moved from a broker that holds too many to one that holds too few, if there is
/// such a pair and the partition stays in as many racks.
fn better(board: &Board, partition: &Partition) -> Option<Vec<BrokerId>> {
    let replicas = &partition.replicas;
    let mut best: Option<((u32, u8), usize, BrokerId)> = None;
    for (place, giver) in replicas.iter().copied().enumerate() {
        let others: Vec<_> = replicas.iter().copied().filter(|id| *id != giver).collect();
        for taker in board.held.keys().copied().filter(|id| !replicas.contains(id)) {
            let is_in_as_many_racks =
                board.in_rack(&others, taker) <= board.in_rack(&others, giver);
            let Some(gain) = board.gain(giver, taker).filter(|_| is_in_as_many_racks) else {
                continue;
            };
            let even_leaders = match place {
                0 if board.led[&giver] >= board.led[&taker] + 2 => 2,
                0 => 0,
                _ => 1,
            };
            // The first of equals, so that the order of preference changes as little as possible.
            if best.is_none_or(|(known, _, _)| known < (gain, even_leaders)) {
                best = Some(((gain, even_leaders), place, taker));
            }
        }
    }
    let (_, place, taker) = best?;
    let mut target = replicas.clone();
    target[place] = taker;
    Some(target)
}

fn partitions(image: &Image) -> impl Iterator<Item = (TopicPartition, &Partition)> {
    image.topics().flat_map(|topic| {
        (0..)
            .zip(&topic.partitions)
            .map(|(partition, state)| (TopicPartition { topic_id: topic.id, partition }, &**state))
    })
}
