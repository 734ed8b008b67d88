//! What a scrape asks the data plane: sizes, offsets and states, read from the views at that moment.

use std::collections::BTreeMap;

use crate::{
    broker::Broker,
    metrics::{Scrape, ScrapeSource, table},
};

impl ScrapeSource for Broker {
    fn scrape(&self, scrape: &Scrape) {
        let mut segments = 0;
        let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
        let views = self.partitions.all();
        for view in &views {
            segments += view.reader.segment_count() as u64;
            *sizes.entry(&view.topic).or_default() += view.reader.size_bytes();
            if scrape.wants_partitions() {
                let labels = [&*view.topic, &view.id.partition.to_string()];
                scrape.gauge(&table::LOG_START_OFFSET, &labels, view.reader.log_start_offset());
                scrape.gauge(&table::LOG_END_OFFSET, &labels, view.reader.log_end_offset());
                scrape.gauge(&table::HIGH_WATERMARK, &labels, view.high_watermark());
            }
        }
        scrape.gauge(&table::PARTITIONS, &[], views.len() as u64);
        scrape.gauge(&table::SEGMENTS, &[], segments);
        for (topic, bytes) in sizes {
            scrape.gauge(&table::LOG_SIZE, &[topic], bytes);
        }
        let subscriptions = self.tasks.running().0.get("subscription").copied().unwrap_or(0);
        scrape.gauge(&table::SUBSCRIPTIONS, &[], subscriptions as u64);

        let dir = self.disk_watch.dir().display().to_string();
        let space = self.disk_watch.space();
        scrape.gauge(&table::DISK_FREE, &[&dir], space.free_bytes);
        scrape.gauge(&table::DISK_TOTAL, &[&dir], space.total_bytes);
        scrape.gauge(&table::DISK_STATE, &[&dir], self.disk_watch.state() as u64);
    }
}
