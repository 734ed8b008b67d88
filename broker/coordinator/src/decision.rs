//! What every call of a coordinator gives back, and the time it is given.

use tidemark_protocol::{Failure, Offset, TimestampMs};

use crate::record::Record;

/// Names a request for as long as it is not answered. The caller chooses it.
pub type Token = u64;

/// The time of a call, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that does not run backwards. Deadlines are on it.
    pub mono_ms: u64,
    /// What is written into records, for people and for limits that outlive a process.
    pub wall_ms: TimestampMs,
}

/// What a call came to. The caller carries it out in this order: append the records, give the replies and run the
/// effects once everything below `end_offset` is committed, call again at `wake_at_ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "records that are not appended make the coordinator's state a lie"]
pub struct Decision<Response, Effect> {
    /// Where the first record must be appended: the log's end when the call was made.
    pub base_offset: Offset,
    /// To be appended in one batch, so that none is there without the others. Often empty.
    pub records: Vec<Record>,
    /// Answers to this request and to requests that waited. Held until everything in front of
    /// [`Decision::end_offset`] is committed, also when this decision has no records: an answer may repeat what
    /// an earlier decision wrote.
    pub replies: Vec<Reply<Response>>,
    /// Held like the replies.
    pub effects: Vec<Effect>,
    /// When to call `on_timer` at the latest, on the monotonic clock.
    pub wake_at_ms: Option<u64>,
}

impl<Response, Effect> Decision<Response, Effect> {
    /// The log's end once the records are appended.
    pub fn end_offset(&self) -> Offset {
        self.base_offset + self.records.len() as u64
    }
}

/// An answer and the request it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<Response> {
    pub token: Token,
    pub outcome: Result<Response, Failure>,
}
