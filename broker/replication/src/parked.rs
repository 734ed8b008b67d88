//! Produce requests that wait for offsets to be reached or for their deadline. Knows no leadership and no
//! configuration.
//!
//! One queue per thing waited for, sorted by end offset, so that what an advance releases is always a run at its
//! front. Appends happen in offset order and go to the back: constant work per request, however long the
//! queue, and no allocation once the queues have grown to their working size. Only requests that repeat an earlier
//! append look for their place.

use std::collections::VecDeque;

use tidemark_protocol::Offset;

use crate::event::Token;

/// Most produce requests that wait in one partition; beyond it new ones are refused as overloaded.
pub const PARKED_PRODUCES_MAX: usize = 16_384;

/// What must pass a request's end offset before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The high watermark.
    Committed,
    /// The high watermark and the leader's flushed offset.
    CommittedAndFlushed,
    /// The leader's flushed offset.
    Flushed,
}

impl Wait {
    /// In the order of the queues.
    const ALL: [Self; 3] = [Self::Committed, Self::CommittedAndFlushed, Self::Flushed];

    /// Whether it is about what the in-sync replicas hold.
    pub(crate) fn is_for_commit(self) -> bool {
        self != Self::Flushed
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) token: Token,
    pub(crate) base_offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) deadline_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Parked {
    /// Indexed by [`Wait`].
    queues: [VecDeque<Request>; 3],
    /// No deadline is earlier. It may be too early after releases: that costs one look at the queues.
    earliest_deadline_ms: u64,
}

impl Parked {
    pub(crate) fn new() -> Self {
        Self { queues: Default::default(), earliest_deadline_ms: u64::MAX }
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// When to look for expired requests next, at the latest.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        (self.len() > 0).then_some(self.earliest_deadline_ms)
    }

    pub(crate) fn park(&mut self, wait: Wait, request: Request) {
        let queue = &mut self.queues[wait as usize];
        if queue.back().is_none_or(|last| last.end_offset <= request.end_offset) {
            queue.push_back(request);
        } else {
            let place = queue.partition_point(|other| other.end_offset <= request.end_offset);
            queue.insert(place, request);
        }
        self.earliest_deadline_ms = self.earliest_deadline_ms.min(request.deadline_ms);
    }

    /// Takes out the requests that waited for these offsets and passes them on, each queue in offset order.
    pub(crate) fn release(
        &mut self,
        high_watermark: Offset,
        flushed_offset: Offset,
        mut reply: impl FnMut(Wait, Request),
    ) {
        let reached = [high_watermark, high_watermark.min(flushed_offset), flushed_offset];
        for ((queue, wait), reached) in self.queues.iter_mut().zip(Wait::ALL).zip(reached) {
            while let Some(request) = queue.pop_front_if(|first| first.end_offset <= reached) {
                reply(wait, request);
            }
        }
        if self.len() == 0 {
            self.earliest_deadline_ms = u64::MAX;
        }
    }

    /// Takes out the requests whose deadline is `now_ms` or earlier.
    pub(crate) fn expire(&mut self, now_ms: u64, mut reply: impl FnMut(Wait, Request)) {
        if now_ms < self.earliest_deadline_ms {
            return;
        }
        let mut earliest_ms = u64::MAX;
        for (queue, wait) in self.queues.iter_mut().zip(Wait::ALL) {
            queue.retain(|request| {
                let waits = request.deadline_ms > now_ms;
                if waits {
                    earliest_ms = earliest_ms.min(request.deadline_ms);
                } else {
                    reply(wait, *request);
                }
                waits
            });
        }
        self.earliest_deadline_ms = earliest_ms;
    }

    /// Takes out everything.
    pub(crate) fn drain(&mut self, mut reply: impl FnMut(Request)) {
        for queue in &mut self.queues {
            queue.drain(..).for_each(&mut reply);
        }
        self.earliest_deadline_ms = u64::MAX;
    }
}
