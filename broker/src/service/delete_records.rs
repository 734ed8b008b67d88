//! Delete records: raises the log start of partitions, for good.

use std::sync::Arc;

use futures_util::future::join_all;
use tidemark_protocol::{
    ErrorCode, Failure, Offset,
    messages::{DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse},
};

use super::{find_partition, timeout};
use crate::{broker::Broker, coordinators::topics::refuse_internal, shard::Command};

pub(crate) async fn delete_records(
    broker: Arc<Broker>,
    request: DeleteRecordsRequest,
) -> Result<DeleteRecordsResponse, Failure> {
    let deletions = request.partitions.iter().map(|wanted| delete_from_one(&broker, wanted));
    let deadline = timeout(request.timeout_ms);
    match tokio::time::timeout(deadline, join_all(deletions)).await {
        Ok(partitions) => Ok(DeleteRecordsResponse { partitions }),
        Err(_elapsed) => {
            let message = format!("not done within {} ms; it may still happen", request.timeout_ms);
            Err(Failure::new(ErrorCode::Timeout, message))
        }
    }
}

async fn delete_from_one(
    broker: &Broker,
    wanted: &DeleteRecordsPartition,
) -> Result<Offset, Failure> {
    let DeleteRecordsPartition { partition, before_offset: before } = *wanted;
    let view = find_partition(broker, partition)?;
    refuse_internal(&view.topic, "trimmed")?;
    view.leader_epoch(None)?;
    view.shard.ask(|reply| Command::Trim { partition, before, reply }).await?
}
