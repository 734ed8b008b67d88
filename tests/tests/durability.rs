//! `kill -9` in the middle of durable produces: what was acknowledged is there, once, in order, and at once.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tidemark_protocol::{TopicPartition, batch::batches};
use tidemark_tests::{
    process::{Broker, BrokerConfig},
    raw::{Raw, batch},
};

/// Kills in the ordinary run; `TIDEMARK_TEST_KILLS` asks for more.
const KILLS: u64 = 8;
const PARTITIONS: u32 = 3;
/// A broker killed with this little unflushed data must be back at once; the bound leaves room for a debug build and a
/// busy machine.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn every_acknowledged_record_survives_every_kill_once_and_in_order() -> Result<()> {
    let kills = std::env::var("TIDEMARK_TEST_KILLS").map_or(Ok(KILLS), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let mut broker = BrokerConfig::new(dir.path())?.start()?;
    // Small segments, so that kills meet rolls.
    let settings = [("segment_bytes", "1MiB"), ("durability", "disk")];
    let partitions = Raw::open(&broker)?.create_topic("ledger", PARTITIONS, &settings)?;
    let mut ledgers: Vec<Ledger> = partitions.into_iter().map(Ledger::new).collect();
    for kill in 0..kills {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = ledgers
            .drain(..)
            .map(|mut ledger| {
                let (raw, acknowledged) = (Raw::open(&broker), Arc::clone(&acknowledged));
                thread::spawn(move || -> Result<Ledger> {
                    ledger.write_until_cut_off(raw?, &acknowledged)?;
                    Ok(ledger)
                })
            })
            .collect();
        // The kill comes after a number of acknowledgements that differs from round to round.
        while acknowledged.load(Ordering::Acquire) < 20 + kill % 7 * 13 {
            thread::yield_now();
        }
        let config = broker.kill()?;
        for writer in writers {
            ledgers.push(writer.join().expect("writers do not panic")?);
        }
        broker = config.start()?;
        let ready_after = broker.ready_after();
        ensure!(ready_after < READY_WITHIN, "ready only after {ready_after:?}");
        for ledger in &mut ledgers {
            ledger.check(&broker).with_context(|| format!("after kill {}", kill + 1))?;
        }
    }
    Ok(())
}

#[test]
fn what_a_start_has_recovered_the_next_start_need_not_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // No checkpoint but those that a start writes.
    let config = BrokerConfig::new(dir.path())?.flag("checkpoint-interval", "1h");
    let broker = config.start()?;
    let mut raw = Raw::open(&broker)?;
    let partition = raw.create_topic("once", 1, &[])?[0];
    raw.produce(partition, &batch(&[b"recovered"]))??;
    let checkpoint = dir.path().join("checkpoint");
    let config = broker.kill()?;
    let before = fs::read(&checkpoint).ok();
    let _broker = config.start()?;
    let deadline = Instant::now() + READY_WITHIN;
    // Written after the broker is ready, and told to nobody.
    while fs::read(&checkpoint).ok() == before {
        ensure!(Instant::now() < deadline, "the checkpoint is as it was before the crash");
        thread::yield_now();
    }
    Ok(())
}

/// What one writer knows of its partition. Values are numbers; a value is sent once, by one request, and never again.
struct Ledger {
    partition: TopicPartition,
    next_value: u64,
    /// Values acknowledged, by offset, in order.
    acknowledged: Vec<(u64, u64)>,
    /// Values sent and never answered: they may be there, once, or not.
    open: Vec<u64>,
}

impl Ledger {
    fn new(partition: TopicPartition) -> Self {
        Self { partition, next_value: 0, acknowledged: Vec::new(), open: Vec::new() }
    }

    fn write_until_cut_off(&mut self, mut raw: Raw, count: &AtomicU64) -> Result<()> {
        loop {
            let first = self.next_value;
            let values: Vec<_> =
                (first..first + 1 + first % 5).map(|value| format!("{value:>2000}")).collect();
            let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
            self.next_value += values.len() as u64;
            let sent = first..self.next_value;
            match raw.produce(self.partition, &batch(&values)) {
                Ok(receipt) => {
                    let base = receipt?.base_offset;
                    self.acknowledged.extend((base..).zip(sent));
                    count.fetch_add(1, Ordering::AcqRel);
                }
                // Cut off: the outcome is not known.
                Err(_closed) => {
                    self.open.extend(sent);
                    return Ok(());
                }
            }
        }
    }

    /// Reads everything and compares.
    fn check(&mut self, broker: &Broker) -> Result<()> {
        let mut raw = Raw::open(broker)?;
        let mut found: Vec<(u64, u64)> = Vec::new();
        loop {
            let next = found.last().map_or(0, |(offset, _)| offset + 1);
            let (_, payload) = raw.fetch(self.partition, next)??;
            if payload.is_empty() {
                break;
            }
            for batch in batches(payload) {
                let batch = batch?;
                batch.verify_crc()?;
                for record in batch.records()?.into_iter().filter(|record| record.offset >= next) {
                    let text = String::from_utf8(record.value.context("a value")?.to_vec())?;
                    found.push((record.offset, text.trim().parse()?));
                }
            }
        }
        ensure!(found.iter().zip(0..).all(|((offset, _), index)| *offset == index), "a gap");
        ensure!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "out of order, or twice");
        for (offset, value) in &self.acknowledged {
            let index = usize::try_from(*offset)?;
            let there = found.get(index).map(|(_, value)| *value);
            ensure!(there == Some(*value), "acknowledged {value} at {offset}, found {there:?}");
        }
        for (_, value) in &found {
            let known = self.acknowledged.binary_search_by_key(value, |(_, known)| *known).is_ok();
            ensure!(known || self.open.contains(value), "{value} was never sent");
        }
        // What was found is settled now.
        self.open.retain(|value| found.iter().any(|(_, found)| found == value));
        Ok(())
    }
}
