//! Ends of transactions, written as control batches and answered when they are committed.

use tidemark_coordinator::producer_state::Marker;
use tidemark_protocol::{
    Compression, ErrorCode, Failure, TopicPartition,
    batch::{Batch, BatchBuilder, NO_SEQUENCE},
    messages::{Acks, Durability, ProducerIdentity},
};
use tidemark_replication::{Event, Produced};
use tokio::sync::oneshot;

use super::{
    Hands, Shard,
    partition::Partition,
    produce::{Awaiting, ProduceOutcome},
};
use crate::partitions::unknown_partition;

/// The end of a transaction, for one partition.
#[derive(Debug)]
pub(crate) struct WriteMarker {
    pub(crate) partition: TopicPartition,
    /// In the epoch after the transaction's.
    pub(crate) producer: ProducerIdentity,
    pub(crate) marker: Marker,
    /// When to stop waiting, in monotonic milliseconds.
    pub(crate) deadline_ms: u64,
    pub(crate) reply: oneshot::Sender<ProduceOutcome>,
}

impl Shard {
    pub(super) fn write_marker(&mut self, write: WriteMarker) {
        let id = write.partition;
        let Some(partition) = self.partitions.get_mut(&id) else {
            drop(write.reply.send(Err(unknown_partition(id))));
            return;
        };
        match partition.append_marker(&write, &mut self.hands) {
            Ok(event) => {
                let token = self.hands.next_token;
                self.hands.next_token += 1;
                let awaiting = Awaiting::new(write.reply, self.hands.clock.now());
                self.hands.awaiting.insert(token, awaiting);
                partition.step(event(token), &mut self.hands);
            }
            Err(failure) => drop(write.reply.send(Err(failure))),
        }
    }
}

impl Partition {
    /// Appends the marker, unless it is there. The event that has its answer wait for the commit.
    fn append_marker(
        &mut self,
        write: &WriteMarker,
        hands: &mut Hands,
    ) -> Result<impl FnOnce(u64) -> Event + use<>, Failure> {
        let WriteMarker { partition: id, producer, marker, deadline_ms, .. } = *write;
        let epoch = self.may_append(Acks::All, None, hands)?;
        let repeated = self.producers.admit_marker(id, producer, marker)?;
        let is_new = repeated.is_none();
        let offsets = if let Some(offsets) = repeated {
            offsets
        } else {
            let batch = batch(producer, marker, hands.wall_ms)?;
            let batches = std::slice::from_ref(&batch);
            let appended = self.log.append(batches, epoch, hands.wall_ms);
            let appended = appended.map_err(|error| self.not_appended(&error, hands))?;
            self.producers_wrote(|producers| {
                producers.appended(batches, appended.base_offset);
            });
            self.dirtied(hands);
            appended.base_offset..appended.next_offset
        };
        Ok(move |token| {
            let produced = Produced {
                token,
                acks: Acks::All,
                durability: Durability::Topic,
                deadline_ms,
                base_offset: offsets.start,
                end_offset: offsets.end,
            };
            if is_new { Event::Produced(produced) } else { Event::Repeated(produced) }
        })
    }
}

fn batch(producer: ProducerIdentity, marker: Marker, wall_ms: u64) -> Result<Batch, Failure> {
    let ProducerIdentity { producer_id, epoch } = producer;
    let builder = BatchBuilder::new(Compression::None);
    let mut builder = builder.with_producer(producer_id, epoch, NO_SEQUENCE).into_control();
    let (key, value) = marker.encode();
    let timestamp_ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    builder.push(timestamp_ms, Some(&key), Some(&value), &[]);
    let built = builder.build().and_then(|mut bytes| Batch::parse(&mut bytes));
    built.map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))
}
