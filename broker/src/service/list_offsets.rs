//! List offsets: where a partition begins and ends, and what it held at a time.

use std::sync::Arc;

use futures_util::future::join_all;
use tidemark_protocol::{
    Failure,
    ids::NO_TIMESTAMP,
    messages::{
        ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListedOffset, OffsetQuery,
    },
};

use super::find_partition;
use crate::{broker::Broker, reads::read_failure};

pub(crate) async fn list_offsets(
    broker: Arc<Broker>,
    request: ListOffsetsRequest,
) -> Result<ListOffsetsResponse, Failure> {
    let answers = request.partitions.iter().map(|query| list_one(&broker, query));
    Ok(ListOffsetsResponse { partitions: join_all(answers).await })
}

async fn list_one(broker: &Broker, query: &ListOffsetsPartition) -> Result<ListedOffset, Failure> {
    let view = find_partition(broker, query.partition)?;
    let leader_epoch = view.leader_epoch(query.leader_epoch)?;
    let position = |offset| ListedOffset { offset, timestamp_ms: NO_TIMESTAMP, leader_epoch };
    let timestamp_ms = match query.query {
        OffsetQuery::Earliest => return Ok(position(view.reader.log_start_offset())),
        OffsetQuery::Latest => return Ok(position(view.latest_offset()?)),
        OffsetQuery::Timestamp => query.timestamp_ms,
        OffsetQuery::MaxTimestamp => match view.reader.max_timestamp_ms() {
            NO_TIMESTAMP => return Ok(position(view.latest_offset()?)),
            newest => newest,
        },
    };
    // A record that is there is found whatever is known; that there is none is not.
    let high_watermark = view.high_watermark();
    let reader = view.reader.clone();
    let search = move || reader.offset_for_timestamp(timestamp_ms, high_watermark);
    match broker.cold_reads.run(search).await? {
        Ok(Some((offset, timestamp_ms))) => Ok(ListedOffset { offset, timestamp_ms, leader_epoch }),
        Ok(None) => Ok(position(view.latest_offset()?)),
        Err(error) => Err(read_failure(&view, high_watermark, error, &broker.metrics)),
    }
}
