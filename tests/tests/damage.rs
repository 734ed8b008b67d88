//! Files damaged behind the broker's back: reported, kept out of every answer, and never made worse.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tidemark_protocol::{
    ErrorCode, TopicPartition,
    batch::{BatchHeader, batches},
};
use tidemark_tests::{
    process::{Broker, BrokerConfig},
    raw::{Raw, batch},
};

const SEGMENT_BYTES: &str = "1MiB";
/// Batches of one record each, 60 KB each: several segments of them.
const BATCHES: u64 = 60;
const VALUE_BYTES: usize = 60_000;

struct Fixture {
    config: BrokerConfig,
    partition: TopicPartition,
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A killed broker's directory, with several sealed segments in one partition.
    fn build() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = BrokerConfig::new(dir.path())?.start()?;
        let mut raw = Raw::open(&broker)?;
        let partition = raw.create_topic("log", 1, &[("segment_bytes", SEGMENT_BYTES)])?[0];
        for number in 0..BATCHES {
            raw.produce(partition, &batch(&[value(number).as_bytes()]))??;
        }
        Ok(Self { config: broker.kill()?, partition, dir })
    }

    fn partition_dir(&self) -> PathBuf {
        self.dir.path().join("topics/log/0")
    }

    /// The partition's files with this ending, in order of offset.
    fn files(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.partition_dir())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == ending) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Reads from `offset` on; the record there, or the error's code.
    fn read(&self, broker: &Broker, offset: u64) -> Result<Result<String, ErrorCode>> {
        let (_, payload) = match Raw::open(broker)?.fetch(self.partition, offset)? {
            Ok(fetched) => fetched,
            Err(failure) => return Ok(Err(failure.code)),
        };
        for batch in batches(payload) {
            let batch = batch?;
            batch.verify_crc()?;
            if let Some(record) = batch.records()?.into_iter().find(|r| r.offset == offset) {
                return Ok(Ok(String::from_utf8(record.value.context("a value")?.to_vec())?));
            }
        }
        anyhow::bail!("offset {offset} is not in the answer")
    }

    fn check_all(&self, broker: &Broker) -> Result<()> {
        for offset in 0..BATCHES {
            ensure!(self.read(broker, offset)? == Ok(value(offset)), "offset {offset} differs");
        }
        let receipt = Raw::open(broker)?.produce(self.partition, &batch(&[b"more"]))??;
        ensure!(receipt.base_offset == BATCHES, "the log continues at {}", receipt.base_offset);
        Ok(())
    }
}

fn value(number: u64) -> String {
    format!("{number:>VALUE_BYTES$}")
}

/// Position of the first byte behind the last batch of a segment file.
fn end_of_data(segment: &Path) -> Result<u64> {
    let mut bytes = bytes::Bytes::from(fs::read(segment)?);
    let whole = bytes.len();
    while bytes.len() > BatchHeader::BYTES && bytes[..BatchHeader::BYTES].iter().any(|b| *b != 0) {
        tidemark_protocol::batch::Batch::parse(&mut bytes)?;
    }
    Ok((whole - bytes.len()) as u64)
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_reported_and_the_rest_is_served() -> Result<()> {
    let fixture = Fixture::build()?;
    let segments = fixture.files("log")?;
    ensure!(segments.len() >= 3, "several segments");
    // In the middle of the third record's value.
    let file = fs::File::options().read(true).write(true).open(&segments[0])?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 150_000)?;
    file.write_all_at(&[byte[0] ^ 0x04], 150_000)?;
    let damaged = fs::read(&segments[0])?;

    let mut config = fixture.config.clone();
    // The second start knows of the damage from what the first one wrote down.
    for _ in 0..2 {
        let broker = config.start()?;
        for offset in 0..BATCHES {
            let read = fixture.read(&broker, offset)?;
            let expected =
                if offset == 2 { Err(ErrorCode::CorruptData) } else { Ok(value(offset)) };
            ensure!(read == expected, "offset {offset}: {:?}", read.map(|text| text.len()));
        }
        let failures = broker.metric("tidemark_checksum_failures_total")?;
        ensure!(failures >= Some(1.0), "counted: {failures:?}");
        ensure!(
            broker.log().contains("log/0") || broker.log().contains("topics/log"),
            "logged where"
        );
        config = broker.kill()?;
    }
    ensure!(fs::read(&segments[0])? == damaged, "the damaged file was changed");
    Ok(())
}

#[test]
fn missing_and_corrupt_indexes_are_rebuilt() -> Result<()> {
    let fixture = Fixture::build()?;
    // A clean stop writes the indexes out.
    fixture.config.start()?.terminate()?;
    for (number, index) in fixture.files("index")?.into_iter().enumerate() {
        if number % 2 == 0 {
            fs::remove_file(index)?;
        } else {
            fs::write(index, b"not an index at all")?;
        }
    }
    let broker = fixture.config.start()?;
    fixture.check_all(&broker)
}

#[test]
fn a_torn_tail_is_cut_off_and_everything_acknowledged_stays() -> Result<()> {
    let fixture = Fixture::build()?;
    let active = fixture.files("log")?.pop().context("an active segment")?;
    let end = end_of_data(&active)?;
    // The front half of a batch, as a crash in the middle of an append leaves it.
    let mut torn = batch(&[value(99).as_bytes()]).to_vec();
    torn[..8].copy_from_slice(&BATCHES.to_be_bytes());
    let file = fs::File::options().write(true).open(&active)?;
    file.write_all_at(&torn[..torn.len() / 2], end)?;
    let broker = fixture.config.start()?;
    fixture.check_all(&broker)
}

#[test]
fn a_lost_checkpoint_costs_time_and_no_record() -> Result<()> {
    let fixture = Fixture::build()?;
    let checkpoint = fixture.dir.path().join("checkpoint");
    for content in [None, Some("garbage")] {
        match content {
            None => fs::remove_file(&checkpoint).or_else(|error| {
                if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
            })?,
            Some(text) => fs::write(&checkpoint, text)?,
        }
        let broker = fixture.config.start()?;
        for offset in [0, BATCHES / 2, BATCHES - 1] {
            ensure!(fixture.read(&broker, offset)? == Ok(value(offset)), "offset {offset} differs");
        }
        broker.kill()?;
    }
    let broker = fixture.config.start()?;
    fixture.check_all(&broker)
}
