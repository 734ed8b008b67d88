//! Idempotent producers across two shards: what a leader knows, its successor knows, and what is repeated is there once.

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{
    ErrorCode, Failure,
    batch::{batches, with_producer},
    messages::{Acks, ProduceReceipt},
};

use super::pair::{Pair, batch};
use crate::shard::ProduceOutcome;

/// A batch of producer 7 in epoch `epoch`.
fn numbered(epoch: i16, sequence: i32, records: u32) -> Bytes {
    with_producer(&batch(records, 1), 7, epoch, sequence)
}

fn answered(outcome: &mut tokio::sync::oneshot::Receiver<ProduceOutcome>) -> ProduceOutcome {
    outcome.try_recv().expect("it is answered")
}

fn offsets(receipt: &ProduceReceipt) -> (u64, u32) {
    (receipt.base_offset, receipt.record_count)
}

fn code(outcome: Result<ProduceReceipt, Failure>) -> ErrorCode {
    outcome.expect_err("it is refused").code
}

impl Pair {
    fn try_numbered(&mut self, node: u32, bytes: Bytes) -> ProduceOutcome {
        let mut produced = self.produce_batches(node, bytes, Acks::All);
        self.pump();
        answered(&mut produced)
    }
}

#[test]
fn a_repeated_batch_is_appended_once_and_answered_with_its_offsets() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    for (sequence, base_offset) in [(0, 0), (2, 2), (4, 4)] {
        let receipt = pair.try_numbered(1, numbered(0, sequence, 2)).unwrap();
        assert_eq!(offsets(&receipt), (base_offset, 2));
    }
    for (sequence, base_offset) in [(4, 4), (0, 0), (2, 2)] {
        let receipt = pair.try_numbered(1, numbered(0, sequence, 2)).unwrap();
        assert_eq!(offsets(&receipt), (base_offset, 2));
    }
    let both = [numbered(0, 2, 2), numbered(0, 4, 2)].concat();
    assert_eq!(offsets(&pair.try_numbered(1, both.into()).unwrap()), (2, 4));
    let mixed = [numbered(0, 4, 2), numbered(0, 6, 2)].concat();
    assert_eq!(code(pair.try_numbered(1, mixed.into())), ErrorCode::InvalidRequest);
    assert_eq!(code(pair.try_numbered(1, numbered(0, 8, 1))), ErrorCode::OutOfOrderSequence);
    assert_eq!(pair.ends(1).log_end_offset, 6);
    assert_eq!(offsets(&pair.try_numbered(1, numbered(1, 0, 1)).unwrap()), (6, 1));
    assert_eq!(code(pair.try_numbered(1, numbered(0, 6, 1))), ErrorCode::InvalidProducerEpoch);
    assert_eq!(pair.bytes(1), pair.bytes(2));
}

#[test]
fn a_repeated_batch_is_not_acknowledged_before_it_is_committed() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let mut first = pair.produce_batches(1, numbered(0, 0, 2), Acks::All);
    pair[1].work();
    pair.drop_effects();
    let mut again = pair.produce_batches(1, numbered(0, 0, 2), Acks::All);
    pair[1].work();
    assert!(first.try_recv().is_err() && again.try_recv().is_err(), "the other has not got it");
    pair.wait_ms(150);
    pair.pump();
    assert_eq!(offsets(&answered(&mut first).unwrap()), (0, 2));
    assert_eq!(offsets(&answered(&mut again).unwrap()), (0, 2));
    assert_eq!(pair.ends(2).log_end_offset, 2);
}

#[test]
fn the_next_leader_recognizes_what_the_last_one_has_written() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    pair.try_numbered(1, numbered(0, 0, 2)).unwrap();
    // This one is committed, and its answer is lost with the leader.
    let _unknown = pair.produce_batches(1, numbered(0, 2, 2), Acks::All);
    pair.pump();
    pair.lose_power(1);
    pair.lead(2, 2, &[2]);
    pair.pump();
    assert_eq!(offsets(&pair.try_numbered(2, numbered(0, 2, 2)).unwrap()), (2, 2));
    assert_eq!(offsets(&pair.try_numbered(2, numbered(0, 4, 1)).unwrap()), (4, 1));
    assert_eq!(pair.bytes(1), pair.bytes(2));
}

#[test]
fn what_was_cut_off_is_forgotten_and_taken_again() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    pair.try_numbered(1, numbered(0, 0, 2)).unwrap();
    pair.lead(1, 2, &[1]);
    // Nobody carries these over.
    for (sequence, epoch) in [(2, 0), (0, 1)] {
        let _lost = pair.produce_batches(1, numbered(epoch, sequence, 2), Acks::All);
        pair[1].work();
        pair.drop_effects();
    }
    pair.lead(2, 3, &[2]);
    pair.pump();
    assert_eq!(pair.ends(1).log_end_offset, 2);
    // Whoever leads next, the producer goes on where it was.
    assert_eq!(offsets(&pair.try_numbered(2, numbered(0, 2, 2)).unwrap()), (2, 2));
    pair.lead(1, 4, &[1, 2]);
    pair.pump();
    assert_eq!(offsets(&pair.try_numbered(1, numbered(0, 2, 2)).unwrap()), (2, 2));
    assert_eq!(offsets(&pair.try_numbered(1, numbered(0, 4, 2)).unwrap()), (4, 2));
    assert_eq!(pair.bytes(1), pair.bytes(2));
}

#[test]
fn producers_are_known_again_after_a_loss_of_power_with_and_without_a_summary() {
    for summarized in [false, true] {
        let mut pair = Pair::new();
        pair.lead(1, 1, &[1]);
        for sequence in 0..3 {
            pair.try_numbered(1, numbered(0, sequence, 1)).unwrap();
        }
        if summarized {
            // It waits until nothing was written between two looks.
            assert_eq!(pair[1].store_summaries(), 0);
            assert_eq!(pair[1].store_summaries(), 1);
            assert_eq!(pair[1].store_summaries(), 0, "once is enough");
            // What the summary is about is gone, and it is believed all the same.
            pair[1].trim(Some(3)).unwrap();
        }
        pair.try_numbered(1, numbered(0, 3, 1)).unwrap();
        pair.lose_power(1);
        pair.lead(1, 2, &[1]);
        pair.pump();
        for sequence in 0..4 {
            let receipt = pair.try_numbered(1, numbered(0, sequence, 1)).unwrap();
            assert_eq!(offsets(&receipt), (u64::try_from(sequence).unwrap(), 1));
        }
        assert_eq!(code(pair.try_numbered(1, numbered(0, 5, 1))), ErrorCode::OutOfOrderSequence);
    }
}

#[test]
fn who_writes_nothing_for_a_day_is_forgotten_and_nobody_sooner() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1]);
    let gap = |pair: &mut Pair| pair.try_numbered(1, numbered(0, 9, 1));
    pair.try_numbered(1, numbered(0, 0, 1)).unwrap();
    pair[1].upkeep();
    // A day later by the clock: and it has only just written, with a clock that is a day behind.
    pair.wall_ms += 25 * 3_600_000;
    pair.try_numbered(1, numbered(0, 1, 1)).unwrap();
    pair[1].upkeep();
    assert_eq!(code(gap(&mut pair)), ErrorCode::OutOfOrderSequence);
    pair.wall_ms += 3_600_000;
    pair[1].upkeep();
    gap(&mut pair).unwrap();
}

#[test]
fn producers_without_identity_are_as_before() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    for _ in 0..2 {
        let mut all = BytesMut::new();
        for bytes in [batch(1, 1), numbered(0, 0, 1), batch(2, 2)] {
            all.extend_from_slice(&bytes);
        }
        let outcome = pair.try_numbered(1, all.freeze());
        // The second time one of them is a repetition among others that nobody can tell.
        assert!(outcome.is_ok() || code(outcome) == ErrorCode::InvalidRequest);
    }
    pair.try_numbered(1, batch(1, 1)).unwrap();
    pair.try_numbered(1, batch(1, 1)).unwrap();
    let count = batches(pair.bytes(2)).count();
    assert_eq!(count, 5);
}
