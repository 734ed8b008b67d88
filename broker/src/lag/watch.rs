//! Measures, every few seconds, how far the groups that are coordinated here are behind, and remembers it: for the metrics,
//! and to tell at which rate a group catches up. Uncommitted commits count: this is a measurement and not an answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidemark_coordinator::groups::State;
use tidemark_protocol::{
    Offset, TopicPartition,
    messages::{OffsetToMeasure, PartitionLag},
};
use tokio::time::MissedTickBehavior;

use super::measure_anywhere;
use crate::{
    broker::Broker,
    coordinators::{topics::GROUPS, watch::led},
    metrics::{
        Scrape,
        table::{self, Metric},
    },
    tasks::Shutdown,
};

/// How often all groups are measured.
const INTERVAL: Duration = Duration::from_secs(5);
/// Offsets measured at a time. Those beyond have no lag in the metrics.
const OFFSETS_MAX: usize = 50_000;
/// Pairs of group and topic that have series of their own.
const SERIES_MAX: usize = 1_000;
/// Measurements closer together say nothing about a rate.
const RATE_SPAN_MS_MIN: u64 = 500;

/// What was measured last.
#[derive(Debug, Default)]
pub(crate) struct LagWatch {
    groups: Mutex<BTreeMap<String, BTreeMap<TopicPartition, Sample>>>,
}

/// One partition of a group, at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ms: u64,
    committed: Offset,
    lag: PartitionLag,
    drained_in_ms: Option<u64>,
}

impl LagWatch {
    /// Until a group that is at `committed` has nothing left to read in a partition, at the rates since it was measured
    /// last; `None` when it does not get less, or when it was not measured before.
    pub(crate) fn drained_in_ms(
        &self,
        now_ms: u64,
        group: &str,
        partition: TopicPartition,
        (committed, lag): (Offset, &PartitionLag),
    ) -> Option<u64> {
        let groups = self.lock();
        let before = groups.get(group)?.get(&partition)?;
        let span_ms = now_ms.saturating_sub(before.at_ms);
        if span_ms < RATE_SPAN_MS_MIN {
            return before.drained_in_ms;
        }
        drained_in_ms(before, (committed, lag), span_ms)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<TopicPartition, Sample>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the lag of every group and topic, as far as there are not too many.
    pub(crate) fn scrape(&self, broker: &Broker, scrape: &Scrape) {
        let image = broker.image();
        let groups = self.lock().clone();
        let mut series: BTreeMap<(&str, &str), Summary> = BTreeMap::new();
        for (group, partitions) in &groups {
            for (partition, sample) in partitions {
                let Some(topic) = image.topic_by_id(partition.topic_id) else { continue };
                let is_known = series.contains_key(&(group.as_str(), &*topic.name));
                let name = if is_known || series.len() < SERIES_MAX {
                    (group.as_str(), &*topic.name)
                } else {
                    ("other", "other")
                };
                series.entry(name).or_default().add(sample);
                if scrape.wants_partitions() {
                    let mut one = Summary::default();
                    one.add(sample);
                    let labels = [group, &*topic.name, &partition.partition.to_string()];
                    one.scrape(scrape, &OF_PARTITION, &labels);
                }
            }
        }
        for ((group, topic), summary) in series {
            summary.scrape(scrape, &OF_TOPIC, &[group, topic]);
        }
    }
}

/// What a lag is shown as.
struct Series {
    records: Metric,
    bytes: Metric,
    age: Metric,
    lost_records: Metric,
    drained_in: Metric,
    deleted_in: Metric,
}

const OF_TOPIC: Series = Series {
    records: table::GROUP_LAG_RECORDS,
    bytes: table::GROUP_LAG_BYTES,
    age: table::GROUP_LAG_SECONDS,
    lost_records: table::GROUP_LOST_RECORDS,
    drained_in: table::GROUP_DRAINED_IN,
    deleted_in: table::GROUP_DELETED_IN,
};

const OF_PARTITION: Series = Series {
    records: table::GROUP_PARTITION_LAG_RECORDS,
    bytes: table::GROUP_PARTITION_LAG_BYTES,
    age: table::GROUP_PARTITION_LAG_SECONDS,
    lost_records: table::GROUP_PARTITION_LOST_RECORDS,
    drained_in: table::GROUP_PARTITION_DRAINED_IN,
    deleted_in: table::GROUP_PARTITION_DELETED_IN,
};

/// One partition that a group reads, or several of a topic together.
#[derive(Default)]
struct Summary {
    records: u64,
    bytes: u64,
    lost_records: u64,
    age_ms: u64,
    drained_in_ms: Option<u64>,
    deleted_in_ms: Option<u64>,
}

impl Summary {
    fn add(&mut self, sample: &Sample) {
        let lag = &sample.lag;
        self.records += lag.records;
        self.bytes += lag.bytes;
        self.lost_records += lag.lost_records;
        self.age_ms = self.age_ms.max(lag.age_ms);
        self.drained_in_ms = self.drained_in_ms.max(sample.drained_in_ms);
        self.deleted_in_ms = match (self.deleted_in_ms, lag.deleted_in_ms) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
    }

    fn scrape(&self, scrape: &Scrape, series: &Series, labels: &[&str]) {
        let seconds = |ms| Duration::from_millis(ms).as_secs_f64();
        scrape.gauge(&series.records, labels, self.records);
        scrape.gauge(&series.bytes, labels, self.bytes);
        scrape.gauge_f64(&series.age, labels, seconds(self.age_ms));
        scrape.gauge(&series.lost_records, labels, self.lost_records);
        if let Some(ms) = self.drained_in_ms {
            scrape.gauge_f64(&series.drained_in, labels, seconds(ms));
        }
        if let Some(ms) = self.deleted_in_ms {
            scrape.gauge_f64(&series.deleted_in, labels, seconds(ms));
        }
    }
}

/// What there is to read, divided by how much faster it is read than written. `committed` and `high_watermark` only grow, but
/// for an administrator's change.
fn drained_in_ms(
    before: &Sample,
    (committed, lag): (Offset, &PartitionLag),
    span_ms: u64,
) -> Option<u64> {
    if lag.records == 0 {
        return Some(0);
    }
    let read = committed.checked_sub(before.committed)?;
    let written = lag.high_watermark.saturating_sub(before.lag.high_watermark);
    let gained = read.checked_sub(written).filter(|gained| *gained > 0)?;
    let ms = u128::from(lag.records) * u128::from(span_ms) / u128::from(gained);
    Some(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// Measures until shutdown.
pub(crate) async fn run(broker: Arc<Broker>, shutdown: Shutdown) {
    let mut rounds = tokio::time::interval(INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.or_stop(rounds.tick()).await.is_some() {
        if shutdown.or_stop(round(&broker)).await.is_none() {
            return;
        }
    }
}

async fn round(broker: &Broker) {
    let committed = committed(broker).await;
    let questions: Vec<_> = committed
        .iter()
        .map(|(_, partition, offset)| OffsetToMeasure { partition: *partition, offset: *offset })
        .collect();
    let measured = measure_anywhere(broker, &questions).await;
    let now_ms = broker.clock.monotonic_ms();
    let mut groups: BTreeMap<String, BTreeMap<TopicPartition, Sample>> = BTreeMap::new();
    let before = std::mem::take(&mut *broker.lag.lock());
    for ((group, partition, offset), lag) in committed.into_iter().zip(measured) {
        let known = before.get(&group).and_then(|partitions| partitions.get(&partition));
        // Without an answer what was known stays, for a while: its rate is worth more than none.
        let sample = match (lag, known) {
            (Ok(lag), known) => {
                // Nothing left to read takes no rate to tell.
                let nothing = (lag.records == 0).then_some(0);
                let drained_in_ms = nothing.or_else(|| {
                    let known = known?;
                    drained_in_ms(known, (offset, &lag), now_ms.saturating_sub(known.at_ms))
                });
                Sample { at_ms: now_ms, committed: offset, lag, drained_in_ms }
            }
            (Err(_), Some(known)) => *known,
            (Err(_), None) => continue,
        };
        groups.entry(group).or_default().insert(partition, sample);
    }
    *broker.lag.lock() = groups;
}

/// Every committed offset of the groups that are coordinated here.
async fn committed(broker: &Broker) -> Vec<(String, TopicPartition, Offset)> {
    let mut found = Vec::new();
    for index in led(broker, GROUPS) {
        let room = OFFSETS_MAX - found.len();
        let visited = broker.groups.visit(index, move |machine| offsets_of(machine.state(), room));
        // An error: it is being read, or elsewhere by now.
        found.extend(visited.await.unwrap_or_default());
    }
    found
}

fn offsets_of(state: &State, room: usize) -> Vec<(String, TopicPartition, Offset)> {
    let of_groups = state.groups().flat_map(|(name, group)| {
        let offsets = group.offsets.iter();
        offsets.map(|(id, committed)| (name.to_owned(), *id, committed.value.offset))
    });
    of_groups.take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(high_watermark: Offset, committed: Offset) -> PartitionLag {
        PartitionLag {
            log_start_offset: 0,
            high_watermark,
            records: high_watermark - committed,
            bytes: 0,
            first_unread_ms: None,
            age_ms: 0,
            deleted_in_ms: None,
            lost_records: 0,
        }
    }

    #[test]
    fn a_group_drains_by_what_it_reads_beyond_what_is_written() {
        let before = Sample { at_ms: 0, committed: 100, lag: lag(1_000, 100), drained_in_ms: None };
        let after =
            |committed, end| drained_in_ms(&before, (committed, &lag(end, committed)), 1_000);
        // 300 read, 100 written: 200 a second less, and 700 left.
        assert_eq!(after(400, 1_100), Some(3_500));
        assert_eq!(after(1_000, 1_000), Some(0));
        assert_eq!(after(200, 1_100), None, "it stays where it is");
        assert_eq!(after(200, 1_300), None, "it falls behind");
        assert_eq!(after(50, 1_000), None, "somebody has set it back");
    }
}
