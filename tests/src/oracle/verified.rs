//! S19, no write of a transaction without its coordinator's knowledge (KIP-890): a transactional batch is only in partitions
//! that the coordinator had made part of the open transaction before.

use tidemark_protocol::{TopicPartition, batch::BatchHeader};

use super::{Verdict, require, scan::Coordinated};

pub(super) fn check(
    coordinated: &Coordinated,
    partition: TopicPartition,
    header: &BatchHeader,
) -> Verdict {
    let epoch = (header.producer_id, header.producer_epoch);
    require(coordinated.joined.contains(&(epoch, partition)), "S19", || {
        format!(
            "{partition}: {epoch:?} has written at {}, and its coordinator does not know",
            header.base_offset
        )
    })
}
