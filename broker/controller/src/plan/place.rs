//! Where partitions go when somebody says which brokers are to hold them, and with how many replicas; and where they go
//! when somebody says which are not.

use tidemark_protocol::{BrokerId, ErrorCode, Failure, TopicPartition};

use super::moves::{Moves, drain};
use crate::{
    assignment::{Place, assign, open_places},
    command::ReassignPartition,
    image::{Broker, Image, REPLICAS_MAX},
};

/// Moves that put `partitions` on `brokers` (none named: on all that take replicas), each with `replication_factor`
/// replicas (not said: as many as it has). Replicas that may stay do. Refuses what cannot be.
pub fn place(
    image: &Image,
    partitions: &[TopicPartition],
    brokers: &[BrokerId],
    replication_factor: Option<u16>,
) -> Result<Moves, Failure> {
    for broker in brokers {
        image.require_broker(*broker)?;
    }
    let is_wanted = |place: &Place| brokers.is_empty() || brokers.contains(&place.broker);
    let places: Vec<_> = open_places(image).into_iter().filter(is_wanted).collect();
    let mut moves = Moves::default();
    for (turn, id) in (0..).zip(partitions) {
        let Some(partition) = image.partition(*id) else {
            let message = format!("there is no partition {id}");
            return Err(Failure::new(ErrorCode::UnknownTopicOrPartition, message));
        };
        let present: Vec<_> = partition.target_replicas().collect();
        let wanted = replication_factor.map_or(present.len(), usize::from);
        check(wanted, places.len())?;
        // Rack-aware, beginning with another broker for every partition; then those that hold it already stay.
        let Some(fresh) = assign(&places, turn..turn + 1, wanted, 0).pop() else { continue };
        let stays = |id: &BrokerId| places.iter().any(|place| place.broker == *id);
        let mut target: Vec<_> = present.iter().copied().filter(stays).take(wanted).collect();
        for broker in fresh {
            if target.len() < wanted && !target.contains(&broker) {
                target.push(broker);
            }
        }
        for place in &places {
            if target.len() < wanted && !target.contains(&place.broker) {
                target.push(place.broker);
            }
        }
        if target != present {
            moves.changes.push(ReassignPartition { partition: *id, replicas: Some(target) });
        }
    }
    Ok(moves)
}

/// At most `moves_max` moves that leave nothing on `brokers`.
pub fn evacuate(image: &Image, brokers: &[BrokerId], moves_max: usize) -> Result<Moves, Failure> {
    let mut without = image.clone();
    for id in brokers {
        let broker = image.require_broker(*id)?;
        without = without.with_broker(Broker { draining: true, ..broker.clone() });
    }
    Ok(drain(&without, moves_max))
}

fn check(replicas: usize, brokers: usize) -> Result<(), Failure> {
    let refuse = |message| Err(Failure::new(ErrorCode::InvalidPartitions, message));
    if !(1..=usize::from(REPLICAS_MAX)).contains(&replicas) {
        return refuse(format!("a partition has 1 to {REPLICAS_MAX} replicas, not {replicas}"));
    }
    if replicas > brokers {
        return refuse(format!(
            "{replicas} replicas need as many brokers that are alive and not drained; of those asked for there are \
             {brokers}"
        ));
    }
    Ok(())
}
