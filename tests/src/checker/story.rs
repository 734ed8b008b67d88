//! Histories for the judges' own tests, written as one tells them.

use super::{Kind, check};
use crate::history::{
    Action, History, Outcome, Partition, Poll, ProcessId, Read, Repeats, Send, Value,
};

/// A history in which every operation is over before the next one begins.
#[derive(Default)]
pub(super) struct Story {
    pub(super) history: History,
    now_ns: u64,
}

pub(super) fn partition() -> Partition {
    Partition::new("t", 0)
}

pub(super) fn sent(value: Value) -> Send {
    Send::durable(partition(), value, Repeats::Never)
}

impl Story {
    /// Anything, over before the next begins.
    pub(super) fn did(mut self, process: ProcessId, action: Action, outcome: Outcome) -> Self {
        self.now_ns += 10;
        self.history.record(process, (self.now_ns, self.now_ns + 5), action, outcome);
        self
    }

    /// Sent in epoch 1 and acknowledged at this offset.
    pub(super) fn ok(self, process: ProcessId, value: Value, offset: u64) -> Self {
        self.acknowledged(process, sent(value), offset)
    }

    pub(super) fn acknowledged(self, process: ProcessId, mut send: Send, offset: u64) -> Self {
        send.acknowledged = Some((offset, 1));
        self.did(process, Action::Send(send), Outcome::Ok)
    }

    pub(super) fn fail(self, process: ProcessId, value: Value) -> Self {
        self.did(process, Action::Send(sent(value)), Outcome::Fail)
    }

    pub(super) fn info(self, process: ProcessId, value: Value) -> Self {
        self.did(process, Action::Send(sent(value)), Outcome::Info)
    }

    /// Reads offsets and values, written in epoch 1, in one poll.
    pub(super) fn poll(self, process: ProcessId, records: &[(u64, Value)]) -> Self {
        let poll = Poll { records: vec![(partition(), reads(records))], ..Poll::default() };
        self.did(process, Action::Poll(poll), Outcome::Ok)
    }

    pub(super) fn assign(self, process: ProcessId, offset: u64) -> Self {
        self.did(process, Action::Assign(vec![(partition(), offset)]), Outcome::Ok)
    }

    /// Faults are over from here on.
    pub(super) fn healed(mut self) -> Self {
        self.history.healed_ns = Some(self.now_ns + 7);
        self
    }

    /// Exactly these kinds are found.
    #[track_caller]
    pub(super) fn finds(&self, kinds: &[Kind]) {
        let report = check(&self.history);
        let found: Vec<_> = report.findings.anomalies.keys().copied().collect();
        assert_eq!(found, kinds, "{report}");
    }

    /// This kind is found, whatever else is.
    #[track_caller]
    pub(super) fn finds_among_others(&self, kind: Kind) {
        let report = check(&self.history);
        assert!(report.count(kind) > 0, "no {kind:?}: {report}");
    }

    #[track_caller]
    pub(super) fn is_clean(&self) {
        self.finds(&[]);
    }
}

pub(super) fn reads(records: &[(u64, Value)]) -> Vec<Read> {
    records
        .iter()
        .map(|(offset, value)| Read { offset: *offset, value: *value, epoch: 1 })
        .collect()
}
