//! Reads everything that is committed, once and in order, and keeps what the properties of producers and transactions are
//! about: who has written what under which number, what is open, what was decided. The properties are in the files beside
//! this one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemark_coordinator::{
    Record, TransactionLoader,
    producer_state::Marker,
    transactions::{Transaction, TransactionState},
};
use tidemark_protocol::{
    Offset, TopicId, TopicPartition,
    batch::{Batch, BatchHeader, batches},
};

use super::{
    Verdict, atomicity,
    compaction::{Kind, Whole},
    exactly_once::ExactlyOnce,
    group_log::{Around, GroupLog, Said},
    idempotence, producer_fencing, stable_offset, verified, violation,
};
use crate::sim::{client::Written, core::Micros, node::ToldEnded};

/// A producer's id and epoch.
pub(super) type Epoch = (i64, i16);

/// A producer in one partition, as its committed batches say.
#[derive(Debug)]
pub(super) struct Producer {
    pub(super) epoch: i16,
    /// The sequence of its next record, in that epoch; `None`: it has written none.
    pub(super) next_sequence: Option<i32>,
}

/// What is committed of one partition.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) end: Offset,
    pub(super) producers: BTreeMap<i64, Producer>,
    /// Where each batch with a number is.
    pub(super) numbers: BTreeMap<(Epoch, i32), Offset>,
    /// First offsets of transactions that have not ended, by producer.
    pub(super) open: BTreeMap<i64, Offset>,
    /// Ends of transactions, with the decision.
    pub(super) markers: BTreeMap<Epoch, bool>,
    /// The coordinator that has ended a producer's last transaction, by its epoch, and when that was seen to be committed.
    pub(super) coordinators: BTreeMap<i64, (i32, Micros)>,
}

/// How a transaction was decided.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) commit: bool,
    pub(super) partitions: BTreeSet<TopicPartition>,
}

/// What the transaction coordinators have committed.
#[derive(Debug, Default)]
pub(super) struct Coordinated {
    /// Partitions that were ever part of a transaction that was open.
    pub(super) joined: BTreeSet<(Epoch, TopicPartition)>,
    /// By the epoch of the markers.
    pub(super) decisions: BTreeMap<Epoch, Decision>,
    pub(super) last: BTreeMap<String, (Epoch, TransactionState)>,
}

/// Everything that was committed.
#[derive(Debug, Default)]
pub struct Scan {
    pub(super) partitions: BTreeMap<TopicPartition, Committed>,
    pub(super) coordinated: Coordinated,
    /// Which topics are which, as far as there are any.
    pub topics: Roles,
    groups: BTreeMap<TopicPartition, GroupLog>,
    /// Partitions of compacted topics.
    whole: BTreeMap<TopicPartition, Whole>,
    /// Something that the transaction coordinators have decided was not read.
    pub is_blind: bool,
    pub exactly_once: ExactlyOnce,
    pub now_us: Micros,
}

/// Topics whose records mean something to the oracles.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles {
    pub groups: Option<TopicId>,
    pub ledger: Option<TopicId>,
    pub copies: Option<TopicId>,
}

impl Scan {
    /// Up to where a partition was read.
    pub fn end(&self, partition: TopicPartition) -> Offset {
        self.partitions.get(&partition).map_or(0, |committed| committed.end)
    }

    /// Exclusive end of what is decided of a partition that was read.
    pub(super) fn decided_end(&self, partition: TopicPartition) -> Option<Offset> {
        self.partitions.get(&partition).map(Committed::last_stable_offset)
    }

    /// Takes in what was committed since, up to `end`.
    pub fn take(&mut self, partition: TopicPartition, bytes: &Bytes, end: Offset) -> Verdict {
        for batch in batches(bytes.clone()) {
            let batch = batch.map_err(|error| violation("S25", format!("{partition}: {error}")))?;
            let committed = self.partitions.entry(partition).or_default();
            if batch.header.next_offset() > end || batch.header.base_offset < committed.end {
                continue;
            }
            let is_gap = batch.header.base_offset > committed.end;
            committed.end = batch.header.next_offset();
            if is_gap {
                self.missed(partition);
            }
            if batch.header.producer_id >= 0 {
                self.produced(partition, &batch)?;
            } else if Some(partition.topic_id) == self.topics.groups {
                self.grouped(partition, &batch)?;
            }
        }
        Ok(())
    }

    /// Something was damaged where it was read, or was gone before it was.
    fn missed(&mut self, partition: TopicPartition) {
        let Roles { groups, ledger, copies } = self.topics;
        if [groups, ledger, copies].contains(&Some(partition.topic_id)) {
            self.exactly_once.is_off = true;
        }
        if groups == Some(partition.topic_id) {
            self.groups.entry(partition).or_default().has_gap = true;
            self.whole.entry(partition).or_default().has_gap = true;
        }
    }

    /// Takes in what a group coordinator has committed.
    fn grouped(&mut self, partition: TopicPartition, batch: &Batch) -> Verdict {
        let records = batch.records().map_err(|error| {
            violation("S22", format!("{partition}: records do not decode: {error}"))
        })?;
        let log = self.groups.entry(partition).or_default();
        if log.has_gap {
            return Ok(());
        }
        let whole = self.whole.entry(partition).or_default();
        whole.ends_at(batch.header.next_offset());
        for record in records {
            let key = record.key.map(|key| key.to_vec()).unwrap_or_default();
            let value = record.value.map(|value| value.to_vec());
            let (at, record) = (record.offset, Record { key, value });
            whole.take(at, &record, Kind::Groups, self.now_us);
            let around = Around { partition, at, coordinated: &self.coordinated };
            match log.take(&around, &record)? {
                Some(Said::Settled(settled)) => self.exactly_once.settled(&settled)?,
                Some(Said::Ended { epoch, commit, coordinator_epoch }) => {
                    let committed = self.partitions.entry(partition).or_default();
                    committed.markers.insert(epoch, commit);
                    committed.coordinators.insert(epoch.0, (coordinator_epoch, self.now_us));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn produced(&mut self, partition: TopicPartition, batch: &Batch) -> Verdict {
        let header = &batch.header;
        let committed = self.partitions.entry(partition).or_default();
        producer_fencing::check(committed, partition, header)?;
        if header.is_control() {
            let marker = marker(batch).ok_or_else(|| {
                violation("S18", format!("{partition}: {} is no marker", header.base_offset))
            })?;
            let forgets = Some(partition.topic_id) == self.topics.copies;
            let committed_by = (&*committed, forgets);
            atomicity::check_marker(&self.coordinated, committed_by, partition, header, marker)?;
            committed.ended(header, marker.commit);
            let coordinator = (marker.coordinator_epoch, self.now_us);
            committed.coordinators.insert(header.producer_id, coordinator);
            if Some(partition.topic_id) == self.topics.copies {
                let epoch = (header.producer_id, header.producer_epoch);
                self.exactly_once.ended(partition, epoch, marker.commit)?;
            }
            return Ok(());
        }
        if header.is_transactional() {
            verified::check(&self.coordinated, partition, header)?;
        }
        idempotence::check(committed, partition, header)?;
        committed.written(header);
        if Some(partition.topic_id) == self.topics.ledger {
            self.exactly_once.entered(partition, header);
        }
        if Some(partition.topic_id) == self.topics.copies {
            self.exactly_once.written(partition, batch)?;
        }
        Ok(())
    }

    /// Takes in what a transaction coordinator has committed. `true_end`: up to where a partition is
    /// committed that is still in the metadata.
    pub fn take_coordinated(
        &mut self,
        partition: TopicPartition,
        bytes: &Bytes,
        end: Offset,
        true_end: impl Fn(TopicPartition) -> Option<Offset>,
    ) -> Verdict {
        for batch in batches(bytes.clone()) {
            let batch = batch.map_err(|error| violation("S25", format!("{partition}: {error}")))?;
            let committed = self.partitions.entry(partition).or_default();
            if batch.header.next_offset() > end || batch.header.base_offset < committed.end {
                continue;
            }
            let is_gap = batch.header.base_offset > committed.end;
            self.is_blind |= is_gap;
            committed.end = batch.header.next_offset();
            let whole = self.whole.entry(partition).or_default();
            whole.has_gap |= is_gap;
            whole.ends_at(batch.header.next_offset());
            let records = batch.records().map_err(|error| {
                violation("S22", format!("{partition}: records do not decode: {error}"))
            })?;
            for record in records {
                let key = record.key.map(|key| key.to_vec()).unwrap_or_default();
                let value = record.value.map(|value| value.to_vec());
                let (at, record) = (record.offset, Record { key, value });
                let whole = self.whole.entry(partition).or_default();
                whole.take(at, &record, Kind::Transactions, self.now_us);
                self.coordinated(&record, &true_end)?;
            }
        }
        Ok(())
    }

    fn coordinated(
        &mut self,
        record: &Record,
        true_end: &impl Fn(TopicPartition) -> Option<Offset>,
    ) -> Verdict {
        if record.is_opening() {
            return Ok(());
        }
        // A log of one record says what that record says.
        let mut loader = TransactionLoader::new();
        let said = loader.replay(0, record).and_then(|()| loader.state());
        let said = said.map_err(|error| violation("S22", error.to_string()))?;
        for (id, transaction) in said {
            self.decided(&id, &transaction, true_end)?;
        }
        Ok(())
    }

    fn decided(
        &mut self,
        id: &str,
        transaction: &Transaction,
        true_end: &impl Fn(TopicPartition) -> Option<Offset>,
    ) -> Verdict {
        let epoch = (transaction.producer_id, transaction.producer_epoch);
        let before = self.coordinated.last.insert(id.to_owned(), (epoch, transaction.state));
        if transaction.state == TransactionState::Ongoing {
            let joined = transaction.partitions.iter().map(|partition| (epoch, *partition));
            self.coordinated.joined.extend(joined);
        }
        if let Some(commit) = transaction.state.decision() {
            let partitions = transaction.partitions.clone();
            atomicity::check_decision(&self.coordinated, id, epoch, commit)?;
            self.coordinated.decisions.insert(epoch, Decision { commit, partitions });
        }
        let is_complete = matches!(
            transaction.state,
            TransactionState::CompleteCommit | TransactionState::CompleteAbort
        );
        if let Some((of, state)) = before
            && is_complete
            && state.decision().is_some()
        {
            atomicity::check_complete(self, id, of, true_end)?;
        }
        Ok(())
    }

    /// A broker has said that a batch is written, and where.
    pub fn acknowledged(&self, written: &Written) -> Verdict {
        idempotence::check_acknowledged(self, written)
    }

    /// A producer was told how its transaction has ended.
    pub fn told(&self, producer: Epoch, commit: bool) -> Verdict {
        atomicity::check_told(&self.coordinated, producer, commit)
    }

    /// Up to where a coordinator's log is known, all of it.
    pub fn whole_end(&self, partition: TopicPartition) -> Option<Offset> {
        self.whole.get(&partition).filter(|whole| !whole.has_gap).map(Whole::end)
    }

    /// Compares what a replica holds of a coordinator's log, up to where it is known, with all of it.
    pub fn compare_whole(
        &self,
        partition: TopicPartition,
        bytes: &Bytes,
        keeps_removals_us: Micros,
    ) -> Verdict {
        let Some(whole) = self.whole.get(&partition) else { return Ok(()) };
        let is_groups = Some(partition.topic_id) == self.topics.groups;
        let kind = if is_groups { Kind::Groups } else { Kind::Transactions };
        whole.compare((partition, kind), bytes, keeps_removals_us, self.now_us)
    }

    /// A coordinator was told, by whoever leads the partition, that a transaction has ended there.
    pub fn told_ended(&self, told: &ToldEnded) -> Verdict {
        producer_fencing::check_coordinator(self, told)
    }

    /// A reader of what is decided was told this last stable offset.
    pub fn shown(&self, partition: TopicPartition, last_stable_offset: Offset) -> Verdict {
        stable_offset::check(self, partition, last_stable_offset)
    }

    /// An application was given this batch as decided.
    pub fn read(&self, partition: TopicPartition, header: &BatchHeader) -> Verdict {
        stable_offset::check_read(&self.coordinated, partition, header)
    }

    /// Compares what was copied with what there was to copy, when everything is decided.
    pub fn compare_copies(&self) -> Verdict {
        self.exactly_once.compare(&self.coordinated)
    }

    /// Transactions that have not ended: what coordinators say, and partitions that wait.
    pub fn unended(&self) -> Option<String> {
        let open = self.partitions.iter().find(|(_, committed)| !committed.open.is_empty());
        if let Some((partition, committed)) = open {
            return Some(format!("{partition} has open transactions: {:?}", committed.open));
        }
        let mut groups = self.groups.iter();
        if let Some((partition, log)) = groups.find(|(_, log)| log.is_open()) {
            return Some(format!("{partition} has offsets of open transactions: {log:?}"));
        }
        let is_open = |state: &TransactionState| {
            state.decision().is_some() || *state == TransactionState::Ongoing
        };
        let mut last = self.coordinated.last.iter();
        let (id, (epoch, state)) = last.find(|(_, (_, state))| is_open(state))?;
        Some(format!("{id} in {epoch:?} is {}", state.name()))
    }
}

impl Committed {
    /// Exclusive end of what is decided.
    pub(super) fn last_stable_offset(&self) -> Offset {
        self.open.values().copied().fold(self.end, Offset::min)
    }

    fn written(&mut self, header: &BatchHeader) {
        let epoch = (header.producer_id, header.producer_epoch);
        let records = i32::try_from(header.last_offset_delta).expect("a few") + 1;
        let next_sequence = Some(header.base_sequence + records);
        let producer = Producer { epoch: header.producer_epoch, next_sequence };
        self.producers.insert(header.producer_id, producer);
        self.numbers.insert((epoch, header.base_sequence), header.base_offset);
        if header.is_transactional() {
            self.open.entry(header.producer_id).or_insert(header.base_offset);
        }
    }

    fn ended(&mut self, header: &BatchHeader, commit: bool) {
        let epoch = (header.producer_id, header.producer_epoch);
        self.open.remove(&header.producer_id);
        self.markers.insert(epoch, commit);
        let producer = Producer { epoch: header.producer_epoch, next_sequence: None };
        self.producers.insert(header.producer_id, producer);
    }
}

fn marker(batch: &Batch) -> Option<Marker> {
    let record = batch.iter_records().ok()?.next()?.ok()?;
    Marker::decode(&record.key?, &record.value?).ok().flatten()
}
