//! S17, producer fencing: behind a record or a marker of a producer's later epoch nothing of an earlier one is committed.

use tidemark_protocol::{TopicPartition, batch::BatchHeader};

use super::{Verdict, require, scan::Committed};

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
