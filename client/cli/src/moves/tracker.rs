//! How far moves are, how fast, and how long they will take: arithmetic on what was seen, with time as an argument.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tidemark_protocol::{TopicPartition, messages::PartitionReplicas};

use crate::{placement::Partition, quantity};

/// The rate is that of this much of the past.
const RATE_OVER: Duration = Duration::from_secs(10);

/// One partition that is not where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) partition: TopicPartition,
    /// Bytes to copy in all and bytes left; `None` when its leader does not say.
    pub(crate) bytes: Option<(u64, u64)>,
}

impl Look {
    /// What is left for the replicas that a move adds, or for one whole replica when the move has not begun.
    pub(crate) fn of(partition: &Partition, seen: Option<&PartitionReplicas>) -> Self {
        let bytes = seen.map(|seen| {
            if !partition.is_moving() {
                return (seen.size_bytes, seen.size_bytes);
            }
            let adding = &partition.metadata.adding;
            let left = |id| match seen.replicas.iter().find(|replica| replica.broker == id) {
                Some(replica) if replica.in_sync => 0,
                Some(replica) if replica.log_end_offset.is_some() => replica.lag_bytes,
                _ => seen.size_bytes,
            };
            let all = seen.size_bytes.saturating_mul(adding.len() as u64);
            (all, adding.iter().map(|id| left(*id)).sum())
        });
        Self { partition: partition.id(), bytes }
    }
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    partitions: BTreeMap<TopicPartition, Copying>,
    /// When how many bytes were done.
    samples: VecDeque<(Duration, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Copying {
    total: u64,
    left: u64,
    arrived: bool,
}

/// How far all of it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) partitions_left: usize,
    pub(crate) partitions: usize,
    pub(crate) bytes_done: u64,
    pub(crate) bytes_total: u64,
    pub(crate) bytes_per_second: Option<f64>,
    pub(crate) time_left: Option<Duration>,
}

impl Tracker {
    /// Takes in what is not where it should be at `now`, which counts from the first look. What was there before and is not
    /// any more has arrived.
    pub(crate) fn observe(&mut self, now: Duration, looks: &[Look]) -> View {
        for copying in self.partitions.values_mut() {
            copying.arrived = true;
        }
        for look in looks {
            let copying = self.partitions.entry(look.partition).or_default();
            copying.arrived = false;
            if let Some((total, left)) = look.bytes {
                // A log that is written to grows while it is copied.
                copying.total = copying.total.max(total).max(left);
                copying.left = left;
            }
        }
        let bytes_total: u64 = self.partitions.values().map(|it| it.total).sum();
        let going = || self.partitions.values().filter(|it| !it.arrived);
        let bytes_left: u64 = going().map(|it| it.left).sum();
        let bytes_done = bytes_total.saturating_sub(bytes_left);
        self.samples.push_back((now, bytes_done));
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= RATE_OVER) {
            self.samples.pop_front();
        }
        let bytes_per_second = self.rate();
        View {
            partitions_left: going().count(),
            partitions: self.partitions.len(),
            bytes_done,
            bytes_total,
            bytes_per_second,
            time_left: bytes_per_second.and_then(|rate| time_left(bytes_left, rate)),
        }
    }

    fn rate(&self) -> Option<f64> {
        let (&(first, done_first), &(last, done_last)) =
            (self.samples.front()?, self.samples.back()?);
        let elapsed = last.saturating_sub(first);
        (!elapsed.is_zero())
            .then(|| quantity::per_second(done_last.saturating_sub(done_first), elapsed))
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn time_left(bytes_left: u64, bytes_per_second: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(bytes_left as f64 / bytes_per_second).ok()
}

impl View {
    /// `2 of 5 partitions left, 1.20 GiB of 4.00 GiB, 50.0 MiB/s, 57.00s left`.
    pub(crate) fn line(&self) -> String {
        let copied = format!(
            "{} of {} left, {} of {}",
            self.partitions_left,
            quantity::counted(self.partitions as u64, "partition"),
            quantity::bytes(self.bytes_done),
            quantity::bytes(self.bytes_total),
        );
        let rate = self.bytes_per_second;
        let rate = rate.map(|rate| format!("{}/s", quantity::bytes_of_rate(rate)));
        let left = self.time_left.filter(|_| self.partitions_left > 0);
        let left = left.map(|left| format!("{} left", quantity::duration(left)));
        [Some(copied), rate, left].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{TopicId, messages::ReplicaProgress};

    use super::*;
    use crate::placement::{partitions_of, tests::topic};

    fn look(partition: u32, total: u64, left: u64) -> Look {
        let partition = TopicPartition { topic_id: TopicId::ZERO, partition };
        Look { partition, bytes: Some((total, left)) }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const MIB: u64 = 1 << 20;

    #[test]
    fn rate_and_time_left_come_from_the_last_seconds() {
        let mut tracker = Tracker::default();
        let begin =
            tracker.observe(Duration::ZERO, &[look(0, 100 * MIB, 100 * MIB), look(1, MIB, MIB)]);
        assert_eq!(begin.line(), "2 of 2 partitions left, 0 B of 101 MiB");
        let view = tracker.observe(SECOND, &[look(0, 100 * MIB, 91 * MIB)]);
        assert_eq!(
            view.line(),
            "1 of 2 partitions left, 10.0 MiB of 101 MiB, 10.0 MiB/s, 9.10s left"
        );
        // It stands still: after ten seconds nothing is left of the fast beginning.
        for second in 2..=10 {
            tracker.observe(second * SECOND, &[look(0, 100 * MIB, 91 * MIB)]);
        }
        let still = tracker.observe(11 * SECOND, &[look(0, 100 * MIB, 91 * MIB)]);
        assert_eq!((still.bytes_per_second, still.time_left), (Some(0.0), None));
        let done = tracker.observe(12 * SECOND, &[]);
        assert_eq!((done.partitions_left, done.bytes_done), (0, 101 * MIB));
    }

    #[test]
    fn a_log_that_grows_and_a_leader_that_does_not_answer_do_not_go_backwards() {
        let mut tracker = Tracker::default();
        tracker.observe(Duration::ZERO, &[look(0, 10, 10)]);
        let grown = tracker.observe(SECOND, &[look(0, 30, 20)]);
        assert_eq!((grown.bytes_done, grown.bytes_total), (10, 30));
        let silent = Look { bytes: None, ..look(0, 0, 0) };
        assert_eq!(tracker.observe(2 * SECOND, &[silent]).bytes_done, 10);
        let back = tracker.observe(3 * SECOND, &[look(0, 30, 30)]);
        assert_eq!((back.bytes_done, back.bytes_per_second), (0, Some(0.0)));
    }

    #[test]
    fn what_is_left_is_that_of_the_replicas_being_added() {
        let mut topic = topic(&[(Some(1), &[1, 2, 3, 4, 5], &[1, 2, 3])], "1");
        topic.partitions[0].adding = vec![3, 4, 5];
        topic.partitions[0].removing = vec![1];
        let partition = &partitions_of(&topic)[0];
        let replica = |broker, log_end_offset, lag_bytes, in_sync| ReplicaProgress {
            broker,
            log_end_offset,
            flushed_offset: None,
            lag_bytes,
            lag_ms: 0,
            in_sync,
        };
        let seen = PartitionReplicas {
            leader_epoch: 1,
            log_start_offset: 0,
            high_watermark: 9,
            log_end_offset: 9,
            size_bytes: 100,
            replicas: vec![
                replica(1, Some(9), 0, true),
                replica(2, Some(5), 40, true),
                replica(3, Some(9), 1, true),
                replica(4, Some(5), 40, false),
                replica(5, None, 0, false),
            ],
        };
        assert_eq!(Look::of(partition, Some(&seen)).bytes, Some((300, 140)));
        assert_eq!(Look::of(partition, None).bytes, None);
        topic.partitions[0].adding.clear();
        topic.partitions[0].removing.clear();
        let resting = &partitions_of(&topic)[0];
        assert_eq!(Look::of(resting, Some(&seen)).bytes, Some((100, 100)), "it has not begun");
    }
}
