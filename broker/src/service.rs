//! What the broker does, one function per verb: validate, decide whom to ask, ask, answer. Both doors end
//! here; nothing here knows how a request was encoded.

pub(crate) mod add_partitions;
pub(crate) mod alter_topic;
pub(crate) mod change_broker;
pub(crate) mod cluster;
pub(crate) mod create_topic;
pub(crate) mod delete_records;
pub(crate) mod delete_topic;
pub(crate) mod describe_broker;
pub(crate) mod describe_log_dirs;
pub(crate) mod describe_replicas;
pub(crate) mod describe_topic;
pub(crate) mod elect_leaders;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub(crate) mod groups;
pub(crate) mod init_producer_id;
pub(crate) mod list_offsets;
pub(crate) mod metadata;
pub(crate) mod plan_moves;
pub(crate) mod produce;
pub(crate) mod quorum;
pub(crate) mod reassign_partitions;
pub(crate) mod subscribe;

use std::{sync::Arc, time::Duration};

use tidemark_controller::{Answer, Command};
use tidemark_protocol::{ErrorCode, Failure, TopicPartition};

use crate::{
    broker::Broker,
    disk_watch::DiskState,
    health::Reason,
    partitions::{PartitionView, unknown_partition},
};

/// Longest wait that a request may ask for; longer ones are cut to this.
const TIMEOUT_MS_MAX: u32 = 5 * 60 * 1000;

pub(crate) fn timeout(asked_ms: u32) -> Duration {
    Duration::from_millis(asked_ms.min(TIMEOUT_MS_MAX).into())
}

/// The partition here, or why it is not.
pub(crate) fn find_partition(
    broker: &Broker,
    id: TopicPartition,
) -> Result<Arc<PartitionView>, Failure> {
    if let Some(view) = broker.partitions.get(id) {
        return Ok(view);
    }
    match broker.image().partition(id) {
        None => Err(unknown_partition(id)),
        Some(_) if broker.partitions.is_unopened(id) => {
            let message = format!("the log of {id} cannot be opened; see the broker's log");
            Err(Failure::new(ErrorCode::NotReady, message))
        }
        Some(partition) if partition.replicas.contains(&broker.id) => {
            Err(Failure::new(ErrorCode::NotReady, format!("the log of {id} is not open yet")))
        }
        Some(_) => {
            Err(Failure::new(ErrorCode::NotLeader, format!("this broker does not hold {id}")))
        }
    }
}

/// Has the controller carry out a command, and waits until this broker has followed, for at most
/// `timeout_ms` in all.
pub(crate) async fn change_metadata(
    broker: &Broker,
    command: Command,
    timeout_ms: u32,
) -> Result<Answer, Failure> {
    let wait = timeout(timeout_ms);
    let change = async {
        let committed = broker.control.command(command, wait).await;
        let committed = committed.inspect_err(|failure| fence_if_failed(broker, failure))?;
        let mut assigned = broker.assigned.clone();
        let followed = assigned.wait_for(|index| *index >= committed.metadata_index).await;
        followed.map_err(|_closed| Failure::new(ErrorCode::NotReady, "the broker is stopping"))?;
        Ok(committed.answer)
    };
    tokio::time::timeout(wait, change).await.unwrap_or_else(|_elapsed| {
        let message = format!("not done within {timeout_ms} ms; it may still happen");
        Err(Failure::new(ErrorCode::Timeout, message))
    })
}

/// What is new needs a disk that takes writes; changing and deleting what is there does not.
fn require_disk(broker: &Broker) -> Result<(), Failure> {
    match broker.disk_watch.state() {
        DiskState::Ok => Ok(()),
        DiskState::Full => {
            let message = "the disk is full; nothing is created until space returns";
            Err(Failure::new(ErrorCode::DiskFull, message))
        }
        DiskState::Failed => {
            let cause = broker.disk_watch.failure().unwrap_or("the disk failed");
            let message = format!("nothing is created until tidemarkd is restarted: {cause}");
            Err(Failure::new(ErrorCode::StorageFailed, message))
        }
    }
}

/// The metadata lies in the data directory, too: a flush of it that failed is one like any other.
fn fence_if_failed(broker: &Broker, failure: &Failure) {
    if failure.code == ErrorCode::StorageFailed {
        broker.health.raise(Reason::Controller, failure.message.clone());
        broker.disk_watch.fail(&failure.message);
    }
}

/// A command was answered with another command's answer.
fn wrong_answer(answer: &Answer) -> Failure {
    tracing::error!(?answer, "the controller answered something else");
    Failure::new(ErrorCode::Internal, "the controller answered something else")
}
