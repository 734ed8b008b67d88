//! Writes a history down while it happens, on the machine's clock.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tidemark_protocol::PartitionIndex;

use crate::history::{
    Action, History, OpId, Outcome, Partition, ProcessId, Repeats, Send, TimeNs, Value,
};

/// Values of one process are `process << VALUE_BITS` and up.
const VALUE_BITS: u32 = 40;

#[derive(Debug, Default)]
struct Written {
    history: History,
    /// By partition, when the latest send was invoked that has been acknowledged.
    progress: BTreeMap<PartitionIndex, TimeNs>,
}

/// A history that many clients write to. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct Recorder {
    began: Instant,
    topic: Arc<str>,
    written: Arc<(Mutex<Written>, Condvar)>,
}

impl Recorder {
    /// For clients of one topic.
    pub fn new(topic: &str) -> Self {
        Self { began: Instant::now(), topic: topic.into(), written: Arc::default() }
    }

    pub fn now_ns(&self) -> TimeNs {
        u64::try_from(self.began.elapsed().as_nanos()).expect("shorter than five centuries")
    }

    pub fn partition(&self, index: PartitionIndex) -> Partition {
        Partition { topic: self.topic.clone(), index }
    }

    /// The `number`-th value of a process.
    pub fn value(process: ProcessId, number: u64) -> Value {
        assert!(number < 1 << VALUE_BITS, "a process sends fewer values");
        (u64::from(process) << VALUE_BITS) | number
    }

    /// A send begins.
    pub fn sending(
        &self,
        process: ProcessId,
        index: PartitionIndex,
        value: Value,
        repeats: Repeats,
    ) -> OpId {
        let send = Send::durable(self.partition(index), value, repeats);
        // Under the lock, so that the order of operations is that of time.
        let mut written = self.written();
        let now_ns = self.now_ns();
        written.history.invoke(process, now_ns, Action::Send(send))
    }

    /// A send was acknowledged with an offset by a leader of an epoch.
    pub fn acknowledged(&self, op: OpId, (offset, epoch): (u64, u32)) {
        let mut written = self.written();
        let now_ns = self.now_ns();
        written.history.acknowledge(op, now_ns, offset, epoch);
        let operation = &written.history.operations[op];
        if let Action::Send(send) = &operation.action {
            let (index, invoked_ns) = (send.partition.index, operation.invoked_ns);
            let latest = written.progress.entry(index).or_default();
            *latest = invoked_ns.max(*latest);
        }
        self.written.1.notify_all();
    }

    /// A send ended in another way.
    pub fn ended(&self, op: OpId, outcome: Outcome) {
        let mut written = self.written();
        let now_ns = self.now_ns();
        written.history.complete(op, now_ns, outcome);
    }

    /// Something that began at `invoked_ns` is over.
    pub fn did(&self, process: ProcessId, invoked_ns: TimeNs, action: Action, outcome: Outcome) {
        let mut written = self.written();
        let now_ns = self.now_ns();
        written.history.record(process, (invoked_ns, now_ns), action, outcome);
    }

    /// Something was done to the system.
    pub fn note(&self, what: String) {
        let mut written = self.written();
        let now_ns = self.now_ns();
        written.history.notes.push((now_ns, what));
    }

    /// Faults are over from now on.
    pub fn healed(&self) {
        let mut written = self.written();
        written.history.healed_ns = Some(self.now_ns());
    }

    /// Waits until all these partitions have acknowledged something that was sent after now; how long that took.
    pub fn await_progress(
        &self,
        partitions: Range<PartitionIndex>,
        patience: Duration,
    ) -> Result<Duration> {
        let since_ns = self.now_ns();
        let stalled = |written: &mut Written| {
            let is_stalled = |index: &PartitionIndex| {
                written.progress.get(index).is_none_or(|at_ns| *at_ns <= since_ns)
            };
            partitions.clone().any(|index| is_stalled(&index))
        };
        let (lock, told) = &*self.written;
        let held = lock.lock().expect("no holder panics");
        let (written, waited) =
            told.wait_timeout_while(held, patience, stalled).expect("no holder panics");
        if waited.timed_out() {
            let open = written.history.operations.iter().filter(|op| op.completed_ns.is_none());
            bail!(
                "no acknowledgement for some partition within {patience:?}; last by partition: {:?}, now {since_ns}, {} sends open",
                written.progress,
                open.count(),
            );
        }
        Ok(Duration::from_nanos(self.now_ns() - since_ns))
    }

    pub fn history(&self) -> History {
        self.written().history.clone()
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.0.lock().expect("no holder panics")
    }
}
