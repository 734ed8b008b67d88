//! Replication between two shards with real logs: what is in the machine's tests as effects, here as bytes.

mod markers;
mod pair;
mod producers;
mod removals;

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode,
    batch::batches,
    messages::{Acks, ReplicaPush, ReplicaRefusal},
};
use tidemark_storage::testing::Faults;

use self::pair::{ID, Pair, batch};
use super::{Command, LeaderAnswer};
use crate::steered::PortEffect;

/// Time in which everybody has asked again.
const PAUSE_MS: u64 = 150;

#[test]
fn records_are_committed_when_both_have_them_on_disk() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let mut produced = pair.produce(1, 3, Acks::All);
    pair.pump();
    let receipt = produced.try_recv().expect("it is answered").expect("it is committed");
    assert_eq!((receipt.base_offset, receipt.record_count), (0, 3));
    assert_eq!((receipt.replicas_memory, receipt.replicas_durable), (2, 2));
    for node in [1, 2] {
        let ends = pair.ends(node);
        assert_eq!((ends.high_watermark, ends.flushed_offset, ends.log_end_offset), (3, 3, 3));
    }
    assert_eq!(pair.bytes(1), pair.bytes(2), "byte for byte");
    let known = pair[1].view.followers();
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].id, known[0].flushed_offset, known[0].is_in_sync), (2, 3, true));
    assert!(pair[2].view.followers().is_empty() && pair[2].view.leader_epoch(None).is_err());
}

#[test]
fn a_demoted_leader_cuts_off_what_nobody_else_has() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let mut first = pair.produce(1, 2, Acks::All);
    pair.pump();
    assert!(first.try_recv().unwrap().is_ok());
    // Nobody carries this over.
    let mut lost = pair.produce(1, 5, Acks::All);
    pair[1].work();
    pair.drop_effects();
    pair.lead(2, 2, &[2]);
    pair.pump();
    assert_eq!(lost.try_recv().unwrap().unwrap_err().code, ErrorCode::NotLeaderAfterAppend);
    let mut second = pair.produce(2, 1, Acks::All);
    pair.pump();
    assert_eq!(second.try_recv().unwrap().unwrap().base_offset, 2);
    assert_eq!(pair.bytes(1), pair.bytes(2));
    assert_eq!(pair.ends(1).high_watermark, 3);
    // And after a restart of the machine nothing of it comes back.
    pair.lose_power(1);
    pair.lead(2, 3, &[2]);
    pair.pump();
    assert_eq!(pair.bytes(1), pair.bytes(2));
}

#[test]
fn a_new_leader_says_that_it_does_not_know_the_latest_offset() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let _produced = pair.produce(1, 2, Acks::All);
    pair.pump();
    assert_eq!(pair[1].view.latest_offset().unwrap(), 2);
    assert!(pair[2].view.latest_offset().is_err(), "it does not lead");
    // Its watermark is behind what it has.
    let _produced = pair.produce(1, 1, Acks::All);
    pair.pump_without(|effect| matches!(effect, PortEffect::ShareWatermark { .. }));
    assert_eq!(pair.ends(2).high_watermark, 2);
    pair.assign(2, 2, 2, &[1, 2]);
    let unknown = pair[2].view.latest_offset().unwrap_err();
    assert_eq!(unknown.code, ErrorCode::OffsetNotAvailable);
    pair.assign(1, 2, 2, &[1, 2]);
    pair.pump();
    assert_eq!(pair[2].view.latest_offset().unwrap(), 3);
}

#[test]
fn a_flush_of_the_log_that_was_here_before_says_nothing_about_this_one() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let _flushed = pair.produce(1, 3, Acks::All);
    pair.pump();
    let _flushing = pair.produce(1, 3, Acks::All);
    pair[1].come_back_before_a_flush();
    let ends = pair.ends(1);
    assert_eq!((ends.flushed_offset, ends.log_end_offset), (0, 0));
    // And a flush of its own is not taken for one that is under way still.
    pair.assign(1, 1, 2, &[1]);
    let mut produced = pair.produce(1, 1, Acks::All);
    pair[1].work();
    assert!(produced.try_recv().expect("it is answered").is_ok());
}

#[test]
fn what_is_damaged_on_its_way_is_asked_for_again() {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        // Another base offset, and an epoch that the leader cannot have sent: neither is under the batch's checksum.
        |bytes| bytes[7] ^= 1,
        |bytes| bytes[15] = 9,
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let mut pair = Pair::new();
        pair.lead(1, 1, &[1, 2]);
        let mut produced = pair.produce(1, 3, Acks::All);
        pair.damage = Some(damage);
        pair.pump();
        assert_eq!(pair.ends(2).log_end_offset, 0, "damage {index} is not appended");
        pair.damage = None;
        pair.wait_ms(PAUSE_MS);
        pair.pump();
        assert!(produced.try_recv().expect("it is answered").is_ok());
        assert_eq!(pair.bytes(1), pair.bytes(2));
    }
}

#[test]
fn an_answer_to_an_older_question_changes_nothing() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let _produced = pair.produce(1, 3, Acks::All);
    pair.pump();
    let before = pair.bytes(2);
    for (leader_epoch, round) in [(1, 0), (0, 2), (2, 2), (1, 99)] {
        let end = ReplicaRefusal::Diverging { epoch: 1, end_offset: 0 };
        for (refusal, payload) in [(Some(end), Bytes::new()), (None, batch(3, 4))] {
            let push = ReplicaPush {
                partition: ID,
                leader_epoch,
                round,
                high_watermark: 9,
                log_start_offset: 0,
                removals_end: 0,
                batch_bytes: u32::try_from(payload.len()).unwrap(),
                refusal,
            };
            let answer = LeaderAnswer::new(1, push, payload);
            pair[2].tell(Command::LeaderAnswer(Box::new(answer)));
        }
    }
    pair.pump();
    assert_eq!(pair.bytes(2), before);
    assert_eq!(pair.ends(2).high_watermark, 3);
}

#[test]
fn a_follower_gives_up_what_its_leader_has_given_up_and_nothing_else() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    for _ in 0..40 {
        let _produced = pair.produce(1, 10, Acks::All);
        pair.pump();
    }
    pair.wall_ms += 400 * 24 * 3_600_000;
    pair[2].upkeep();
    pair.pump();
    assert_eq!(pair.ends(2).log_start_offset, 0, "old, and not its own to delete");
    pair[1].trim(Some(123)).unwrap();
    pair.pump();
    assert_eq!(pair.ends(2).log_start_offset, 123);
    assert_eq!(pair[2].trim(None).unwrap_err().code, ErrorCode::NotLeader);
    pair[1].upkeep();
    pair.pump();
    assert_eq!(pair.ends(1).log_start_offset, 400);
    assert_eq!(pair.ends(2).log_start_offset, 400);
}

#[test]
fn a_follower_whose_place_is_gone_starts_over_where_the_leader_begins() {
    let mut pair = Pair::new();
    pair.eligible = false;
    pair.lead(1, 1, &[1]);
    let _produced = pair.produce(1, 10, Acks::All);
    pair.pump();
    assert_eq!(pair.ends(2).log_end_offset, 10);
    // Cut off from each other, the leader goes on and deletes.
    for _ in 0..5 {
        let _produced = pair.produce(1, 10, Acks::All);
        pair[1].work();
        pair.drop_effects();
    }
    pair[1].trim(Some(40)).unwrap();
    pair.drop_effects();
    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair.pump();
    let ends = pair.ends(2);
    assert_eq!((ends.log_start_offset, ends.log_end_offset, ends.high_watermark), (40, 60, 60));
    assert_eq!(pair.bytes(1), pair.bytes(2));
    pair.lose_power(2);
    pair.lead(1, 2, &[1]);
    pair.pump();
    assert_eq!((pair.ends(2).log_start_offset, pair.ends(2).log_end_offset), (40, 60));
}

#[test]
fn a_follower_with_a_failed_disk_says_nothing_more() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    pair[2].disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    let mut produced = pair.produce(1, 3, Acks::All);
    pair.pump();
    assert!(produced.try_recv().is_err(), "one disk is not two");
    assert!(pair[2].failure().is_some());
    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair[2].work();
    assert!(pair[2].port.take().is_empty(), "it has nothing to say");
}

#[test]
fn damage_is_cut_off_and_fetched_again_as_soon_as_nobody_counts_on_it() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    for _ in 0..3 {
        let mut produced = pair.produce(1, 3, Acks::All);
        pair.pump();
        assert!(produced.try_recv().unwrap().is_ok());
    }
    // In the records of the second batch.
    let batch_bytes = batch(3, 0).len() as u64;
    pair.rot(2, 2 * batch_bytes - 1);
    pair.lead(2, 2, &[1, 2]);
    assert_eq!(pair.read_for_replica(2, 2, 3).unwrap_err().code, ErrorCode::CorruptData);
    assert_eq!(pair[2].view.reader.damaged_from(), Some(3));

    // It follows, and is in sync as far as anybody knows: it says nothing, and cuts nothing.
    pair.drop_effects();
    pair.lead(1, 3, &[1, 2]);
    pair.pump();
    let known = pair[1].view.followers();
    assert_eq!((known[0].is_known, pair.ends(2).log_end_offset), (false, 9));
    pair.lead(1, 3, &[1]);
    pair.pump();
    assert_eq!(pair.bytes(1), pair.bytes(2), "it has everything again");
    assert_eq!((pair.ends(2).flushed_offset, pair.ends(2).high_watermark), (9, 9));
    assert!(pair[1].view.followers()[0].is_known);
    assert_eq!(pair[2].view.reader.damaged_from(), None);
}

#[test]
fn a_full_disk_makes_a_follower_wait_and_not_fail() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    pair[2].disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
    let mut produced = pair.produce(1, 3, Acks::All);
    pair.pump();
    pair.wait_ms(PAUSE_MS);
    pair.pump();
    assert_eq!(pair.ends(2).log_end_offset, 0);
    pair[2].disk.set_faults(Faults::default());
    pair[2].space_is_back();
    pair.wait_ms(PAUSE_MS);
    pair.pump();
    assert!(produced.try_recv().expect("it is answered").is_ok());
}

#[test]
fn reading_for_a_follower_ends_with_the_leadership() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let _produced = pair.produce(1, 3, Acks::All);
    pair[1].work();
    let read = pair.read_for_replica(1, 1, 0).expect("it leads");
    assert_eq!((read.high_watermark, read.next_offset), (0, 3));
    assert_eq!(batches(read.bytes.clone()).count(), 1);
    assert_eq!(pair.read_for_replica(1, 0, 0).unwrap_err().code, ErrorCode::FencedLeaderEpoch);
    assert_eq!(pair.read_for_replica(1, 2, 0).unwrap_err().code, ErrorCode::UnknownLeaderEpoch);
    pair.drop_effects();
    pair.lead(2, 2, &[2]);
    pair.pump();
    assert_eq!(pair.read_for_replica(1, 1, 0).unwrap_err().code, ErrorCode::NotLeader);
    let mut other = pair.produce(2, 1, Acks::All);
    pair.pump();
    assert!(other.try_recv().unwrap().is_ok());
    // What was read before the log was cut and written anew is what it was.
    let read: Vec<_> = batches(read.bytes).map(Result::unwrap).collect();
    read[0].verify_crc().unwrap();
    assert_eq!((read[0].header.leader_epoch, read[0].header.record_count), (1, 3));
}

#[test]
fn a_partition_that_is_not_here_is_refused() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    pair[1].release();
    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair[2].work();
    pair.pump_without(|_| false);
    let code = ErrorCode::UnknownTopicOrPartition;
    assert_eq!(pair.refused, Some(ReplicaRefusal::Error { code }));
}

#[test]
fn batches_of_older_epochs_are_taken_with_them() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1]);
    let _produced = pair.produce(1, 1, Acks::All);
    pair[1].work();
    pair.drop_effects();
    pair.lead(1, 4, &[1]);
    let _produced = pair.produce(1, 1, Acks::All);
    pair.pump();
    let bytes = pair.bytes(2);
    let epochs: Vec<_> = batches(bytes).map(|batch| batch.unwrap().header.leader_epoch).collect();
    assert_eq!(epochs, [1, 4]);
    assert_eq!(pair.bytes(1), pair.bytes(2));
}
