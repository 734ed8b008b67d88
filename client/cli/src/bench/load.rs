//! A producer driven as fast as it goes or at a given rate, from one thread.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use hdrhistogram::Histogram;
use tidemark_client::{Delivery, ProduceError, Producer, ProducerRecord};
use tidemark_protocol::PartitionIndex;
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use super::report;
use crate::exit::CliError;

/// Random bytes that values are cut from.
const POOL_BYTES: usize = 1 << 20;
/// Without a rate, one in so many records has its latency measured; measuring all would be the bottleneck.
const SAMPLE_EVERY: u64 = 16;
/// Deliveries measured at once in one partition.
const LANE_SAMPLES_MAX: usize = 1 << 16;

/// How far all loads of a run are, and whether they are to stop.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    pub(super) sent: AtomicU64,
    stop: AtomicBool,
}

impl Gauge {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Stops the loads when the run that started them is given up.
#[derive(Debug)]
pub(super) struct StopOnDrop(pub(super) Arc<Gauge>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What one thread sends.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) topic: Arc<str>,
    pub(super) record_bytes: usize,
    pub(super) records: Option<u64>,
    pub(super) duration: Option<Duration>,
    /// Records per second; `None` is as fast as it goes.
    pub(super) rate: Option<f64>,
    /// Values begin with when the record was due, in nanoseconds after this.
    pub(super) stamped_since: Option<Instant>,
    pub(super) gauge: Arc<Gauge>,
}

/// What one thread has done.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) records: u64,
    /// From due (or sent, without a rate) to acknowledged, in microseconds.
    pub(super) latency: Histogram<u64>,
}

/// Bytes of the stamp that [`Load::stamped_since`] asks for.
pub(super) const STAMP_BYTES: usize = 8;

impl Load {
    /// Sends it all and waits for every acknowledgement. Blocks; for a thread that may.
    pub(super) fn run(self, producer: &Producer, runtime: &Handle) -> Result<Loaded, CliError> {
        let pool = pool();
        let mut lanes = Lanes::new(runtime);
        let started = Instant::now();
        let mut sent = 0;
        while self.wants_more(sent, started) {
            let due = self.wait_until_due(sent, started);
            let mut record = ProducerRecord::to(self.topic.clone());
            record.value = Some(self.value(&pool, sent, due));
            let delivery = match producer.try_send(record) {
                Ok(delivery) => delivery,
                Err(refused) if matches!(refused.error, ProduceError::WouldBlock) => {
                    runtime.block_on(producer.send(*refused.record))?
                }
                Err(refused) => return Err(refused.error.into()),
            };
            if self.rate.is_some() || sent % SAMPLE_EVERY == 0 {
                lanes.measure(delivery, due);
            }
            sent += 1;
            self.gauge.sent.fetch_add(1, Ordering::Relaxed);
        }
        runtime.block_on(producer.flush())?;
        Ok(Loaded { records: sent, latency: runtime.block_on(lanes.finish())? })
    }

    fn wants_more(&self, sent: u64, started: Instant) -> bool {
        let enough = self.records.is_some_and(|records| sent >= records)
            || self.duration.is_some_and(|duration| self.due(sent, started) >= started + duration);
        !enough && !self.gauge.stop.load(Ordering::Relaxed)
    }

    /// When the record was or is due.
    fn wait_until_due(&self, sent: u64, started: Instant) -> Instant {
        let due = self.due(sent, started);
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        due
    }

    fn due(&self, sent: u64, started: Instant) -> Instant {
        let Some(rate) = self.rate else { return Instant::now() };
        #[expect(clippy::cast_precision_loss, reason = "2^53 records are enough for a benchmark")]
        let after = Duration::from_secs_f64(sent as f64 / rate);
        started + after
    }

    fn value(&self, pool: &Bytes, sent: u64, due: Instant) -> Bytes {
        let length = self.record_bytes;
        let Some(since) = self.stamped_since else { return cut(pool, sent, length) };
        let mut value = BytesMut::with_capacity(length.max(STAMP_BYTES));
        let stamp = u64::try_from(due.saturating_duration_since(since).as_nanos());
        value.put_u64(stamp.expect("a benchmark ends within 584 years"));
        value.put(cut(pool, sent, length.saturating_sub(STAMP_BYTES)));
        value.freeze()
    }
}

/// Latency of deliveries, awaited in order by one task for each partition, because a partition's records are
/// acknowledged in order.
struct Lanes<'a> {
    runtime: &'a Handle,
    open: HashMap<PartitionIndex, mpsc::Sender<(Delivery, Instant)>>,
    tasks: JoinSet<Result<Histogram<u64>, ProduceError>>,
}

impl<'a> Lanes<'a> {
    fn new(runtime: &'a Handle) -> Self {
        Self { runtime, open: HashMap::new(), tasks: JoinSet::new() }
    }

    fn measure(&mut self, delivery: Delivery, due: Instant) {
        let (tasks, runtime) = (&mut self.tasks, self.runtime);
        let lane = self.open.entry(delivery.partition()).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(LANE_SAMPLES_MAX);
            tasks.spawn_on(measure_all(receiver), runtime);
            sender
        });
        // A lane that ended did so with an error, which `finish` returns.
        drop(lane.blocking_send((delivery, due)));
    }

    async fn finish(self) -> Result<Histogram<u64>, ProduceError> {
        let Self { open, mut tasks, .. } = self;
        drop(open);
        let mut all = report::histogram();
        while let Some(lane) = tasks.join_next().await {
            all += lane.expect("a lane does not panic")?;
        }
        Ok(all)
    }
}

async fn measure_all(
    mut deliveries: mpsc::Receiver<(Delivery, Instant)>,
) -> Result<Histogram<u64>, ProduceError> {
    let mut latency = report::histogram();
    while let Some((delivery, due)) = deliveries.recv().await {
        delivery.await?;
        report::record(&mut latency, due.elapsed());
    }
    Ok(latency)
}

/// Bytes without a pattern that a codec could find, the same in every run (xorshift64).
fn pool() -> Bytes {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut pool = BytesMut::with_capacity(POOL_BYTES);
    while pool.len() < POOL_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pool.put_u64(state);
    }
    pool.freeze()
}

/// `length` bytes for the `number`th value: a slice of the pool, copied only when it is longer than that.
fn cut(pool: &Bytes, number: u64, length: usize) -> Bytes {
    if length > pool.len() {
        return pool.iter().copied().cycle().take(length).collect();
    }
    let places = (pool.len() - length + 1) as u64;
    let at = usize::try_from(number.wrapping_mul(7_919) % places).expect("smaller than the pool");
    pool.slice(at..at + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_size_asked_for_and_differ() {
        let pool = pool();
        assert_eq!(cut(&pool, 0, 100).len(), 100);
        assert_ne!(cut(&pool, 0, 100), cut(&pool, 1, 100));
        assert_eq!(cut(&pool, 3, POOL_BYTES).len(), POOL_BYTES);
        assert_eq!(cut(&pool, 3, POOL_BYTES + 5).len(), POOL_BYTES + 5);
    }

    fn load(records: Option<u64>, rate: Option<f64>) -> Load {
        Load {
            topic: "t".into(),
            record_bytes: 4,
            records,
            duration: None,
            rate,
            stamped_since: None,
            gauge: Arc::default(),
        }
    }

    #[test]
    fn a_paced_record_is_due_by_its_number_even_when_the_sender_is_late() {
        let started = Instant::now();
        let load = load(None, Some(1_000_000.0));
        std::thread::sleep(Duration::from_millis(5));
        let due = load.wait_until_due(2_000, started);
        assert_eq!(due - started, Duration::from_millis(2));
    }

    #[test]
    fn a_load_ends_by_count_or_when_told() {
        let load = load(Some(3), None);
        let started = Instant::now();
        assert!(load.wants_more(2, started) && !load.wants_more(3, started));
        load.gauge.stop();
        assert!(!load.wants_more(0, started));
    }

    #[test]
    fn a_paced_load_sends_exactly_what_is_due_within_its_duration() {
        let load = Load { duration: Some(Duration::from_secs(2)), ..load(None, Some(10.0)) };
        let started = Instant::now();
        assert!(load.wants_more(19, started) && !load.wants_more(20, started));
    }

    #[test]
    fn a_stamped_value_begins_with_when_it_was_due() {
        let since = Instant::now();
        let load = Load { stamped_since: Some(since), ..load(None, None) };
        let value = load.value(&pool(), 0, since + Duration::from_nanos(77));
        assert_eq!(&value[..], 77_u64.to_be_bytes(), "never shorter than the stamp");
    }
}
