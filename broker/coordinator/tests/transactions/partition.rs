//! A partition: a log in memory with the machine that knows its producers. What readers see is recomputed from the log
//! by the definition, and compared.

use std::collections::BTreeMap;

use tidemark_coordinator::{
    ProducerStates,
    producer_state::{
        Admission, Content, Guard, Marker, MarkerAdmission, MarkerOrigin, Verification,
    },
    transactions::ProducerIdentity,
};
use tidemark_protocol::{ErrorCode, Offset, batch::BatchHeader};

/// A record: which process wrote it in which of its transactions.
pub(crate) type Value = (u32, u32, u32);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) header: BatchHeader,
    pub(crate) content: Content,
    pub(crate) value: Option<Value>,
}

pub(crate) struct Partition {
    pub(crate) states: ProducerStates,
    pub(crate) log: Vec<Entry>,
}

impl Partition {
    pub(crate) fn new() -> Self {
        Self { states: ProducerStates::new(), log: Vec::new() }
    }

    pub(crate) fn end_offset(&self) -> Offset {
        self.log.last().map_or(0, |entry| entry.header.next_offset())
    }

    /// What a batch needs before it can be appended.
    pub(crate) fn begin(&mut self, header: &BatchHeader) -> Verification {
        self.states.begin_verification(header)
    }

    pub(crate) fn append(
        &mut self,
        header: &BatchHeader,
        value: Value,
        guard: Option<Guard>,
    ) -> Result<Admission, ErrorCode> {
        let admission = self.states.check(header, guard)?;
        if admission == Admission::Append {
            self.push(*header, Content::Data, Some(value));
        }
        Ok(admission)
    }

    pub(crate) fn end(
        &mut self,
        producer: ProducerIdentity,
        marker: Marker,
    ) -> Result<MarkerAdmission, ErrorCode> {
        let origin = MarkerOrigin::Coordinator;
        let admission =
            self.states.check_marker(producer.producer_id, producer.epoch, marker, origin)?;
        if admission == MarkerAdmission::Append {
            let mut header = header(producer, -1);
            header.attributes |= 0x20;
            self.push(header, Content::Marker(marker), None);
        }
        Ok(admission)
    }

    fn push(&mut self, mut header: BatchHeader, content: Content, value: Option<Value>) {
        header.base_offset = self.end_offset();
        self.states.replay(&header, content);
        self.log.push(Entry { header, content, value });
        self.check();
    }

    /// Another replica leads: what it knows it has from the log, or from a snapshot and the rest of the log.
    pub(crate) fn fail_over(&mut self, from: usize) {
        let from = from.min(self.log.len());
        let mut states = ProducerStates::new();
        for entry in &self.log[..from] {
            states.replay(&entry.header, entry.content);
        }
        let mut states = ProducerStates::from_snapshot(&states.to_snapshot()).unwrap();
        for entry in &self.log[from..] {
            states.replay(&entry.header, entry.content);
        }
        assert!(states == self.states, "{states:?} is not {:?}", self.states);
        self.states = states;
    }

    /// How each transactional record ended, by offset; `None` if it has not.
    pub(crate) fn outcomes(&self) -> BTreeMap<Offset, Option<bool>> {
        let mut outcomes = BTreeMap::new();
        for (index, entry) in self.log.iter().enumerate().filter(|(_, entry)| entry.value.is_some())
        {
            let of_producer = |other: &&Entry| other.header.producer_id == entry.header.producer_id;
            let mut later = self.log[index..].iter().filter(of_producer);
            let end = later.find_map(|other| match other.content {
                Content::Marker(marker) => Some(marker.commit),
                _ => None,
            });
            outcomes.insert(entry.header.base_offset, end);
        }
        outcomes
    }

    /// The last stable offset and the aborted transactions, by the definition, for every possible watermark.
    fn check(&self) {
        let outcomes = self.outcomes();
        for high_watermark in 0..=self.end_offset() {
            let is_decided = |entry: &Entry| {
                let id = entry.header.producer_id;
                self.log.iter().any(|other| {
                    other.header.base_offset > entry.header.base_offset
                        && other.header.producer_id == id
                        && matches!(other.content, Content::Marker(_))
                        && other.header.base_offset < high_watermark
                })
            };
            let undecided =
                self.log.iter().find(|entry| entry.value.is_some() && !is_decided(entry));
            let expected = undecided
                .map_or(high_watermark, |entry| entry.header.base_offset.min(high_watermark));
            let stable = self.states.last_stable_offset(high_watermark);
            assert_eq!(stable, expected, "with a watermark of {high_watermark}: {self:?}");
        }
        let stable = self.states.last_stable_offset(self.end_offset());
        let seen = self.read_committed(0, stable);
        let committed = self.log.iter().filter(|entry| {
            entry.header.base_offset < stable
                && outcomes.get(&entry.header.base_offset) == Some(&Some(true))
        });
        assert_eq!(seen, committed.filter_map(|entry| entry.value).collect::<Vec<_>>());
    }

    /// What a client makes of a read: it is given the aborted transactions in the range, and skips what is theirs.
    pub(crate) fn read_committed(&self, from: Offset, to: Offset) -> Vec<Value> {
        let aborted = self.states.aborted(from..to);
        let is_aborted = |entry: &Entry| {
            let offset = entry.header.base_offset;
            aborted.iter().any(|one| {
                one.producer_id == entry.header.producer_id
                    && (one.first_offset..one.last_offset).contains(&offset)
            })
        };
        let read = self.log.iter().filter(|entry| (from..to).contains(&entry.header.base_offset));
        read.filter(|entry| !is_aborted(entry)).filter_map(|entry| entry.value).collect()
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Entry { header, content, value } in &self.log {
            let (id, epoch) = (header.producer_id, header.producer_epoch);
            writeln!(out, "{}: {id}/{epoch} {content:?} {value:?}", header.base_offset)?;
        }
        Ok(())
    }
}

/// A transactional batch of one record.
pub(crate) fn header(producer: ProducerIdentity, sequence: i32) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        batch_bytes: BatchHeader::BYTES,
        leader_epoch: 0,
        crc: 0,
        attributes: 0x10,
        last_offset_delta: 0,
        base_timestamp: 0,
        max_timestamp: 0,
        producer_id: producer.producer_id,
        producer_epoch: producer.epoch,
        base_sequence: sequence,
        record_count: 1,
    }
}
