//! What a scrape asks the data plane: sizes, offsets and states, read from the views at that moment.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tidemark_controller::{Partition, Topic};
use tidemark_protocol::BrokerId;

use crate::{
    broker::Broker,
    coordinators::Counts,
    metrics::{Scrape, ScrapeSource, table},
    partitions::PartitionView,
    service::describe_replicas::{lag_bytes, lag_ms},
};

impl ScrapeSource for Broker {
    fn scrape(&self, scrape: &Scrape) {
        let mut segments = 0;
        let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
        let mut undecided: BTreeMap<&str, u64> = BTreeMap::new();
        let views = self.partitions.all();
        for view in &views {
            segments += view.reader.segment_count() as u64;
            *sizes.entry(&view.topic).or_default() += view.reader.size_bytes();
            if view.leader_epoch(None).is_ok() {
                // In this order: what is stable grows with the watermark.
                let stable = view.last_stable_offset();
                let lacking = view.high_watermark().saturating_sub(stable);
                *undecided.entry(&view.topic).or_default() += lacking;
            }
            if scrape.wants_partitions() {
                let labels = [&*view.topic, &view.id.partition.to_string()];
                scrape.gauge(&table::LOG_START_OFFSET, &labels, view.reader.log_start_offset());
                scrape.gauge(&table::LOG_END_OFFSET, &labels, view.reader.log_end_offset());
                scrape.gauge(&table::HIGH_WATERMARK, &labels, view.high_watermark());
            }
        }
        scrape.gauge(&table::SEGMENTS, &[], segments);
        for (topic, bytes) in sizes {
            scrape.gauge(&table::LOG_SIZE, &[topic], bytes);
        }
        for (topic, records) in undecided {
            scrape.gauge(&table::UNDECIDED_RECORDS, &[topic], records);
        }
        self.scrape_lag(scrape, &views);
        self.scrape_cluster(scrape);
        self.scrape_coordinators(scrape);
        let subscriptions = self.tasks.running().0.get("subscription").copied().unwrap_or(0);
        scrape.gauge(&table::SUBSCRIPTIONS, &[], subscriptions as u64);

        let dir = self.disk_watch.dir().display().to_string();
        let space = self.disk_watch.space();
        scrape.gauge(&table::DISK_FREE, &[&dir], space.free_bytes);
        scrape.gauge(&table::DISK_TOTAL, &[&dir], space.total_bytes);
        scrape.gauge(&table::DISK_STATE, &[&dir], self.disk_watch.state() as u64);
    }
}

impl Broker {
    /// How far the slowest replicas of what is led here are behind.
    fn scrape_lag(&self, scrape: &Scrape, views: &[Arc<PartitionView>]) {
        let now_ms = self.clock.monotonic_ms();
        let (mut records, mut bytes, mut ms) = (0, 0, 0);
        for view in views.iter().filter(|view| view.leader_epoch(None).is_ok()) {
            for follower in view.followers() {
                let lacking = view.reader.log_end_offset().saturating_sub(follower.log_end_offset);
                records = records.max(lacking);
                bytes = bytes.max(lag_bytes(view, &follower));
                ms = ms.max(lag_ms(view, &follower, now_ms));
            }
        }
        scrape.gauge(&table::REPLICA_LAG_RECORDS, &[], records);
        scrape.gauge(&table::REPLICA_LAG_BYTES, &[], bytes);
        scrape.gauge_f64(&table::REPLICA_LAG_SECONDS, &[], Duration::from_millis(ms).as_secs_f64());
    }

    fn scrape_coordinators(&self, scrape: &Scrape) {
        self.lag.scrape(self, scrape);
        let kinds =
            [("groups", self.groups.counts()), ("transactions", self.transactions.counts())];
        for (kind, counts) in kinds {
            let Counts { serving, loading, broken } = counts;
            for (state, count) in [("serving", serving), ("loading", loading), ("broken", broken)] {
                scrape.gauge(&table::COORDINATORS, &[kind, state], count.load(Ordering::Relaxed));
            }
        }
    }

    /// What the metadata says of brokers, and of partitions that are led here, or nowhere.
    fn scrape_cluster(&self, scrape: &Scrape) {
        let image = self.image();
        let fenced = image.brokers().filter(|broker| broker.fenced).count() as u64;
        scrape.gauge(&table::CLUSTER_BROKERS, &["active"], image.brokers().len() as u64 - fenced);
        scrape.gauge(&table::CLUSTER_BROKERS, &["fenced"], fenced);
        let mut counts = PartitionCounts::default();
        for topic in image.topics() {
            for partition in &topic.partitions {
                counts.add(self.id, topic, partition);
            }
        }
        counts.scrape(scrape);
        let applied = *self.assigned.borrow();
        scrape.gauge(&table::METADATA_APPLIED_INDEX, &[], applied);
        scrape.gauge_f64(&table::METADATA_LAG, &[], self.metadata_lag().as_secs_f64());
    }
}

/// Partitions counted over the metadata.
#[derive(Default)]
struct PartitionCounts {
    led: u64,
    followed: u64,
    under_replicated: u64,
    under_min_isr: u64,
    at_min_isr: u64,
    offline: u64,
    imbalanced: u64,
    reassigning: u64,
}

impl PartitionCounts {
    fn add(&mut self, me: BrokerId, topic: &Topic, partition: &Partition) {
        let (in_sync, replicas) = (partition.isr.len(), partition.target_replicas().count());
        let min = partition.min_insync_replicas(&topic.config);
        if partition.leader == Some(me) {
            self.led += 1;
            self.under_replicated += u64::from(in_sync < replicas);
            self.under_min_isr += u64::from(in_sync < min);
            self.at_min_isr += u64::from(in_sync == min && replicas > 1);
        } else if partition.replicas.contains(&me) {
            self.followed += 1;
        }
        self.offline += u64::from(partition.leader.is_none());
        self.imbalanced += u64::from(partition.leader != partition.replicas.first().copied());
        self.reassigning += u64::from(partition.is_reassigning());
    }

    fn scrape(&self, scrape: &Scrape) {
        scrape.gauge(&table::PARTITIONS, &["leader"], self.led);
        scrape.gauge(&table::PARTITIONS, &["follower"], self.followed);
        scrape.gauge(&table::UNDER_REPLICATED, &[], self.under_replicated);
        scrape.gauge(&table::UNDER_MIN_ISR, &[], self.under_min_isr);
        scrape.gauge(&table::AT_MIN_ISR, &[], self.at_min_isr);
        scrape.gauge(&table::OFFLINE_PARTITIONS, &[], self.offline);
        scrape.gauge(&table::PREFERRED_LEADER_IMBALANCE, &[], self.imbalanced);
        scrape.gauge(&table::REASSIGNING_PARTITIONS, &[], self.reassigning);
    }
}
