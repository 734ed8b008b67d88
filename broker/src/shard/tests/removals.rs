//! A follower that was away while the mark of a removal came and went: it must not keep what was removed.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_controller::{CleanupPolicy, TopicConfig};
use tidemark_protocol::{
    BrokerId,
    batch::{BatchBuilder, batches},
    messages::{Acks, ReplicaPush},
};

use super::pair::{ID, Pair};
use crate::{
    shard::{Command, LeaderAnswer},
    steered::PortEffect,
};

const SEGMENT_MS: u32 = 10_000;
const DELETE_RETENTION_MS: u64 = 1000;

fn said(key: &'static str, value: Option<&'static str>) -> Bytes {
    let mut builder = BatchBuilder::new(tidemark_protocol::Compression::None);
    builder.push(1000, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    builder.build().unwrap()
}

/// Whether it comes from the follower: away, it is not heard.
fn is_position(effect: &PortEffect) -> bool {
    matches!(effect, PortEffect::Position { .. })
}

impl Pair {
    /// Two replicas of a compacted topic have a value; then the second is away.
    fn with_a_value() -> Self {
        let mut pair = Self::new();
        pair.config = TopicConfig {
            cleanup_policy: CleanupPolicy { delete: false, compact: true },
            segment_ms: SEGMENT_MS.into(),
            delete_retention_ms: DELETE_RETENTION_MS,
            ..pair.config
        };
        pair.lead(1, 1, &[1, 2]);
        pair.write("gone", Some("old"));
        assert_eq!((pair.ends(2).log_end_offset, pair.state(2).len()), (1, 1));
        pair
    }

    fn write(&mut self, key: &'static str, value: Option<&'static str>) {
        let _outcome = self.produce_batches(1, said(key, value), Acks::Leader);
        self.pump();
    }

    /// Writes that the follower does not see.
    fn write_alone(&mut self, key: &'static str, value: Option<&'static str>) {
        let _outcome = self.produce_batches(1, said(key, value), Acks::Leader);
        self.pump_without(is_position);
    }

    /// Seals the leader's segment, and whatever is due is compacted.
    fn compact(&mut self) {
        self.wall_ms += i64::from(2 * SEGMENT_MS);
        self[1].upkeep();
        self.write_alone("other", Some("value"));
        for _ in 0..2 {
            if let Some(job) =
                self[1].ask(|reply| Command::BeginCompaction { partition: ID, reply })
            {
                let done = job.run().expect("the disk works");
                self[1].tell(Command::InstallCompaction { partition: ID, done });
                self[1].work();
            }
        }
    }

    /// The last value of every key.
    fn state(&self, node: BrokerId) -> BTreeMap<Bytes, Bytes> {
        let mut state = BTreeMap::new();
        for batch in batches(self.bytes(node)) {
            for record in batch.unwrap().records().unwrap() {
                let key = record.key.expect("all have keys");
                match record.value {
                    Some(value) => state.insert(key, value),
                    None => state.remove(&key),
                };
            }
        }
        state
    }
}

#[test]
fn who_was_away_when_a_removal_was_forgotten_starts_over() {
    let mut pair = Pair::with_a_value();
    pair.drop_effects();
    pair.lead(1, 2, &[1]);
    pair.write_alone("gone", None);
    pair.compact();
    pair.compact();
    pair.compact();
    let ends = pair.ends(1);
    assert!(ends.removals_end >= 2, "the mark is gone: {ends:?}");
    assert_eq!(pair.state(1).len(), 1);

    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair.pump();
    assert_eq!(pair.ends(2).log_end_offset, pair.ends(1).log_end_offset);
    assert_eq!(pair.state(2), pair.state(1), "what was removed is gone here, too");
    assert_eq!(pair.ends(2).removals_end, ends.removals_end, "it may lead one day");
}

#[test]
fn a_removal_stays_for_a_follower_that_was_heard_of() {
    let mut pair = Pair::with_a_value();
    pair.eligible = false;
    pair.lead(1, 2, &[1]);
    pair.pump();
    // Long enough for the watermark not to wait for it any more.
    pair.wait_ms(5000);
    pair.write_alone("gone", None);
    pair.compact();
    pair.compact();
    pair.compact();
    assert!(!pair.bytes(1).windows(3).any(|bytes| bytes == b"old"), "what it hid is gone");
    assert_eq!(pair.ends(1).removals_end, 0, "one has yet to read it");
    let bytes = pair.bytes(1).len();

    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair.pump();
    assert_eq!((pair.bytes(1).len(), pair.state(2)), (bytes, pair.state(1)));
    assert_eq!(pair.ends(2).log_start_offset, 0);
    pair.compact();
    assert!(pair.ends(1).removals_end >= 2, "everybody has it");
}

#[test]
fn whoever_leads_before_its_copy_is_complete_lacks_nothing_ahead_of_its_log() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1]);
    let _outcome = pair.produce(1, 3, Acks::Leader);
    pair.drop_effects();
    let payload = pair.bytes(1);
    let push = ReplicaPush {
        partition: ID,
        leader_epoch: 1,
        round: 1,
        high_watermark: 9,
        log_start_offset: 0,
        removals_end: 9,
        batch_bytes: u32::try_from(payload.len()).unwrap(),
        refusal: None,
    };
    pair[2].tell(Command::LeaderAnswer(Box::new(LeaderAnswer::new(1, push, payload))));
    pair[2].work();
    assert_eq!((pair.ends(2).log_end_offset, pair.ends(2).removals_end), (3, 9));
    // An unclean election: whoever is at its end is in sync with it, and misses nothing.
    pair.lead(2, 2, &[2]);
    assert_eq!(pair.ends(2).removals_end, 3);
}
