//! Who this producer is to the brokers, and the numbers of its batches, by which they recognize what they have already.
//!
//! Every partition counts by itself, in an epoch of its own. It refuses to know what was written.

use std::sync::{Mutex, PoisonError};

use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{InitProducerIdRequest, ProducerIdentity},
};
use tokio::time::Instant;

use crate::{
    cluster::{Cluster, Repeat, Target},
    error::RequestError,
};

/// The place of a batch among those of its producer in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) producer: ProducerIdentity,
    /// Of the first record.
    pub(super) sequence: i32,
}

impl Number {
    /// The number behind `records` more; after the highest comes 0.
    fn behind(self, records: u32) -> Self {
        let next = self.sequence.cast_unsigned().wrapping_add(records) & i32::MAX.cast_unsigned();
        Self { sequence: next.cast_signed(), ..self }
    }
}

/// How far one partition has counted.
#[derive(Debug, Default)]
pub(super) struct Count {
    /// `None`: it has no identity yet.
    next: Option<Number>,
}

impl Count {
    pub(super) fn has_identity(&self) -> bool {
        self.next.is_some()
    }

    /// The number of the next batch. Counting begins as `fresh`, if it has not yet.
    pub(super) fn next(&mut self, fresh: Option<ProducerIdentity>) -> Option<Number> {
        let begin = |producer| Number { producer, sequence: 0 };
        self.next = self.next.or(fresh.map(begin));
        self.next
    }

    /// The next batch has so many records.
    pub(super) fn advance(&mut self, records: u32) {
        self.next = self.next.map(|next| next.behind(records));
    }

    /// Nothing was written from this number on: it is the next once more.
    pub(super) fn take_back(&mut self, number: Number) {
        if self.next.is_some_and(|next| next.producer == number.producer) {
            self.next = Some(number);
        }
    }

    /// Nobody knows where counting in the epoch of `number` stands: it begins anew in the next one, in which nothing sent
    /// before can be written. `false`: there is none left, another identity is needed.
    pub(super) fn begin_epoch(&mut self, number: Number) -> bool {
        if self.next.is_none_or(|next| next.producer != number.producer) {
            // It has already.
            return true;
        }
        let ProducerIdentity { producer_id, epoch } = number.producer;
        self.next = epoch
            .checked_add(1)
            .map(|epoch| Number { producer: ProducerIdentity { producer_id, epoch }, sequence: 0 });
        self.next.is_some()
    }
}

/// The identity that partitions begin to count with.
#[derive(Debug, Default)]
pub(super) struct Identity {
    known: Mutex<Option<ProducerIdentity>>,
    /// Held while a broker is asked, so that one asks for all.
    asking: tokio::sync::Mutex<()>,
}

impl Identity {
    /// The identity, asked for if it is not known. No error says that anything was written.
    pub(super) async fn get(
        &self,
        cluster: &Cluster,
        deadline: Instant,
    ) -> Result<ProducerIdentity, RequestError> {
        let _asking = self.asking.lock().await;
        if let Some(known) = *self.known() {
            return Ok(known);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let request = InitProducerIdRequest {
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        };
        let asked = cluster.ask(&Target::Any, &request, Repeat::Always, deadline).await;
        let producer = asked.map_err(not_written)?.producer;
        *self.known() = Some(producer);
        Ok(producer)
    }

    /// Partitions that begin from now on count with another. One that is forgotten and found again would begin at 0
    /// under an identity with which it has counted before, and what it sends would be taken for what is there.
    pub(super) fn renew(&self) {
        *self.known() = None;
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<ProducerIdentity>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The failure to get an identity, as that of a produce request that was never sent.
fn not_written(error: RequestError) -> RequestError {
    if !error.is_indeterminate() {
        return error;
    }
    let message = format!("the producer has no identity yet: {error}");
    RequestError::Refused(Failure::new(ErrorCode::NotReady, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ProducerIdentity = ProducerIdentity { producer_id: 7, epoch: i16::MAX - 1 };

    #[test]
    fn numbers_follow_each_other_wrap_and_can_be_taken_back() {
        let mut count = Count::default();
        assert_eq!(count.next(None), None);
        let first = count.next(Some(ME)).unwrap();
        assert_eq!(first, Number { producer: ME, sequence: 0 });
        count.advance(3);
        let other = ProducerIdentity { producer_id: 8, epoch: 0 };
        let second = count.next(Some(other)).unwrap();
        assert_eq!(second, Number { producer: ME, sequence: 3 }, "who has begun goes on");
        count.advance(u32::try_from(i32::MAX).unwrap());
        assert_eq!(count.next(None).unwrap().sequence, 2);
        count.take_back(second);
        assert_eq!(count.next(None), Some(second));
    }

    #[test]
    fn a_new_epoch_begins_once_and_ends_what_was_before() {
        let mut count = Count::default();
        let first = count.next(Some(ME)).unwrap();
        count.advance(1);
        assert!(count.begin_epoch(first));
        let next = count.next(None).unwrap();
        assert_eq!((next.producer.epoch, next.sequence), (i16::MAX, 0));
        assert!(count.begin_epoch(first), "of a batch of the epoch before");
        count.take_back(first);
        assert_eq!(count.next(None), Some(next));
        assert!(!count.begin_epoch(next), "there is no later one");
        assert!(!count.has_identity());
    }
}
