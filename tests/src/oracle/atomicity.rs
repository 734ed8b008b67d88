//! S18, atomicity of transactions: a transaction is decided once; every one of its partitions gets one marker, which says what
//! was decided; nobody is told anything else; and no transaction is complete before all its markers are committed.

use tidemark_coordinator::producer_state::Marker;
use tidemark_protocol::{Offset, TopicPartition, batch::BatchHeader};

use super::{
    Verdict, require,
    scan::{Committed, Coordinated, Epoch, Scan},
};

pub(super) fn check_decision(
    coordinated: &Coordinated,
    id: &str,
    epoch: Epoch,
    commit: bool,
) -> Verdict {
    let before = coordinated.decisions.get(&epoch);
    require(before.is_none(), "S18", || {
        format!("{id} is decided in {epoch:?} (commit: {commit}), where {before:?} was decided")
    })
}

pub(super) fn check_marker(
    coordinated: &Coordinated,
    (committed, forgets): (&Committed, bool),
    partition: TopicPartition,
    header: &BatchHeader,
    marker: Marker,
) -> Verdict {
    let epoch = (header.producer_id, header.producer_epoch);
    let at = header.base_offset;
    let decision = coordinated.decisions.get(&epoch);
    let is_decided = decision.is_some_and(|decision| {
        decision.commit == marker.commit && decision.partitions.contains(&partition)
    });
    require(is_decided, "S18", || {
        format!("{partition}: {marker:?} of {epoch:?} at {at}, and {decision:?} was decided")
    })?;
    // Where retention has deleted the first, and with it all that says so, a coordinator that has not heard of it writes it
    // again: nothing is open any more that it could end.
    let before =
        committed.markers.get(&epoch).filter(|before| !forgets || **before != marker.commit);
    require(before.is_none(), "S18", || {
        format!("{partition}: a second marker of {epoch:?} at {at}")
    })
}

pub(super) fn check_complete(
    scan: &Scan,
    id: &str,
    epoch: Epoch,
    true_end: &impl Fn(TopicPartition) -> Option<Offset>,
) -> Verdict {
    let Some(decision) = scan.coordinated.decisions.get(&epoch) else { return Ok(()) };
    let has_marker = |partition: &TopicPartition| {
        let committed = scan.partitions.get(partition);
        committed.is_some_and(|committed| committed.markers.contains_key(&epoch))
    };
    // What could not be read to its end yet may have it.
    let is_read = |id: TopicPartition| true_end(id).is_some_and(|end| scan.end(id) >= end);
    let mut partitions = decision.partitions.iter();
    let missing = partitions.find(|partition| !has_marker(partition) && is_read(**partition));
    require(missing.is_none(), "S18", || {
        format!("{id} in {epoch:?} is complete, and {missing:?} has no marker")
    })
}

/// `producer`: in the epoch of the transaction, whose markers are in the next.
pub(super) fn check_told(coordinated: &Coordinated, producer: Epoch, commit: bool) -> Verdict {
    let (id, epoch) = producer;
    let decision = coordinated.decisions.get(&(id, epoch + 1));
    require(decision.is_some_and(|it| it.commit == commit), "S18", || {
        format!("{producer:?} was told commit: {commit}; decided was {decision:?}")
    })
}
