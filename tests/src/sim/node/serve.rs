//! What a broker answers its clients.

use tidemark_broker::steered::{Steered, SteeredProduce, Ticket};
use tidemark_controller::Image;
use tidemark_coordinator::transactions::ProducerIdentity;
use tidemark_protocol::{
    Failure, LeaderEpoch, Offset, TopicPartition,
    batch::BatchHeader,
    messages::{Acks, Durability, Isolation},
};

use super::{
    Io,
    coordination::{Asker, Coordination, JobId, JoinFor, Joining},
};
use crate::sim::message::{Fetched, Message, Request, Response, TopicView};

/// A produce that waits for its outcome.
#[derive(Debug)]
struct Waiting {
    asker: Asker,
    produce: SteeredProduce,
    transactional_id: Option<String>,
    state: State,
}

#[derive(Debug)]
enum State {
    Handed(Ticket),
    /// The coordinator of its transaction is asked.
    Joining(JobId),
    Over(Failure),
}

/// Requests of clients under way.
#[derive(Debug, Default)]
pub(super) struct Serving {
    waiting: Vec<Waiting>,
    /// Partitions that were acknowledged by all, with the end of what was: for the oracles.
    pub(super) acknowledged: Vec<(TopicPartition, Offset)>,
    /// Last stable offsets that readers were told: for the oracles.
    pub(super) shown: Vec<(TopicPartition, Offset)>,
}

impl Serving {
    /// Answers a request, now or when its outcome is known.
    pub(super) fn serve(
        &mut self,
        asker: Asker,
        request: Request,
        image: &Image,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let outcome = match request {
            Request::Metadata => Ok(Response::Metadata(image.metadata_index(), views(image))),
            Request::Produce {
                partition,
                leader_epoch,
                acks,
                timeout_ms,
                batches,
                transactional_id,
            } => {
                let produce = SteeredProduce {
                    partition,
                    leader_epoch,
                    acks,
                    durability: Durability::Topic,
                    timeout_ms,
                    batches,
                    guard: None,
                };
                match broker.produce(&produce) {
                    Ok(ticket) => {
                        let state = State::Handed(ticket);
                        self.waiting.push(Waiting { asker, produce, transactional_id, state });
                        return;
                    }
                    Err(failure) => Err(failure),
                }
            }
            Request::Fetch { partition, leader_epoch, offset, max_bytes, isolation } => {
                self.fetch(broker, (partition, leader_epoch), (offset, max_bytes), isolation)
            }
            Request::ListOffsets { partition, earliest } => broker
                .list_offsets(partition, earliest)
                .map(|(offset, leader_epoch)| Response::ListOffsets { offset, leader_epoch }),
            _ => unreachable!("dealt with before"),
        };
        io.send(asker.0, Message::Answer(asker.1, Box::new(outcome)));
    }

    /// Answers the produces whose outcome is known by now. Those whose transaction's coordinator is to be asked first are
    /// given back.
    pub(super) fn answer(
        &mut self,
        coordination: &mut Coordination,
        io: &mut Io<'_>,
    ) -> Vec<(JobId, Joining)> {
        let mut joins = Vec::new();
        let acknowledged = &mut self.acknowledged;
        self.waiting.retain_mut(|waiting| {
            if io.is_dead() {
                return true;
            }
            let outcome = match &mut waiting.state {
                State::Joining(_) => return true,
                State::Over(failure) => Err(failure.clone()),
                State::Handed(ticket) => {
                    if ticket.unverified().is_some_and(|guard| {
                        waiting.produce.guard = Some(guard);
                        waiting.transactional_id.is_some()
                    }) {
                        let (job, joining) = waiting.join(coordination, io);
                        waiting.state = State::Joining(job);
                        joins.push((job, joining));
                        return true;
                    }
                    match ticket.outcome() {
                        Some(outcome) => outcome,
                        None => return true,
                    }
                }
            };
            if let Ok(receipt) = &outcome
                && waiting.produce.acks == Acks::All
            {
                let end = receipt.base_offset + u64::from(receipt.record_count);
                acknowledged.push((waiting.produce.partition, end));
            }
            let outcome = outcome.map(Response::Produce);
            io.send(waiting.asker.0, Message::Answer(waiting.asker.1, Box::new(outcome)));
            false
        });
        joins
    }

    /// The coordinator of a transaction has spoken: the produce goes on, or is refused.
    pub(super) fn joined(
        &mut self,
        job: JobId,
        outcome: Result<(), Failure>,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let is_it =
            |waiting: &&mut Waiting| matches!(waiting.state, State::Joining(it) if it == job);
        let Some(waiting) = self.waiting.iter_mut().find(is_it) else { return };
        io.core.figures.happened("partitions joined transactions");
        waiting.state = match outcome.and_then(|()| broker.produce(&waiting.produce)) {
            Ok(ticket) => State::Handed(ticket),
            Err(failure) => State::Over(failure),
        };
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn fetch(
        &mut self,
        broker: &mut Steered,
        (partition, leader_epoch): (TopicPartition, Option<LeaderEpoch>),
        range: (Offset, usize),
        isolation: Isolation,
    ) -> Result<Response, Failure> {
        let read = broker.read(partition, leader_epoch, range, isolation)?;
        if let Some(stable) = &read.stable {
            self.shown.push((partition, stable.last_stable_offset));
        }
        Ok(Response::Fetch(Fetched {
            bytes: read.bytes,
            high_watermark: read.high_watermark,
            log_start_offset: read.log_start_offset,
            leader_epoch: read.leader_epoch,
            next_offset: read.next_offset,
            stable: read.stable,
        }))
    }
}

impl Waiting {
    fn join(&self, coordination: &mut Coordination, io: &Io<'_>) -> (JobId, Joining) {
        let header = BatchHeader::parse(&self.produce.batches).expect("it was validated");
        let producer =
            ProducerIdentity { producer_id: header.producer_id, epoch: header.producer_epoch };
        let id = self.transactional_id.clone().unwrap_or_default();
        Joining::new((id, producer), self.produce.partition, JoinFor::Produce, coordination, io)
    }
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
