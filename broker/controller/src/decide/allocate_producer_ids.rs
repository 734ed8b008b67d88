//! A block of producer ids for one broker. An id belongs to the broker whose block it is in, whether it is ever used or
//! not: a broker that starts again asks for another block.

use tidemark_protocol::{ErrorCode, Failure};

use super::Decision;
use crate::{
    command::{Answer, BrokerRun},
    image::Image,
    record::MetadataRecord,
};

/// Ids in one block. So many producers can begin before a broker has to ask again.
const BLOCK_IDS: u64 = 1000;
/// Ids are below: they are signed in batches.
pub(crate) const PRODUCER_IDS_END: u64 = i64::MAX.cast_unsigned();

pub(super) fn decide(image: &Image, run: BrokerRun) -> Result<Decision, Failure> {
    image.require_run(run.broker_id, run.broker_epoch)?;
    let first = image.next_producer_id;
    let end = first + BLOCK_IDS;
    if end > PRODUCER_IDS_END {
        let message = "there are no producer ids left";
        return Err(Failure::new(ErrorCode::Internal, message));
    }
    let record = MetadataRecord::ProducerIdsAllocated { next: end };
    Ok((vec![record], Answer::ProducerIdsAllocated { first, end }))
}
