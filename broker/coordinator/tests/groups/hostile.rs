//! Logs that nobody of us wrote: a loader refuses them, in peace.

use proptest::prelude::*;
use tidemark_coordinator::{
    GroupConfig, GroupLoader, LoadError, Record, Topics, TransactionLoader,
    groups::{GroupRequest, Heartbeat, Subscription},
};

use crate::log::{World, topic};

/// A log with members, targets and all.
fn log() -> Vec<(u64, Record)> {
    let topics: Topics = [topic(1, "a", 4)].into_iter().collect();
    let mut world = World::new(GroupConfig::default(), topics);
    for member in ["m1", "m2"] {
        let heartbeat = Heartbeat {
            group: "g".to_owned(),
            member: member.to_owned(),
            subscription: Some(Subscription { topics: ["a".to_owned()].into(), regex: None }),
            rebalance_timeout_ms: Some(1_000),
            ..Heartbeat::default()
        };
        world.call(GroupRequest::Heartbeat(heartbeat)).unwrap();
    }
    world.log
}

fn load(log: &[(u64, Record)]) -> Result<(), LoadError> {
    let mut loader = GroupLoader::new();
    for (offset, record) in log {
        loader.replay(*offset, record)?;
    }
    loader.state().map(drop)
}

#[test]
fn a_log_without_a_part_of_itself_is_not_served() {
    let whole = log();
    assert_eq!(load(&whole), Ok(()));
    // The member's own record, its target, where it is, the group's epoch.
    for (missing, (_, record)) in whole.iter().enumerate() {
        let rest: Vec<_> =
            whole.iter().filter(|(_, other)| other.key != record.key).cloned().collect();
        let loaded = load(&rest);
        let is_topics = String::from_utf8_lossy(&record.key).contains("Topics");
        assert_eq!(loaded.is_ok(), is_topics, "without record {missing}: {loaded:?}");
    }
    // Read twice.
    let mut twice = whole.clone();
    twice.extend(whole);
    assert!(matches!(load(&twice), Err(LoadError::Order { .. })));
}

#[test]
fn records_of_a_later_build_are_not_skipped() {
    let (_, mut record) = log().remove(0);
    record.key[0] = 2;
    let refused = GroupLoader::new().replay(0, &record).unwrap_err();
    assert!(refused.to_string().contains("version 2"), "{refused}");
}

proptest! {
    #[test]
    fn bytes_that_are_no_record_are_refused_in_peace(
        key in prop::collection::vec(any::<u8>(), 0..100),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..100)),
    ) {
        let record = Record { key, value };
        prop_assert!(GroupLoader::new().replay(0, &record).is_err());
        prop_assert!(TransactionLoader::new().replay(0, &record).is_err());
    }

    #[test]
    fn a_log_with_any_bit_flipped_loads_or_is_refused(
        which in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut log = log();
        let which = which.index(log.len());
        let (_, record) = &mut log[which];
        let bytes = record.value.as_mut().unwrap_or(&mut record.key);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        drop(load(&log));
    }
}
