//! Real-time lag: for how long something had been acknowledged that a consumer had not read yet, at each of its polls.
//!
//! A figure and no anomaly: how stale may be is for whoever knows what went on.

use std::{collections::BTreeMap, fmt};

use tidemark_protocol::Offset;

use super::index::Index;
use crate::history::{Action, Outcome, Partition, ProcessId, TimeNs};

/// Over all polls of consumers with assigned partitions that began before everything was healed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    pub polls: usize,
    pub median_ns: TimeNs,
    pub p99_ns: TimeNs,
    pub max_ns: TimeNs,
}

impl fmt::Display for Lag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, max] =
            [self.median_ns, self.p99_ns, self.max_ns].map(|ns| ns / 1_000_000);
        write!(out, "lag of readers in ms: median {median}, p99 {p99}, max {max}")
    }
}

/// Of one partition: acknowledged offsets in order, and the earliest acknowledgement of that offset or a later one.
type Acknowledged = Vec<(Offset, TimeNs)>;

pub(super) fn measure(index: &Index<'_>) -> Lag {
    let acknowledged = acknowledged(index);
    let healed_ns = index.history.healed_ns.unwrap_or(TimeNs::MAX);
    let mut positions: BTreeMap<ProcessId, BTreeMap<&Partition, Offset>> = BTreeMap::new();
    let mut lags = Vec::new();
    for operation in &index.history.operations {
        let position = positions.entry(operation.process).or_default();
        match &operation.action {
            Action::Assign(assigned) if operation.outcome == Outcome::Ok => {
                // Who begins late is behind for a good reason.
                let assigned = assigned.iter().filter(|_| operation.invoked_ns < healed_ns);
                *position = assigned.map(|(partition, at)| (partition, *at)).collect();
            }
            Action::Poll(poll) => {
                for (partition, reads) in &poll.records {
                    let last = reads.last().map(|read| read.offset + 1);
                    if let (Some(at), Some(next)) = (position.get_mut(partition), last) {
                        *at = next;
                    }
                }
                let now_ns = operation.invoked_ns;
                let behind = position.iter().filter_map(|(partition, at)| {
                    let known = acknowledged.get(partition)?;
                    let unread = known.partition_point(|(offset, _)| offset < at);
                    now_ns.checked_sub(known.get(unread)?.1)
                });
                if !position.is_empty() {
                    lags.push(behind.max().unwrap_or(0));
                }
            }
            _ => {}
        }
    }
    summary(lags)
}

fn acknowledged<'a>(index: &Index<'a>) -> BTreeMap<&'a Partition, Acknowledged> {
    let mut all: BTreeMap<&Partition, Acknowledged> = BTreeMap::new();
    for (_, operation, send) in index.sends().filter(|(_, _, send)| send.survives) {
        if let (Some((base, _)), Some(at)) = (send.acknowledged, operation.completed_ns) {
            let last = base + (send.values.len() as u64).saturating_sub(1);
            all.entry(&send.partition).or_default().push((last, at));
        }
    }
    for offsets in all.values_mut() {
        offsets.sort_unstable();
        let mut earliest = TimeNs::MAX;
        for (_, at) in offsets.iter_mut().rev() {
            earliest = earliest.min(*at);
            *at = earliest;
        }
    }
    all
}

fn summary(mut lags: Vec<TimeNs>) -> Lag {
    lags.sort_unstable();
    let at = |per_mille: usize| {
        let place = (lags.len() * per_mille / 1000).min(lags.len().saturating_sub(1));
        lags.get(place).copied().unwrap_or(0)
    };
    Lag { polls: lags.len(), median_ns: at(500), p99_ns: at(990), max_ns: at(1000) }
}

#[cfg(test)]
mod tests {
    use crate::checker::{check, story::*};

    #[test]
    fn lag_counts_from_the_oldest_acknowledgement_that_was_not_read() {
        // Acknowledged at 25 and 35, polled at 40 and 50.
        let story = Story::default().assign(2, 0).ok(1, 10, 0).ok(1, 11, 1);
        let lag = check(&story.poll(2, &[]).poll(2, &[(0, 10)]).history).lag;
        assert_eq!((lag.polls, lag.max_ns), (2, 15));
        let story = Story::default().assign(2, 0).ok(1, 10, 0);
        assert_eq!(check(&story.poll(2, &[(0, 10)]).history).lag.max_ns, 0);
    }
}
