//! What a partition knows of its producers, beside its log: made from the log's batches, kept in step with them, and
//! summed up from time to time so that a restart has little to read again.
//!
//! What is known and what is refused, `tidemark_coordinator::ProducerStates` decides. Here it is read from a log, told of
//! every append, and made anew when the log was cut.

use std::{collections::VecDeque, ops::Range};

use tidemark_coordinator::{
    ProducerStates,
    producer_state::{
        AbortedTransaction, Admission, Content, Guard, Marker, MarkerAdmission, MarkerOrigin,
        Verification,
    },
};
use tidemark_protocol::{
    ErrorCode, Failure, Offset, TopicPartition,
    batch::{Batch, BatchHeader, batches},
    bug,
    messages::ProducerIdentity,
};
use tidemark_storage::{
    DiskError, OpenError, ReadError, ReadOutcome, Residency, SUMMARY_BYTES_MAX, Summary,
};

use crate::disk::{Log, SummaryJob};

/// A summary is made when so much was appended since the last: what a restart has to read again.
const SUMMARY_EVERY_BYTES: u64 = 16 << 20;
/// Or so many times the length of the last one, if that is more.
const SUMMARY_EVERY_LENGTHS: u64 = 16;
/// The longest that goes into the file of all checkpoints when the log is closed.
const CHECKPOINT_SUMMARY_BYTES_MAX: usize = 64 << 10;
/// What is read of a log at once.
const READ_BYTES: usize = 1 << 20;
/// Producers that have written nothing for so long are forgotten.
const EXPIRY_MS: u64 = 24 * 3_600_000;
/// And not before they have written nothing for so long by this process's own count: their clocks may be wrong.
const ABSENCE_MS: u64 = 3_600_000;

/// What a leader does with batches that it does not refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It appends them.
    New,
    /// They are in the log, at these offsets.
    Repeated(Range<Offset>),
    /// The coordinator of their transaction has to be asked first.
    Unverified(Guard),
}

/// The producers of one partition.
#[derive(Debug)]
pub(crate) struct Producers {
    states: ProducerStates,
    /// Up to where the summary on disk goes.
    stored_end: Offset,
    /// A summary that waits until what it is about is committed and durable.
    prepared: Option<Summary>,
    /// Appended since the last summary was made.
    bytes_since: u64,
    /// Of the last summary.
    summary_bytes: u64,
    /// Nothing was appended since somebody last looked.
    is_quiet: bool,
    /// When the log ended where, a while ago.
    mark: Option<(u64, Offset)>,
}

impl Producers {
    /// Of a log without records.
    pub(crate) fn new() -> Self {
        Self {
            states: ProducerStates::new(),
            stored_end: 0,
            prepared: None,
            bytes_since: 0,
            summary_bytes: 0,
            is_quiet: true,
            mark: None,
        }
    }

    /// Reads what is known of a log: the last summary, and the batches since. Blocks on the disk.
    pub(crate) fn load(log: &Log) -> Result<Self, OpenError> {
        let mut producers = Self::new();
        producers.read(log).map_err(OpenError::Disk)?;
        Ok(producers)
    }

    /// The log was cut: what was known of the rest is forgotten. Blocks on the disk.
    pub(crate) fn reload(&mut self, log: &Log) -> Result<(), DiskError> {
        if bug::is_put_back("truncation-keeps-producers") {
            return Ok(());
        }
        let end = log.log_end_offset();
        self.prepared = self.prepared.take().filter(|prepared| prepared.end_offset <= end);
        self.mark = None;
        self.states = ProducerStates::new();
        self.read(log)
    }

    fn read(&mut self, log: &Log) -> Result<(), DiskError> {
        let mut offset = 0;
        self.stored_end = 0;
        if let Some(Summary { end_offset, content }) = log.summary() {
            match ProducerStates::from_snapshot(&content) {
                Ok(states) if states.next_offset() <= end_offset => {
                    self.states = states;
                    (offset, self.stored_end) = (end_offset, end_offset);
                    self.summary_bytes = content.len() as u64;
                }
                Ok(_) => tracing::warn!(?log, "a summary goes further than it says"),
                Err(error) => tracing::warn!(?log, %error, "a summary cannot be used"),
            }
        }
        self.bytes_since = 0;
        let (reader, end) = (log.reader(), log.log_end_offset());
        offset = offset.max(log.log_start_offset());
        while offset < end {
            match reader.read(offset, end, READ_BYTES, Residency::Any) {
                Ok(ReadOutcome::Batches { bytes, next_offset }) if next_offset > offset => {
                    for batch in batches(bytes).map_while(Result::ok) {
                        self.take(&batch, batch.header);
                    }
                    offset = next_offset;
                }
                Ok(_nothing_left) => break,
                // What is damaged is nobody's; whoever wrote it may go on from anywhere.
                Err(ReadError::Corrupt { range }) => offset = range.end,
                Err(ReadError::OutOfRange { range, .. }) if range.start > offset => {
                    offset = range.start;
                }
                Err(ReadError::OutOfRange { .. }) => break,
                Err(ReadError::Disk(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a leader appends these batches, or has them already. `guard`: the coordinator of their transaction has
    /// agreed since that was given.
    pub(crate) fn admit(
        &mut self,
        id: TopicPartition,
        batches: &[Batch],
        guard: Option<Guard>,
    ) -> Result<Admitted, Failure> {
        let headers = || batches.iter().map(|batch| &batch.header);
        let mut needed = None;
        if guard.is_none() {
            for header in headers().filter(|header| header.is_transactional()) {
                if let Verification::Needed(guard) = self.states.begin_verification(header) {
                    needed = Some(guard);
                }
            }
        }
        let admission = self.states.check_all(headers(), |_| guard.or(needed));
        match (admission, needed) {
            (Ok(Admission::Duplicate { base_offset, last_offset, .. }), _) => {
                Ok(Admitted::Repeated(base_offset..last_offset + 1))
            }
            // Whatever is wrong now may be right when the last transaction has ended here, which the coordinator waits for.
            (_, Some(guard)) => Ok(Admitted::Unverified(guard)),
            (Ok(Admission::Append), None) => Ok(Admitted::New),
            (Err(code), None) => Err(refusal(code, id)),
        }
    }

    /// Whether a leader writes the end of a transaction; `Some`: it is there already.
    pub(crate) fn admit_marker(
        &self,
        id: TopicPartition,
        producer: ProducerIdentity,
        marker: Marker,
    ) -> Result<Option<Range<Offset>>, Failure> {
        let ProducerIdentity { producer_id, epoch } = producer;
        let origin = MarkerOrigin::Coordinator;
        let admission = self.states.check_marker(producer_id, epoch, marker, origin);
        match admission.map_err(|code| refusal(code, id))? {
            MarkerAdmission::Append => Ok(None),
            MarkerAdmission::AlreadyThere => {
                let known = self.states.producer(producer_id).expect("who has ended is known");
                Ok(Some(known.last_offset..known.last_offset + 1))
            }
        }
    }

    /// Exclusive end of what is decided, below `high_watermark`, which has just been reached.
    pub(crate) fn last_stable_offset(&mut self, high_watermark: Offset) -> Offset {
        let last_stable = self.states.last_stable_offset(high_watermark);
        self.states.high_watermark_reached(high_watermark);
        last_stable
    }

    /// Transactions that were aborted, by their ends.
    pub(crate) fn aborted(&self) -> &VecDeque<AbortedTransaction> {
        self.states.all_aborted()
    }

    /// Takes note of what a leader has appended from `base_offset` on.
    pub(crate) fn appended(&mut self, batches: &[Batch], base_offset: Offset) {
        let mut base_offset = base_offset;
        for batch in batches {
            let header = BatchHeader { base_offset, ..batch.header };
            base_offset = header.next_offset();
            self.take(batch, header);
        }
    }

    /// Takes note of what a follower has appended.
    pub(crate) fn followed(&mut self, batches: &[Batch]) {
        if bug::is_put_back("followers-forget-producers") {
            return;
        }
        for batch in batches {
            self.take(batch, batch.header);
        }
    }

    fn take(&mut self, batch: &Batch, header: BatchHeader) {
        self.bytes_since += batch.bytes().len() as u64;
        self.is_quiet = false;
        // Compaction may have merged what nobody wrote with what is known already.
        if header.base_offset >= self.states.next_offset() {
            self.states.replay(&header, content(batch));
        }
    }

    /// Forgets who has been away for long.
    pub(crate) fn upkeep(&mut self, wall_ms: u64, log: &Log) {
        self.states.log_start_reached(log.log_start_offset());
        let (marked_ms, marked_end) =
            *self.mark.get_or_insert_with(|| (wall_ms, log.log_end_offset()));
        if wall_ms.saturating_sub(marked_ms) >= ABSENCE_MS {
            let before_ms = i64::try_from(wall_ms.saturating_sub(EXPIRY_MS)).unwrap_or(0);
            self.states.expire(before_ms, marked_end);
            self.mark = Some((wall_ms, log.log_end_offset()));
        }
    }

    /// A summary to be stored, if there is one whose batches are all below `committed`, which are durable and here to stay.
    /// `may_be_early`: also if little was appended since the last, but nothing any more.
    pub(crate) fn summary_job(
        &mut self,
        log: &Log,
        committed: Offset,
        may_be_early: bool,
    ) -> Option<SummaryJob> {
        let was_quiet = std::mem::replace(&mut self.is_quiet, true);
        let end_offset = log.log_end_offset();
        let every = SUMMARY_EVERY_BYTES.max(SUMMARY_EVERY_LENGTHS * self.summary_bytes);
        let is_early = may_be_early && was_quiet && !self.states.is_empty();
        let is_due = self.bytes_since >= every || (is_early && self.stored_end < end_offset);
        if is_due && self.prepared.is_none() && end_offset > self.stored_end {
            let content = self.states.to_snapshot();
            (self.bytes_since, self.summary_bytes) = (0, content.len() as u64);
            self.prepared = Some(Summary { end_offset, content });
        }
        let ready = self.prepared.take_if(|prepared| prepared.end_offset <= committed)?;
        if ready.content.len() > SUMMARY_BYTES_MAX {
            tracing::warn!(?log, "too many producers for a summary: a restart reads more");
            return None;
        }
        self.stored_end = ready.end_offset;
        Some(log.summary_job(ready))
    }

    /// What a checkpoint is to say. That nobody is known is short enough for any; whom there is, only for the last one.
    pub(crate) fn checkpoint_summary(&self, log: &Log, is_last: bool) -> Option<Summary> {
        let (flushed, end) = (log.flushed_offset(), log.log_end_offset());
        if self.states.is_empty() && flushed > 0 {
            let content = ProducerStates::new().to_snapshot();
            return Some(Summary { end_offset: flushed, content });
        }
        if !is_last || flushed < end || self.stored_end == end {
            return None;
        }
        let content = self.states.to_snapshot();
        (content.len() <= CHECKPOINT_SUMMARY_BYTES_MAX)
            .then_some(Summary { end_offset: end, content })
    }
}

/// What a batch is, for whoever counts producers.
fn content(batch: &Batch) -> Content {
    if !batch.header.is_control() {
        return Content::Data;
    }
    let record = batch.iter_records().ok().and_then(|mut records| records.next()?.ok());
    let marker = record.and_then(|record| {
        let (key, value) = (record.key?, record.value?);
        Marker::decode(&key, &value).ok().flatten()
    });
    marker.map_or(Content::OtherControl, Content::Marker)
}

/// Nothing was appended.
fn refusal(code: ErrorCode, id: TopicPartition) -> Failure {
    let why = match code {
        ErrorCode::OutOfOrderSequence => {
            "the batch does not follow the last one of its producer: one in between is missing, or has failed"
        }
        ErrorCode::InvalidProducerEpoch => "its producer has gone on in a later epoch",
        ErrorCode::InvalidRequest => {
            "some of the batches are there already and some are not, or not one behind the other; send them one by one"
        }
        ErrorCode::InvalidTransactionState => {
            "its producer has a transaction open here, which the batch is not part of"
        }
        ErrorCode::TransactionCoordinatorFenced => "a later coordinator has spoken",
        ErrorCode::TransactionUnverified => {
            "the partition is not known to belong to the transaction of the batch"
        }
        _ => "its producer's numbers cannot be right",
    };
    Failure::new(code, format!("{id}: {why}; nothing was appended"))
}
