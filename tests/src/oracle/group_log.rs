//! S18 and S22, offsets in transactions: a group's offsets share the outcome of their transaction, all of them; and of two words
//! on an offset the later one in the log stands, whichever transaction ends first, and a removal is such a word.
//!
//! Reads the records of a group coordinator's log in order, and knows of groups nothing but that.

use std::collections::BTreeMap;

use tidemark_coordinator::{
    Record,
    groups::record::{Key, OffsetValue, ProducerFence},
};
use tidemark_protocol::{Offset, TopicPartition};

use super::{
    Violation, exactly_once::Copied, group_fencing::OfGroup, require, scan::Coordinated,
    scan::Epoch, violation,
};

/// Where a record is, and what is known besides.
pub(super) struct Around<'a> {
    pub(super) partition: TopicPartition,
    pub(super) at: Offset,
    pub(super) coordinated: &'a Coordinated,
}

/// What a record has come to.
#[derive(Debug)]
pub(super) enum Said {
    Settled(Settled),
    /// The offsets of a transaction have ended here, in the epoch of its markers.
    Ended {
        epoch: Epoch,
        commit: bool,
        coordinator_epoch: i32,
    },
}

/// An offset has come out of a transaction.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    pub(super) of: OfGroup,
    /// In the epoch of the transaction.
    pub(super) producer: Epoch,
    pub(super) offset: Offset,
}

/// An offset in a transaction.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Where it was committed within the transaction.
    at: Offset,
    offset: Offset,
}

/// Pending offsets that were taken away just now: the end of their transaction, or the removal of an offset.
#[derive(Debug, Default)]
struct Leaving {
    producer_id: i64,
    offsets: Vec<(OfGroup, Pending, bool)>,
}

/// One partition of the groups' topic.
#[derive(Debug, Default)]
pub(super) struct GroupLog {
    /// Where in the log the last word on an offset is.
    last: BTreeMap<OfGroup, Offset>,
    pending: BTreeMap<(i64, OfGroup), Pending>,
    fences: BTreeMap<i64, ProducerFence>,
    leaving: Leaving,
    /// Something of it was not read: what follows says too little.
    pub(super) has_gap: bool,
}

impl GroupLog {
    /// Whether something waits for the end of a transaction.
    pub(super) fn is_open(&self) -> bool {
        let is_open = self.fences.values().any(|fence| fence.is_open);
        !self.has_gap && (is_open || !self.pending.is_empty())
    }

    /// Takes in the next record of the log.
    pub(super) fn take(
        &mut self,
        around: &Around<'_>,
        record: &Record,
    ) -> Result<Option<Said>, Violation> {
        let broken = |error: &dyn std::fmt::Display| {
            violation("S22", format!("{} at {}: {error}", around.partition, around.at))
        };
        if record.is_opening() {
            return Ok(None);
        }
        let key = Key::from_bytes(&record.key).map_err(|error| broken(&error))?;
        let value = record.value.as_deref();
        match key {
            Key::Offset { group, topic_id, partition } => {
                let of = (group, TopicPartition { topic_id, partition });
                let value = value.map(OffsetValue::from_bytes).transpose();
                self.offset(around, of, value.map_err(|error| broken(&error))?.as_ref())
            }
            Key::Pending { group, producer_id, topic_id, partition } => {
                let of = (group, TopicPartition { topic_id, partition });
                let value = value.map(OffsetValue::from_bytes).transpose();
                self.pending(around, producer_id, of, value.map_err(|error| broken(&error))?)?;
                Ok(None)
            }
            Key::Producer { producer_id } => {
                let value = value.map(ProducerFence::from_bytes).transpose();
                let leaving = std::mem::take(&mut self.leaving);
                let fence = value.map_err(|error| broken(&error))?;
                self.producer(around, producer_id, fence, &leaving)
            }
            _ => {
                self.leaving.offsets.clear();
                Ok(None)
            }
        }
    }

    fn offset(
        &mut self,
        around: &Around<'_>,
        of: OfGroup,
        value: Option<&OffsetValue>,
    ) -> Result<Option<Said>, Violation> {
        let at = around.at;
        let said = value.and_then(|value| Some((value.position?, value.offset)));
        let Some((position, offset)) = said else {
            self.leaving.offsets.clear();
            self.last.insert(of, at);
            return Ok(None);
        };
        let producer_id = self.leaving.producer_id;
        let is_it = |(whose, pending, _): &&mut (OfGroup, Pending, bool)| {
            *whose == of && pending.at == position && pending.offset == offset
        };
        let found = self.leaving.offsets.iter_mut().find(is_it);
        let whence = || format!("{of:?} is {offset} at {at}, from {position}");
        let found = found.ok_or_else(|| {
            violation("S18", format!("{}, where no transaction has it", whence()))
        })?;
        found.2 = true;
        let last = self.last.get(&of).copied();
        require(last.is_none_or(|last| last < position), "S22", || {
            format!("{}, behind which the last word on it is: {last:?}", whence())
        })?;
        self.last.insert(of.clone(), position);
        let epoch = self.fences.get(&producer_id).map_or(-1, |fence| fence.epoch);
        Ok(Some(Said::Settled(Settled { of, producer: (producer_id, epoch), offset })))
    }

    fn pending(
        &mut self,
        around: &Around<'_>,
        producer_id: i64,
        of: OfGroup,
        value: Option<OffsetValue>,
    ) -> Result<(), Violation> {
        let Some(value) = value else {
            if self.leaving.producer_id != producer_id {
                self.leaving = Leaving { producer_id, offsets: Vec::new() };
            }
            if let Some(pending) = self.pending.remove(&(producer_id, of.clone())) {
                self.leaving.offsets.push((of, pending, false));
            }
            return Ok(());
        };
        self.leaving.offsets.clear();
        let fence = self.fences.get(&producer_id);
        require(fence.is_some_and(|fence| fence.is_open), "S18", || {
            format!("{of:?} at {} is in no open transaction: {fence:?}", around.at)
        })?;
        let pending = Pending { at: around.at, offset: value.offset };
        self.pending.insert((producer_id, of), pending);
        Ok(())
    }

    fn producer(
        &mut self,
        around: &Around<'_>,
        producer_id: i64,
        fence: Option<ProducerFence>,
        leaving: &Leaving,
    ) -> Result<Option<Said>, Violation> {
        let Some(fence) = fence else {
            self.fences.remove(&producer_id);
            return Ok(None);
        };
        let (partition, at) = (around.partition, around.at);
        let before = self.fences.insert(producer_id, fence);
        let epoch = (producer_id, fence.epoch);
        require(before.is_none_or(|it| it.epoch <= fence.epoch), "S17", || {
            format!("{partition}: {fence:?} of {producer_id} at {at}, behind {before:?}")
        })?;
        require(
            before.is_none_or(|it| it.coordinator_epoch <= fence.coordinator_epoch),
            "S17",
            || format!("{partition}: a coordinator that was replaced has ended {epoch:?} at {at}"),
        )?;
        if fence.is_open {
            let is_known = around.coordinated.joined.contains(&(epoch, partition));
            require(is_known, "S19", || {
                format!(
                    "{partition}: {epoch:?} has begun at {at}, and its coordinator does not know"
                )
            })?;
            return Ok(None);
        }
        let is_again = before.is_some_and(|it| it.epoch == fence.epoch && !it.is_open);
        require(!is_again, "S18", || format!("{partition}: a second end of {epoch:?} at {at}"))?;
        let decision = around.coordinated.decisions.get(&epoch);
        let commit = decision.filter(|it| it.partitions.contains(&partition)).map(|it| it.commit);
        let commit = commit.ok_or_else(|| {
            violation("S18", format!("{partition}: {epoch:?} ends at {at}; decided: {decision:?}"))
        })?;
        if leaving.producer_id == producer_id {
            for (of, pending, is_settled) in &leaving.offsets {
                self.check_outcome(of, *pending, *is_settled, commit)?;
            }
        }
        let left = self.pending.keys().find(|(id, _)| *id == producer_id);
        require(left.is_none(), "S18", || {
            format!("{partition}: {epoch:?} has ended at {at} without {left:?}")
        })?;
        let coordinator_epoch = fence.coordinator_epoch;
        Ok(Some(Said::Ended { epoch, commit, coordinator_epoch }))
    }

    /// Nobody but copiers commits for their groups, and nobody removes anything: there each offset has to count. Elsewhere it may
    /// have been removed right before, without a word if nothing was there but this.
    fn check_outcome(
        &self,
        of: &OfGroup,
        pending: Pending,
        is_settled: bool,
        commit: bool,
    ) -> Result<(), Violation> {
        let is_due = commit && Copied::pair_of(&of.0).is_some();
        let holds = if is_settled { commit } else { !is_due };
        require(holds, "S18", || {
            let last = self.last.get(of);
            format!(
                "{of:?}: {pending:?} counts: {is_settled}; decided was commit: {commit}; last {last:?}"
            )
        })
    }
}
