//! What a broker answers its clients.

use tidemark_broker::steered::{Steered, SteeredProduce, Ticket};
use tidemark_controller::Image;
use tidemark_protocol::{
    Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{Acks, Durability},
};

use super::Io;
use crate::sim::{
    message::{Correlation, Fetched, Message, Request, Response, TopicView},
    network::ConnectionId,
};

/// A produce that waits for its outcome.
#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    correlation: Correlation,
    partition: TopicPartition,
    acks: Acks,
    ticket: Ticket,
}

/// Requests of clients under way.
#[derive(Debug, Default)]
pub(super) struct Serving {
    waiting: Vec<Waiting>,
    /// Partitions that were acknowledged by all, with the end of what was: for the oracles.
    pub(super) acknowledged: Vec<(TopicPartition, Offset)>,
}

impl Serving {
    /// Answers a request, now or when its outcome is known.
    pub(super) fn serve(
        &mut self,
        (connection, correlation): (ConnectionId, Correlation),
        request: Request,
        image: &Image,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let outcome = match request {
            Request::Metadata => Ok(Response::Metadata(image.metadata_index(), views(image))),
            Request::Produce { partition, leader_epoch, acks, timeout_ms, batches } => {
                let produce = SteeredProduce {
                    partition,
                    leader_epoch,
                    acks,
                    durability: Durability::Topic,
                    timeout_ms,
                    batches,
                };
                match broker.produce(&produce) {
                    Ok(ticket) => {
                        let waiting = Waiting { connection, correlation, partition, acks, ticket };
                        self.waiting.push(waiting);
                        return;
                    }
                    Err(failure) => Err(failure),
                }
            }
            Request::Fetch { partition, leader_epoch, offset, max_bytes } => {
                fetch(broker, partition, leader_epoch, (offset, max_bytes))
            }
            Request::ListOffsets { partition, earliest } => broker
                .list_offsets(partition, earliest)
                .map(|(offset, leader_epoch)| Response::ListOffsets { offset, leader_epoch }),
            Request::Command(_)
            | Request::Heartbeat(_)
            | Request::FetchMetadata(_)
            | Request::Replicate { .. } => unreachable!("dealt with before"),
        };
        io.send(connection, Message::Answer(correlation, Box::new(outcome)));
    }

    /// Answers the produces whose outcome is known by now.
    pub(super) fn answer(&mut self, io: &mut Io<'_>) {
        let acknowledged = &mut self.acknowledged;
        self.waiting.retain_mut(|waiting| {
            let Some(outcome) = waiting.ticket.outcome() else { return true };
            if io.is_dead() {
                return true;
            }
            if let Ok(receipt) = &outcome
                && waiting.acks == Acks::All
            {
                let end = receipt.base_offset + u64::from(receipt.record_count);
                acknowledged.push((waiting.partition, end));
            }
            let outcome = outcome.map(Response::Produce);
            let message = Message::Answer(waiting.correlation, Box::new(outcome));
            io.send(waiting.connection, message);
            false
        });
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

fn fetch(
    broker: &mut Steered,
    partition: TopicPartition,
    leader_epoch: Option<LeaderEpoch>,
    (offset, max_bytes): (Offset, usize),
) -> Result<Response, Failure> {
    let read = broker.read(partition, leader_epoch, offset, max_bytes)?;
    Ok(Response::Fetch(Fetched {
        bytes: read.bytes,
        high_watermark: read.high_watermark,
        log_start_offset: read.log_start_offset,
        leader_epoch: read.leader_epoch,
    }))
}

fn views(image: &Image) -> Vec<TopicView> {
    let view = |topic: &std::sync::Arc<tidemark_controller::Topic>| TopicView {
        name: topic.name.to_string(),
        id: topic.id,
        partitions: topic
            .partitions
            .iter()
            .map(|partition| (partition.leader, partition.leader_epoch))
            .collect(),
    };
    image.topics().map(view).collect()
}
