//! Transactions in one partition, across two shards: verified first, ended by markers, and read when they are decided.

use bytes::Bytes;
use tidemark_coordinator::producer_state::{Guard, Marker};
use tidemark_protocol::{
    ErrorCode, Offset,
    batch::BatchBuilder,
    messages::{Acks, ProducerIdentity},
};
use tokio::sync::oneshot;

use super::pair::{ID, Pair};
use crate::shard::{Command, ProduceOutcome, Unverified, WriteMarker};

const COORDINATOR_EPOCH: i32 = 3;

/// A batch of a transaction of producer 7.
fn part(epoch: i16, sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new(tidemark_protocol::Compression::None);
    builder.set_producer(7, epoch, sequence);
    builder.set_transactional();
    builder.push(1_700_000_000_000, None, Some(b"v"), &[]);
    builder.build().unwrap()
}

impl Pair {
    /// Sends a batch that has to be verified; the request comes back.
    fn unverified(&mut self, bytes: Bytes) -> (Unverified, oneshot::Receiver<ProduceOutcome>) {
        let (mut produce, outcome) = self.request(1, bytes, Acks::All);
        let (asks, mut unverified) = oneshot::channel();
        produce.unverified = Some(asks);
        self[1].tell(Command::Produce(produce));
        self.pump();
        (unverified.try_recv().expect("it is to be verified"), outcome)
    }

    /// The coordinator has agreed.
    fn verified(
        &mut self,
        (unverified, mut outcome): (Unverified, oneshot::Receiver<ProduceOutcome>),
    ) -> ProduceOutcome {
        let Unverified { guard, mut produce } = unverified;
        produce.guard = Some(guard);
        self[1].tell(Command::Produce(produce));
        self.pump();
        outcome.try_recv().expect("it is answered")
    }

    fn end(
        &mut self,
        node: u32,
        epoch: i16,
        commit: bool,
        coordinator_epoch: i32,
    ) -> ProduceOutcome {
        let (reply, mut outcome) = oneshot::channel();
        let producer = ProducerIdentity { producer_id: 7, epoch };
        let marker = Marker { commit, coordinator_epoch };
        let write = WriteMarker { partition: ID, producer, marker, deadline_ms: u64::MAX, reply };
        self[node].tell(Command::WriteMarker(write));
        self.pump();
        outcome.try_recv().expect("it is answered")
    }

    fn stable(&self, node: u32) -> Offset {
        self[node].view.last_stable_offset()
    }

    fn aborted(&self, node: u32) -> Vec<(Offset, Offset)> {
        let aborted = self[node].view.aborted(0..100);
        aborted.into_iter().map(|one| (one.first_offset, one.last_offset)).collect()
    }
}

#[test]
fn a_transaction_is_stable_when_its_end_is_committed() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let asked = pair.unverified(part(0, 0));
    assert_eq!(pair.ends(1).log_end_offset, 0, "nothing before the coordinator agrees");
    assert_eq!(pair.verified(asked).unwrap().base_offset, 0);
    // It is open: the next is part of it without a word.
    let mut next = pair.produce_batches(1, part(0, 1), Acks::All);
    pair.pump();
    assert_eq!(next.try_recv().unwrap().unwrap().base_offset, 1);
    let mut other = pair.produce(1, 1, Acks::All);
    pair.pump();
    assert_eq!(other.try_recv().unwrap().unwrap().base_offset, 2);
    assert_eq!((pair.ends(1).high_watermark, pair.stable(1), pair.stable(2)), (3, 0, 0));
    // The follower does not have the marker yet.
    let (reply, mut outcome) = oneshot::channel();
    let producer = ProducerIdentity { producer_id: 7, epoch: 1 };
    let marker = Marker { commit: false, coordinator_epoch: COORDINATOR_EPOCH };
    let write = WriteMarker { partition: ID, producer, marker, deadline_ms: u64::MAX, reply };
    pair[1].tell(Command::WriteMarker(write));
    pair[1].work();
    pair.drop_effects();
    assert!(outcome.try_recv().is_err() && pair.stable(1) == 0, "not committed");
    pair[2].tell(Command::LeaderConnected { leader: 1 });
    pair.pump();
    assert_eq!(outcome.try_recv().unwrap().unwrap().base_offset, 3);
    for node in [1, 2] {
        assert_eq!((pair.stable(node), pair.aborted(node)), (4, vec![(0, 3)]), "node {node}");
    }
    // Once more is the same as once, and it is answered.
    assert_eq!(pair.end(1, 1, false, COORDINATOR_EPOCH).unwrap().base_offset, 3);
    assert_eq!(pair.ends(1).log_end_offset, 4);
    assert_eq!(pair.bytes(1), pair.bytes(2));
}

#[test]
fn what_is_late_is_kept_out_of_the_next_transaction() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let asked = pair.unverified(part(0, 0));
    pair.verified(asked).unwrap();
    // Another batch of it is on its way to be verified at another leader's time, when the transaction ends.
    pair.end(1, 1, true, COORDINATOR_EPOCH).unwrap();
    let mut late = pair.produce_batches(1, part(0, 1), Acks::All);
    pair.pump();
    assert_eq!(late.try_recv().unwrap().unwrap_err().code, ErrorCode::TransactionUnverified);
    // Verified, and ended before the batch came back: the guard is void.
    let asked = pair.unverified(part(1, 0));
    pair.end(1, 2, false, COORDINATOR_EPOCH).unwrap();
    assert_eq!(pair.verified(asked).unwrap_err().code, ErrorCode::InvalidProducerEpoch);
    // A coordinator that was replaced ends nothing.
    let asked = pair.unverified(part(2, 0));
    pair.verified(asked).unwrap();
    let fenced = pair.end(1, 3, false, COORDINATOR_EPOCH - 1).unwrap_err();
    assert_eq!(fenced.code, ErrorCode::TransactionCoordinatorFenced);
    assert_eq!(pair.stable(1), pair.ends(1).log_end_offset - 1);
    assert!(pair.aborted(1).is_empty());
}

#[test]
fn the_next_leader_knows_what_is_open_and_what_was_aborted() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let asked = pair.unverified(part(0, 0));
    pair.verified(asked).unwrap();
    pair.end(1, 1, false, COORDINATOR_EPOCH).unwrap();
    let asked = pair.unverified(part(1, 0));
    pair.verified(asked).unwrap();
    pair.lose_power(2);
    pair.lead(2, 2, &[2]);
    pair.pump();
    assert_eq!((pair.ends(2).high_watermark, pair.stable(2)), (3, 2));
    assert_eq!(pair.aborted(2), [(0, 1)]);
    pair.end(2, 2, true, COORDINATOR_EPOCH + 1).unwrap();
    assert_eq!((pair.stable(2), pair.aborted(2)), (4, vec![(0, 1)]));
    assert_eq!(pair.stable(1), 4);
}

/// Guards are told apart.
#[test]
fn a_guard_is_given_once() {
    let mut pair = Pair::new();
    pair.lead(1, 1, &[1, 2]);
    let (first, _outcome) = pair.unverified(part(0, 0));
    pair.end(1, 1, true, COORDINATOR_EPOCH).unwrap();
    let (second, _outcome) = pair.unverified(part(1, 0));
    let guards: [Guard; 2] = [first.guard, second.guard];
    assert_ne!(guards[0], guards[1]);
}

/// Whoever reads only what is decided has not seen them yet.
#[test]
fn retention_deletes_no_records_of_an_open_transaction_and_none_behind_them() {
    let mut pair = Pair::new();
    pair.config.retention_ms = Some(1);
    pair.lead(1, 1, &[1, 2]);
    let asked = pair.unverified(part(0, 0));
    pair.verified(asked).unwrap();
    pair.wall_ms += 1000;
    pair[1].upkeep();
    let ends = pair.ends(1);
    assert_eq!((ends.log_start_offset, ends.high_watermark, pair.stable(1)), (0, 1, 0));
    pair.end(1, 1, true, COORDINATOR_EPOCH).unwrap();
    // The marker carries the time at which it was written.
    pair.wall_ms += 1000;
    pair[1].upkeep();
    assert_eq!(pair.ends(1).log_start_offset, 2, "it is over, and old");
}
