//! Whether a leader appends a producer's batch. The order of the questions matters: a repetition is answered as such
//! whatever else is wrong with it by now.

use tidemark_protocol::{ErrorCode, Offset, TimestampMs, batch::BatchHeader, bug};

use super::{
    AppendedBatch, Guard, Producer, ProducerStates, last_sequence, next_sequence,
    verification::Verifications,
};

/// What a leader does with a batch it does not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Append,
    /// It is in the log. Answer with these offsets, and not before they are committed.
    Duplicate {
        base_offset: Offset,
        last_offset: Offset,
        timestamp_ms: TimestampMs,
    },
}

impl ProducerStates {
    /// Decides about a batch from a client. `guard` is from [`ProducerStates::begin_verification`], and the
    /// transaction coordinator has agreed meanwhile.
    pub fn check(
        &self,
        header: &BatchHeader,
        guard: Option<Guard>,
    ) -> Result<Admission, ErrorCode> {
        if header.producer_id < 0 {
            return Ok(Admission::Append);
        }
        if header.producer_epoch < 0 || header.base_sequence < 0 {
            return Err(ErrorCode::InvalidBatch);
        }
        let known = self.log.producers.get(&header.producer_id);
        if let Some(producer) = known {
            if let Some(batch) = repeated(producer, header) {
                return Ok(Admission::Duplicate {
                    base_offset: batch.base_offset,
                    last_offset: batch.last_offset,
                    timestamp_ms: batch.timestamp_ms,
                });
            }
            check_sequence(producer, header)?;
        }
        if header.is_transactional() {
            check_transaction(known, &self.verifications, header, guard)?;
        }
        Ok(Admission::Append)
    }
}

impl ProducerStates {
    /// Decides about batches that are to be appended together, or not at all. They are all new or all repeated, and what
    /// is repeated has to be there as it was sent, one behind the other: there is one answer for all of them. `guard`
    /// gives the guard of each.
    ///
    /// # Panics
    /// When there is no batch.
    pub fn check_all<'a>(
        &self,
        headers: impl IntoIterator<Item = &'a BatchHeader>,
        guard: impl Fn(&BatchHeader) -> Option<Guard>,
    ) -> Result<Admission, ErrorCode> {
        let mut all: Option<Admission> = None;
        // The last new batch of every producer so far. A share has few.
        let mut new: Vec<&BatchHeader> = Vec::new();
        for header in headers {
            let before = new.iter_mut().find(|before| before.producer_id == header.producer_id);
            let one = if let Some(before) = before {
                check_follows(before, header)?;
                *before = header;
                Admission::Append
            } else {
                let one = self.check(header, guard(header))?;
                if one == Admission::Append && header.producer_id >= 0 {
                    new.push(header);
                }
                one
            };
            all = Some(match all {
                None => one,
                Some(before) => joined(before, one).ok_or(ErrorCode::InvalidRequest)?,
            });
        }
        Ok(all.expect("nothing is appended without a batch"))
    }
}

/// Whether a batch may be appended right behind another of its producer.
fn check_follows(before: &BatchHeader, header: &BatchHeader) -> Result<(), ErrorCode> {
    if header.producer_epoch != before.producer_epoch
        || header.base_sequence != next_sequence(last_sequence(before))
    {
        return Err(ErrorCode::OutOfOrderSequence);
    }
    if header.is_transactional() != before.is_transactional() {
        return Err(ErrorCode::InvalidTransactionState);
    }
    Ok(())
}

/// What two decisions come to, if there is one answer to both.
fn joined(before: Admission, next: Admission) -> Option<Admission> {
    match (before, next) {
        (Admission::Append, Admission::Append) => Some(Admission::Append),
        (
            Admission::Duplicate { base_offset, last_offset: end, .. },
            Admission::Duplicate { base_offset: start, last_offset, timestamp_ms },
        ) if end + 1 == start => {
            Some(Admission::Duplicate { base_offset, last_offset, timestamp_ms })
        }
        _ => None,
    }
}

/// The batch of which this one is a repetition. An epoch has sequences of its own.
fn repeated<'a>(producer: &'a Producer, header: &BatchHeader) -> Option<&'a AppendedBatch> {
    let same_epoch =
        producer.epoch == header.producer_epoch || bug::is_put_back("duplicate-forgets-epoch");
    let sequences = (header.base_sequence, last_sequence(header));
    let is_it = |batch: &&AppendedBatch| (batch.first_sequence, batch.last_sequence) == sequences;
    producer.batches.iter().find(is_it).filter(|_| same_epoch)
}

/// A producer that is not known may begin anywhere: what is known of it may have been forgotten.
fn check_sequence(producer: &Producer, header: &BatchHeader) -> Result<(), ErrorCode> {
    if header.producer_epoch < producer.epoch {
        return Err(ErrorCode::InvalidProducerEpoch);
    }
    let last = producer.batches.back().filter(|_| header.producer_epoch == producer.epoch);
    let expected = last.map_or(0, |batch| next_sequence(batch.last_sequence));
    if header.base_sequence != expected {
        return Err(ErrorCode::OutOfOrderSequence);
    }
    // Neither records outside of the open transaction nor those of a later one: its marker comes first.
    let is_within = header.is_transactional() && header.producer_epoch == producer.epoch;
    if producer.transaction_start.is_some() && !is_within {
        return Err(ErrorCode::InvalidTransactionState);
    }
    Ok(())
}

/// The first batch of a transaction in this partition must have been verified, since the last marker.
fn check_transaction(
    known: Option<&Producer>,
    verifications: &Verifications,
    header: &BatchHeader,
    guard: Option<Guard>,
) -> Result<(), ErrorCode> {
    let is_open = known.is_some_and(|producer| {
        producer.transaction_start.is_some() && producer.epoch == header.producer_epoch
    });
    if is_open {
        return Ok(());
    }
    let lowest = verifications.lowest_sequence(header.producer_id, header.producer_epoch);
    if lowest.is_some_and(|lowest| header.base_sequence > lowest) {
        return Err(ErrorCode::OutOfOrderSequence);
    }
    let is_verified = verifications.is_current(header.producer_id, header.producer_epoch, guard);
    if is_verified || bug::is_put_back("no-verification-guard") {
        return Ok(());
    }
    Err(ErrorCode::TransactionUnverified)
}
