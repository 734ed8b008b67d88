//! What one partition knows of the producers that write to it: idempotence, open transactions, and how far
//! `read_committed` may read. A pure function of the partition's log.
//!
//! Order of use, by the leader: [`ProducerStates::begin_verification`] if the batch opens a transaction here, then
//! [`ProducerStates::check`], then the append, then [`ProducerStates::replay`]. Followers and recovery replay only.
//! Everything but verifications under way comes from the log: a snapshot is a cache, and when in doubt the log is
//! replayed from its start. It refuses to append, and to know why a producer has its epoch.

mod check;
mod marker;
mod snapshot;
mod stable;
mod verification;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{Offset, TimestampMs, batch::BatchHeader};

use self::verification::Verifications;
pub use self::{
    check::Admission,
    marker::{Marker, MarkerAdmission, MarkerError, MarkerOrigin},
    verification::{Guard, Verification},
};
use crate::{ProducerEpoch, ProducerId, limits::PARTITION_PRODUCERS_MAX};

/// How many of a producer's last batches are remembered: Kafka's clients have at most as many under way.
pub const BATCHES_KEPT: usize = 5;

/// A batch that was appended, as far as a repetition of it is to be recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedBatch {
    pub first_sequence: i32,
    pub last_sequence: i32,
    pub base_offset: Offset,
    pub last_offset: Offset,
    pub timestamp_ms: TimestampMs,
}

/// One producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    /// The highest epoch seen.
    pub epoch: ProducerEpoch,
    /// Those of `epoch`, oldest first.
    pub batches: VecDeque<AppendedBatch>,
    /// The highest epoch of a transaction coordinator that wrote a marker; -1 if none did.
    pub coordinator_epoch: i32,
    /// Where its open transaction begins.
    pub transaction_start: Option<Offset>,
    /// When that transaction began, by its first batch.
    pub transaction_start_ms: TimestampMs,
    /// The last batch or marker.
    pub last_offset: Offset,
    pub last_ms: TimestampMs,
}

/// A transaction that was aborted, as readers need it: they skip the producer's records from `first_offset` to the
/// marker at `last_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortedTransaction {
    pub producer_id: ProducerId,
    pub first_offset: Offset,
    pub last_offset: Offset,
    /// What the last stable offset could be once the marker was committed: nobody who reads below needs a later entry
    /// of the list.
    pub last_stable_offset: Offset,
}

/// What the batch was, for [`ProducerStates::replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Data,
    Marker(Marker),
    /// A control batch of another kind, or one that compaction has emptied.
    OtherControl,
}

/// The producers of one partition.
#[derive(Clone, Debug)]
pub struct ProducerStates {
    log: LogState,
    verifications: Verifications,
    producers_max: usize,
}

/// What the log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LogState {
    next_offset: Offset,
    producers: BTreeMap<ProducerId, Producer>,
    /// First offsets of transactions that have ended, and where: they hold reading back until that is committed.
    ended: BTreeMap<Offset, Offset>,
    /// By the offset of their marker.
    aborted: VecDeque<AbortedTransaction>,
    /// First offsets of open transactions: an index over `producers`.
    open: BTreeMap<Offset, ProducerId>,
    /// Producers without open transaction by their last offset: an index over `producers`.
    idle: BTreeSet<(Offset, ProducerId)>,
}

impl Default for ProducerStates {
    fn default() -> Self {
        Self::new()
    }
}

/// Two are equal when their logs say the same, and they have been told of the same watermarks.
impl PartialEq for ProducerStates {
    fn eq(&self, other: &Self) -> bool {
        self.log == other.log
    }
}

impl ProducerStates {
    /// Of an empty log.
    pub fn new() -> Self {
        Self::with_producers_max(PARTITION_PRODUCERS_MAX)
    }

    /// With another bound on the number of producers; the one that has been idle longest is forgotten.
    pub fn with_producers_max(producers_max: usize) -> Self {
        let verifications = Verifications::default();
        Self { log: LogState::default(), verifications, producers_max }
    }

    /// The offset up to which the log was replayed.
    pub fn next_offset(&self) -> Offset {
        self.log.next_offset
    }

    pub fn producer(&self, producer_id: ProducerId) -> Option<&Producer> {
        self.log.producers.get(&producer_id)
    }

    /// By id.
    pub fn producers(&self) -> impl ExactSizeIterator<Item = (ProducerId, &Producer)> {
        self.log.producers.iter().map(|(id, producer)| (*id, producer))
    }

    /// Takes the next batch of the log, appended or read back.
    ///
    /// # Panics
    /// When the batch is in front of one that was taken already.
    pub fn replay(&mut self, header: &BatchHeader, content: Content) {
        let offset = header.base_offset;
        assert!(offset >= self.log.next_offset, "{offset} follows {}", self.log.next_offset);
        self.log.next_offset = header.next_offset();
        if header.producer_id < 0 {
            return;
        }
        match content {
            Content::Data => {
                self.log.data(header);
                if header.is_transactional() {
                    self.verifications.end(header.producer_id);
                }
            }
            Content::Marker(marker) => {
                self.log.marker(header, marker);
                self.verifications.end(header.producer_id);
            }
            Content::OtherControl => return,
        }
        self.forget_surplus();
    }

    /// Whether the log has told of nobody that is still remembered.
    pub fn is_empty(&self) -> bool {
        let LogState { producers, ended, aborted, .. } = &self.log;
        producers.is_empty() && ended.is_empty() && aborted.is_empty()
    }

    /// Forgets producers that have written nothing since `before_ms`, nor at or above `before_offset`, and have no open
    /// transaction. Times are the producers' own, and may be those of another age; offsets show who is there still.
    pub fn expire(&mut self, before_ms: TimestampMs, before_offset: Offset) {
        let is_idle = |producer: &Producer| {
            producer.transaction_start.is_none()
                && producer.last_ms < before_ms
                && producer.last_offset < before_offset
        };
        let idle: Vec<ProducerId> = self
            .log
            .producers
            .iter()
            .filter(|(_, producer)| is_idle(producer))
            .map(|(id, _)| *id)
            .collect();
        for producer_id in idle {
            self.log.forget(producer_id);
        }
    }

    fn forget_surplus(&mut self) {
        while self.log.producers.len() > self.producers_max {
            let Some((_, producer_id)) = self.log.idle.first().copied() else { return };
            self.log.forget(producer_id);
        }
    }
}

impl LogState {
    fn data(&mut self, header: &BatchHeader) {
        let mut producer = self.take_out(header.producer_id, header);
        if header.base_sequence >= 0 {
            producer.batches.push_back(AppendedBatch {
                first_sequence: header.base_sequence,
                last_sequence: last_sequence(header),
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                timestamp_ms: header.max_timestamp,
            });
        }
        if producer.batches.len() > BATCHES_KEPT {
            producer.batches.pop_front();
        }
        if header.is_transactional() && producer.transaction_start.is_none() {
            producer.transaction_start = Some(header.base_offset);
            producer.transaction_start_ms = header.max_timestamp;
        }
        self.put_back(header.producer_id, producer);
    }

    fn marker(&mut self, header: &BatchHeader, marker: Marker) {
        let mut producer = self.take_out(header.producer_id, header);
        producer.coordinator_epoch = producer.coordinator_epoch.max(marker.coordinator_epoch);
        if let Some(first_offset) = producer.transaction_start.take() {
            self.ended.insert(first_offset, header.last_offset());
            if !marker.commit {
                self.abort(header, first_offset);
            }
        }
        self.put_back(header.producer_id, producer);
    }

    fn abort(&mut self, header: &BatchHeader, first_offset: Offset) {
        let others = self.open.keys().next().copied();
        self.aborted.push_back(AbortedTransaction {
            producer_id: header.producer_id,
            first_offset,
            last_offset: header.last_offset(),
            last_stable_offset: others.unwrap_or(header.next_offset()),
        });
    }

    /// The producer as it is with the batch's epoch, out of the indexes.
    fn take_out(&mut self, producer_id: ProducerId, header: &BatchHeader) -> Producer {
        let mut producer = match self.forget(producer_id) {
            Some(producer) => producer,
            None => Producer {
                epoch: header.producer_epoch,
                batches: VecDeque::new(),
                coordinator_epoch: -1,
                transaction_start: None,
                transaction_start_ms: 0,
                last_offset: 0,
                last_ms: 0,
            },
        };
        // An operator's marker may come with the epoch of the transaction; nothing lowers an epoch.
        if header.producer_epoch > producer.epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_offset = header.last_offset();
        producer.last_ms = header.max_timestamp;
        producer
    }

    fn put_back(&mut self, producer_id: ProducerId, producer: Producer) {
        match producer.transaction_start {
            Some(first_offset) => {
                self.open.insert(first_offset, producer_id);
            }
            None => {
                self.idle.insert((producer.last_offset, producer_id));
            }
        }
        self.producers.insert(producer_id, producer);
    }

    fn forget(&mut self, producer_id: ProducerId) -> Option<Producer> {
        let producer = self.producers.remove(&producer_id)?;
        match producer.transaction_start {
            Some(first_offset) => {
                self.open.remove(&first_offset);
            }
            None => {
                self.idle.remove(&(producer.last_offset, producer_id));
            }
        }
        Some(producer)
    }
}

/// Sequences are counted by the offsets of a batch, which compaction keeps, and wrap to 0.
fn last_sequence(header: &BatchHeader) -> i32 {
    let last = header.base_sequence.cast_unsigned().wrapping_add(header.last_offset_delta);
    (last & i32::MAX.cast_unsigned()).cast_signed()
}

fn next_sequence(sequence: i32) -> i32 {
    sequence.checked_add(1).unwrap_or(0)
}
