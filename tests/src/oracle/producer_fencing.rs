//! S17, producer fencing: behind a record or a marker of a producer's later epoch nothing of an earlier one is committed. And
//! of coordinators: behind a marker of a later one, an earlier one ends nothing, and is not told that it did.

use tidemark_protocol::{TopicPartition, batch::BatchHeader};

use super::{
    Verdict, require,
    scan::{Committed, Scan},
};
use crate::sim::node::ToldEnded;

pub(super) fn check(
    committed: &Committed,
    partition: TopicPartition,
    header: &BatchHeader,
) -> Verdict {
    let known = committed.producers.get(&header.producer_id).map(|producer| producer.epoch);
    require(known.is_none_or(|epoch| epoch <= header.producer_epoch), "S17", || {
        format!(
            "{partition}: producer {} has epoch {} at {}, behind epoch {known:?}",
            header.producer_id, header.producer_epoch, header.base_offset
        )
    })
}

/// What was committed before the coordinator's request came, the partition's leader knew.
pub(super) fn check_coordinator(scan: &Scan, told: &ToldEnded) -> Verdict {
    let committed = scan.partitions.get(&told.partition);
    let known = committed.and_then(|it| it.coordinators.get(&told.producer_id)).copied();
    let is_replaced = known.is_some_and(|(epoch, noted_us)| {
        told.coordinator_epoch < epoch && noted_us < told.arrived_us
    });
    require(!is_replaced, "S17", || {
        format!("{told:?}, although a later coordinator had ended something: {known:?}")
    })
}
