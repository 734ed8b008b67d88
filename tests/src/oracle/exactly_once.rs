//! Exactly once (S18 and S21 with S20): a copier's output, as whoever reads what is decided sees it, has each record of its input
//! once that its group's offset is behind, in the transaction that has moved the offset over it, and no other.
//!
//! What is seen twice is found at once; what is missing, when everything is decided and compared.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{
    Offset, PartitionIndex, TopicPartition,
    batch::{Batch, BatchHeader},
};

use super::{Verdict, group_log::Settled, require, scan::Coordinated, scan::Epoch, violation};

/// What a copy says that it is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copied {
    pub pair: u8,
    /// Of the ledger.
    pub partition: PartitionIndex,
    pub offset: Offset,
}

impl Copied {
    /// As the value of a record.
    pub fn value(self) -> u64 {
        u64::from(self.pair) << 56 | u64::from(self.partition) << 48 | self.offset
    }

    fn of(value: u64) -> Self {
        let [pair, partition, ..] = value.to_be_bytes();
        let partition = PartitionIndex::from(partition);
        let offset = value & ((1 << 48) - 1);
        Self { pair, partition, offset }
    }

    /// The group of a pair of copiers.
    pub fn group(pair: u8) -> String {
        format!("copiers-{pair}")
    }

    /// The pair whose group this is.
    pub(super) fn pair_of(group: &str) -> Option<u8> {
        group.strip_prefix("copiers-")?.parse().ok()
    }
}

/// How far a pair's group is in one partition of the ledger, and which transaction has moved it over what.
#[derive(Debug, Default)]
struct Progress {
    offset: Offset,
    /// End of what each transaction has moved the offset over.
    moved: BTreeMap<Offset, Epoch>,
}

/// Input and output of all copiers.
#[derive(Debug, Default)]
pub struct ExactlyOnce {
    /// Something of it may be lost: nothing is owed to anybody any more.
    pub is_off: bool,
    /// Who has written each record of the ledger.
    input: BTreeMap<(PartitionIndex, Offset), Epoch>,
    /// Copies in transactions that have not ended, by the partition they are in.
    open: BTreeMap<(TopicPartition, Epoch), Vec<(Copied, Offset)>>,
    /// Copies that count: in which transaction, and where.
    copies: BTreeMap<Copied, (Epoch, TopicPartition, Offset)>,
    progress: BTreeMap<(u8, PartitionIndex), Progress>,
}

impl ExactlyOnce {
    /// A batch of the ledger.
    pub(super) fn entered(&mut self, partition: TopicPartition, header: &BatchHeader) {
        let epoch = (header.producer_id, header.producer_epoch);
        for offset in header.base_offset..header.next_offset() {
            self.input.insert((partition.partition, offset), epoch);
        }
    }

    /// A batch of copies.
    pub(super) fn written(&mut self, partition: TopicPartition, batch: &Batch) -> Verdict {
        let header = &batch.header;
        let epoch = (header.producer_id, header.producer_epoch);
        let broken = || violation("S25", format!("{partition}: {} is no copy", header.base_offset));
        for record in batch.records().map_err(|_| broken())? {
            let value = record.value.as_deref().and_then(|value| value.first_chunk().copied());
            let copied = value.map(|value| Copied::of(u64::from_be_bytes(value)));
            let copied = copied.ok_or_else(broken)?;
            self.open.entry((partition, epoch)).or_default().push((copied, record.offset));
        }
        Ok(())
    }

    /// A transaction has ended in a partition of copies, in the epoch of its marker.
    pub(super) fn ended(
        &mut self,
        partition: TopicPartition,
        (producer_id, epoch): Epoch,
        commit: bool,
    ) -> Verdict {
        let of = (producer_id, epoch - 1);
        let Some(copies) = self.open.remove(&(partition, of)) else { return Ok(()) };
        if !commit {
            return Ok(());
        }
        for (copied, at) in copies {
            let before = self.copies.insert(copied, (of, partition, at));
            require(before.is_none() || self.is_off, "exactly once", || {
                format!("{copied:?} is at {at} of {partition} in {of:?}, and {before:?}")
            })?;
        }
        Ok(())
    }

    /// A group's offset has come out of a transaction.
    pub(super) fn settled(&mut self, settled: &Settled) -> Verdict {
        let Settled { of: (group, partition), producer, offset } = settled;
        let Some(pair) = Copied::pair_of(group) else { return Ok(()) };
        let progress = self.progress.entry((pair, partition.partition)).or_default();
        let before = progress.offset;
        require(*offset > before || self.is_off, "exactly once", || {
            format!("{group} goes back to {offset} in {partition} from {before}, in {producer:?}")
        })?;
        progress.offset = *offset;
        progress.moved.insert(*offset, *producer);
        Ok(())
    }

    /// How far a pair's group is, as it has committed.
    pub fn position(&self, pair: u8, partition: PartitionIndex) -> Offset {
        self.progress.get(&(pair, partition)).map_or(0, |progress| progress.offset)
    }

    /// Everything is decided, and nothing was lost.
    pub(super) fn compare(&self, coordinated: &Coordinated) -> Verdict {
        let is_in = |epoch: &Epoch| {
            let decision = coordinated.decisions.get(&(epoch.0, epoch.1 + 1));
            decision.is_some_and(|decision| decision.commit)
        };
        let mut due = BTreeSet::new();
        for ((pair, partition), progress) in &self.progress {
            let (pair, partition) = (*pair, *partition);
            let input = self.input.range((partition, 0)..(partition, progress.offset));
            for ((_, offset), _) in input.filter(|(_, epoch)| is_in(epoch)) {
                let copied = Copied { pair, partition, offset: *offset };
                let moved = progress.moved.range(offset + 1..).next().map(|(_, epoch)| *epoch);
                let copy = self.copies.get(&copied);
                let is_same = copy.is_some_and(|(epoch, ..)| Some(*epoch) == moved);
                require(is_same, "exactly once", || {
                    format!("{copied:?}: its copy is {copy:?}, its offset came with {moved:?}")
                })?;
                due.insert(copied);
            }
        }
        let mut others = self.copies.iter().filter(|(copied, _)| !due.contains(copied));
        let other = others.next();
        require(other.is_none(), "exactly once", || format!("{other:?} is a copy of nothing due"))
    }
}
