//! Idempotent producers against one partition: the rules one by one, and random clients over a network that loses,
//! repeats and reorders.

#![expect(clippy::unwrap_used, reason = "in tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tidemark_coordinator::{
    ProducerStates,
    producer_state::{
        Admission, BATCHES_KEPT, Content, Marker, MarkerAdmission, MarkerOrigin, Verification,
    },
};
use tidemark_protocol::{ErrorCode, batch::BatchHeader};

const TRANSACTIONAL: u16 = 0x10;

fn batch(producer: (i64, i16), sequence: i32, records: u32) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        batch_bytes: BatchHeader::BYTES,
        leader_epoch: 0,
        crc: 0,
        attributes: 0,
        last_offset_delta: records - 1,
        base_timestamp: 0,
        max_timestamp: 0,
        producer_id: producer.0,
        producer_epoch: producer.1,
        base_sequence: sequence,
        record_count: records,
    }
}

fn transactional(producer: (i64, i16), sequence: i32) -> BatchHeader {
    BatchHeader { attributes: TRANSACTIONAL, ..batch(producer, sequence, 1) }
}

/// Appends at the end.
fn append(states: &mut ProducerStates, header: &BatchHeader, content: Content) {
    let header = BatchHeader { base_offset: states.next_offset(), ..*header };
    states.replay(&header, content);
}

/// Checks, and appends what is to be appended.
fn produce(states: &mut ProducerStates, header: &BatchHeader) -> Result<Admission, ErrorCode> {
    let guard = match states.begin_verification(header) {
        Verification::Needed(guard) => Some(guard),
        Verification::NotNeeded => None,
    };
    let admission = states.check(header, guard)?;
    if admission == Admission::Append {
        append(states, header, Content::Data);
    }
    Ok(admission)
}

fn end(states: &mut ProducerStates, producer: (i64, i16), commit: bool) {
    let marker = Marker { commit, coordinator_epoch: 1 };
    append(states, &transactional(producer, -1), Content::Marker(marker));
}

#[test]
fn a_batch_of_the_last_five_is_answered_with_its_offsets_whatever_came_since() {
    let mut states = ProducerStates::new();
    for sequence in 0..6 {
        assert_eq!(produce(&mut states, &batch((1, 0), sequence * 2, 2)), Ok(Admission::Append));
    }
    for kept in 1..6_u64 {
        let sequence = i32::try_from(kept).unwrap() * 2;
        let duplicate = Admission::Duplicate {
            base_offset: kept * 2,
            last_offset: kept * 2 + 1,
            timestamp_ms: 0,
        };
        assert_eq!(states.check(&batch((1, 0), sequence, 2), None), Ok(duplicate));
    }
    // Older ones are forgotten, and half of one is none.
    let refused = Err(ErrorCode::OutOfOrderSequence);
    assert_eq!(states.check(&batch((1, 0), 0, 2), None), refused);
    assert_eq!(states.check(&batch((1, 0), 10, 1), None), refused);
    assert_eq!(states.next_offset(), 12);
}

#[test]
fn sequences_leave_no_gap_and_wrap_to_zero() {
    let mut states = ProducerStates::new();
    // What was known of this producer has been forgotten: it may begin anywhere.
    assert_eq!(produce(&mut states, &batch((1, 0), i32::MAX - 1, 3)), Ok(Admission::Append));
    assert_eq!(states.check(&batch((1, 0), 2, 1), None), Err(ErrorCode::OutOfOrderSequence));
    assert_eq!(produce(&mut states, &batch((1, 0), 1, 1)), Ok(Admission::Append));
}

#[test]
fn an_epoch_has_sequences_of_its_own_from_zero() {
    let mut states = ProducerStates::new();
    produce(&mut states, &batch((1, 4), 0, 1)).unwrap();
    produce(&mut states, &batch((1, 4), 1, 1)).unwrap();
    assert_eq!(states.check(&batch((1, 3), 2, 1), None), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(states.check(&batch((1, 5), 2, 1), None), Err(ErrorCode::OutOfOrderSequence));
    // The same sequence in another epoch is another batch.
    assert_eq!(produce(&mut states, &batch((1, 5), 0, 1)), Ok(Admission::Append));
    assert_eq!(states.check(&batch((1, 4), 2, 1), None), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(states.next_offset(), 3);
}

#[test]
fn records_outside_of_an_open_transaction_are_refused_until_it_ends() {
    let mut states = ProducerStates::new();
    produce(&mut states, &transactional((1, 0), 0)).unwrap();
    let refused = Err(ErrorCode::InvalidTransactionState);
    assert_eq!(states.check(&batch((1, 0), 1, 1), None), refused);
    assert_eq!(states.check(&transactional((1, 1), 0), None), refused);
    end(&mut states, (1, 1), true);
    assert_eq!(produce(&mut states, &batch((1, 1), 0, 1)), Ok(Admission::Append));
}

#[test]
fn the_first_batch_of_a_transaction_needs_a_guard_that_no_marker_has_taken_away() {
    let mut states = ProducerStates::new();
    let first = transactional((1, 0), 0);
    assert_eq!(states.check(&first, None), Err(ErrorCode::TransactionUnverified));
    let Verification::Needed(stale) = states.begin_verification(&first) else { panic!() };
    // The coordinator says yes; before it arrives the transaction ends, and the next one verifies.
    end(&mut states, (1, 0), false);
    let refused = Err(ErrorCode::TransactionUnverified);
    assert_eq!(states.check(&first, Some(stale)), refused);
    let Verification::Needed(fresh) = states.begin_verification(&first) else { panic!() };
    assert_ne!(stale, fresh);
    assert_eq!(states.check(&first, Some(stale)), refused);
    assert_eq!(states.check(&first, Some(fresh)), Ok(Admission::Append));
    append(&mut states, &first, Content::Data);
    assert_eq!(states.begin_verification(&transactional((1, 0), 1)), Verification::NotNeeded);
    assert_eq!(states.check(&transactional((1, 0), 1), None), Ok(Admission::Append));
}

/// Whoever claims an epoch that nobody was given is refused by the coordinator, and its question stays.
#[test]
fn a_later_epoch_that_nobody_was_given_keeps_the_owner_from_nothing() {
    let mut states = ProducerStates::new();
    let claimed = transactional((1, 5), 0);
    let Verification::Needed(invented) = states.begin_verification(&claimed) else { panic!() };
    let first = transactional((1, 0), 0);
    let Verification::Needed(guard) = states.begin_verification(&first) else { panic!() };
    assert_ne!(guard, invented);
    assert_eq!(states.check(&first, Some(invented)), Err(ErrorCode::TransactionUnverified));
    assert_eq!(states.check(&first, Some(guard)), Ok(Admission::Append));
}

/// KAFKA-14920.
#[test]
fn a_batch_does_not_overtake_one_that_waits_for_verification() {
    let mut states = ProducerStates::new();
    let Verification::Needed(guard) = states.begin_verification(&transactional((1, 0), 0)) else {
        panic!()
    };
    assert_eq!(
        states.begin_verification(&transactional((1, 0), 1)),
        Verification::Needed(guard),
        "one question for both"
    );
    let overtaking = states.check(&transactional((1, 0), 1), Some(guard));
    assert_eq!(overtaking, Err(ErrorCode::OutOfOrderSequence));
    assert_eq!(states.check(&transactional((1, 0), 0), Some(guard)), Ok(Admission::Append));
}

#[test]
fn markers_come_in_the_order_of_epochs_and_count_once() {
    let mut states = ProducerStates::new();
    produce(&mut states, &transactional((1, 3), 0)).unwrap();
    let check = |states: &ProducerStates, epoch, coordinator_epoch| {
        let marker = Marker { commit: true, coordinator_epoch };
        states.check_marker(1, epoch, marker, MarkerOrigin::Coordinator)
    };
    // Late ones, of the transactions before.
    assert_eq!(check(&states, 3, 1), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(check(&states, 2, 1), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(check(&states, 4, 1), Ok(MarkerAdmission::Append));
    end(&mut states, (1, 4), true);
    assert_eq!(check(&states, 4, 1), Ok(MarkerAdmission::AlreadyThere));
    assert_eq!(check(&states, 4, 2), Ok(MarkerAdmission::AlreadyThere));
    assert_eq!(check(&states, 5, 0), Err(ErrorCode::TransactionCoordinatorFenced));
}

#[test]
fn an_operator_ends_a_transaction_that_was_left_behind_in_its_own_epoch() {
    let mut states = ProducerStates::new();
    produce(&mut states, &transactional((1, 3), 0)).unwrap();
    let check = |states: &ProducerStates, epoch| {
        let marker = Marker { commit: false, coordinator_epoch: 1 };
        states.check_marker(1, epoch, marker, MarkerOrigin::Operator)
    };
    assert_eq!(states.open_transactions().collect::<Vec<_>>(), [(1, 0, 0)]);
    assert_eq!(check(&states, 4), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(check(&states, 3), Ok(MarkerAdmission::Append));
    end(&mut states, (1, 3), false);
    assert_eq!(check(&states, 3), Ok(MarkerAdmission::AlreadyThere));
    assert_eq!(states.last_stable_offset(2), 2);
}

#[test]
fn an_end_above_the_watermark_holds_reading_back() {
    let mut states = ProducerStates::new();
    produce(&mut states, &transactional((1, 0), 0)).unwrap();
    produce(&mut states, &transactional((2, 0), 0)).unwrap();
    end(&mut states, (1, 1), false);
    end(&mut states, (2, 1), true);
    // Offsets: 0 and 1 data, 2 and 3 the ends.
    let stable: Vec<_> = (0..5).map(|watermark| states.last_stable_offset(watermark)).collect();
    assert_eq!(stable, [0, 0, 0, 1, 4]);
    states.high_watermark_reached(3);
    assert_eq!(states.last_stable_offset(3), 1);
    states.high_watermark_reached(4);
    assert_eq!(states.last_stable_offset(4), 4);
    assert_eq!(states.aborted(0..4).len(), 1);
    assert_eq!(states.aborted(3..4).len(), 0);
    states.log_start_reached(3);
    assert_eq!(states.aborted(0..4).len(), 0);
}

#[test]
fn the_producer_that_was_idle_longest_is_forgotten_first_and_none_in_a_transaction() {
    let mut states = ProducerStates::with_producers_max(2);
    produce(&mut states, &transactional((1, 0), 0)).unwrap();
    for id in 2..5 {
        produce(&mut states, &batch((id, 0), 0, 1)).unwrap();
    }
    let known: Vec<_> = states.producers().map(|(id, _)| id).collect();
    assert_eq!(known, [1, 4]);
    states.expire(1, 3);
    let known: Vec<_> = states.producers().map(|(id, _)| id).collect();
    assert_eq!(known, [1, 4], "it has just written, whatever its clock says");
    states.expire(1, 4);
    let known: Vec<_> = states.producers().map(|(id, _)| id).collect();
    assert_eq!(known, [1]);
}

#[test]
fn batches_that_come_together_are_all_new_or_all_repeated() {
    let check =
        |states: &ProducerStates, batches: &[BatchHeader]| states.check_all(batches, |_| None);
    let mut states = ProducerStates::new();
    let first = [batch((1, 0), 0, 2), batch((2, 0), 0, 1), batch((-1, -1), -1, 1)];
    let second = [batch((1, 0), 2, 2), batch((1, 0), 4, 1)];
    assert_eq!(check(&states, &[&first[..], &second].concat()), Ok(Admission::Append));
    for header in &first {
        append(&mut states, header, Content::Data);
    }
    // What is new has to follow, here and among themselves.
    let gap = [batch((1, 0), 2, 2), batch((1, 0), 5, 1)];
    assert_eq!(check(&states, &gap), Err(ErrorCode::OutOfOrderSequence));
    let again = [batch((1, 0), 2, 2), batch((1, 0), 2, 2)];
    assert_eq!(check(&states, &again), Err(ErrorCode::OutOfOrderSequence));
    let bumped = [batch((1, 0), 2, 2), batch((1, 1), 0, 2)];
    assert_eq!(check(&states, &bumped), Err(ErrorCode::OutOfOrderSequence));
    assert_eq!(check(&states, &second), Ok(Admission::Append));
    // One repeated, one new: there is no answer to both.
    assert_eq!(check(&states, &[first[0], second[0]]), Err(ErrorCode::InvalidRequest));
    for header in &second {
        append(&mut states, header, Content::Data);
    }
    let all = Admission::Duplicate { base_offset: 4, last_offset: 6, timestamp_ms: 0 };
    assert_eq!(check(&states, &second), Ok(all));
    // Another producer's came in between: no run of offsets.
    assert_eq!(check(&states, &[first[0], second[0]]), Err(ErrorCode::InvalidRequest));
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    Deliver(prop::sample::Index),
    DeliverAndKeep(prop::sample::Index),
    Lose(prop::sample::Index),
    Repeat,
    /// The client has lost track and goes on in a new epoch.
    NewEpoch,
    LeaderFails(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        10 => Just(Step::Send),
        10 => index().prop_map(Step::Deliver),
        4 => index().prop_map(Step::DeliverAndKeep),
        3 => index().prop_map(Step::Lose),
        4 => Just(Step::Repeat),
        1 => Just(Step::NewEpoch),
        1 => index().prop_map(Step::LeaderFails),
    ]
}

/// A client with up to five batches under way, each with a value of its own.
#[derive(Debug, Default)]
struct Client {
    epoch: i16,
    next_sequence: i32,
    next_value: u32,
    under_way: VecDeque<(BatchHeader, u32)>,
    acknowledged: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct World {
    states: ProducerStates,
    log: Vec<(BatchHeader, u32)>,
    client: Client,
    requests: Vec<(BatchHeader, u32)>,
}

impl World {
    fn take(&mut self, step: &Step) {
        let client = &mut self.client;
        match step {
            Step::Send if client.under_way.len() < BATCHES_KEPT => {
                let records = client.next_value % 3 + 1;
                let header = batch((7, client.epoch), client.next_sequence, records);
                client.next_sequence += i32::try_from(records).unwrap();
                client.next_value += 1;
                client.under_way.push_back((header, client.next_value));
                self.requests.push((header, client.next_value));
            }
            Step::Deliver(index) if !self.requests.is_empty() => {
                let request = self.requests.remove(index.index(self.requests.len()));
                self.deliver(request);
            }
            Step::DeliverAndKeep(index) if !self.requests.is_empty() => {
                self.deliver(self.requests[index.index(self.requests.len())]);
            }
            Step::Lose(index) if !self.requests.is_empty() => {
                self.requests.remove(index.index(self.requests.len()));
            }
            Step::Repeat => self.requests.extend(&client.under_way),
            Step::NewEpoch => {
                client.epoch += 1;
                client.next_sequence = 0;
                client.under_way.clear();
            }
            Step::LeaderFails(index) => self.fail_over(index.index(self.log.len() + 1)),
            _ => {}
        }
    }

    fn deliver(&mut self, (header, value): (BatchHeader, u32)) {
        match self.states.check(&header, None) {
            Ok(Admission::Append) => {
                let header = BatchHeader { base_offset: self.states.next_offset(), ..header };
                self.states.replay(&header, Content::Data);
                self.log.push((header, value));
            }
            Ok(Admission::Duplicate { base_offset, .. }) => {
                let first = self.log.iter().find(|(header, _)| header.base_offset == base_offset);
                assert_eq!(first.unwrap().1, value, "answered with another batch's offsets");
            }
            Err(_) => return,
        }
        let under_way = &mut self.client.under_way;
        if under_way.iter().any(|(_, one)| *one == value) {
            under_way.retain(|(_, one)| *one != value);
            self.client.acknowledged.insert(value);
        }
    }

    fn fail_over(&mut self, from: usize) {
        let mut states = ProducerStates::new();
        for (header, _) in &self.log[..from] {
            states.replay(header, Content::Data);
        }
        let mut states = ProducerStates::from_snapshot(&states.to_snapshot()).unwrap();
        for (header, _) in &self.log[from..] {
            states.replay(header, Content::Data);
        }
        assert_eq!(states, self.states);
        self.states = states;
    }

    /// In every epoch the sequences have no gap, and no value is there twice.
    fn check(&self) {
        let mut next: BTreeMap<i16, i32> = BTreeMap::new();
        let mut values = BTreeSet::new();
        let mut last_epoch = 0;
        for (header, value) in &self.log {
            assert!(values.insert(*value), "{value} is there twice");
            assert!(header.producer_epoch >= last_epoch, "a zombie's batch");
            last_epoch = header.producer_epoch;
            // The first batch a partition sees of a producer may be any; after that an epoch begins at 0.
            let expected = next.get(&header.producer_epoch).copied();
            let begins = if next.is_empty() { header.base_sequence } else { 0 };
            assert_eq!(header.base_sequence, expected.unwrap_or(begins), "{:?}", self.log);
            let end = header.base_sequence + i32::try_from(header.last_offset_delta).unwrap() + 1;
            next.insert(header.producer_epoch, end);
        }
        for value in &self.client.acknowledged {
            assert!(values.contains(value), "{value} was acknowledged and is not there");
        }
    }
}

proptest! {
    #[test]
    fn every_batch_is_there_once_and_in_order(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::default();
        for step in &steps {
            world.take(step);
        }
        world.check();
    }

    #[test]
    fn bytes_that_are_no_snapshot_or_marker_are_refused_in_peace(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        drop(ProducerStates::from_snapshot(&bytes));
        if let Ok(Some(marker)) = Marker::decode(&bytes, &bytes) {
            prop_assert!(marker.coordinator_epoch.to_be_bytes() == bytes[2..6]);
        }
        let mut states = ProducerStates::new();
        for id in 0..5 {
            produce(&mut states, &transactional((id, 0), 0)).unwrap();
            end(&mut states, (id, 1), id % 2 == 0);
        }
        let mut bytes = states.to_snapshot();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(mut states) = ProducerStates::from_snapshot(&bytes) {
            let end = states.next_offset().min(1 << 40);
            states.last_stable_offset(end);
            states.aborted(0..end);
            states.high_watermark_reached(end);
            states.log_start_reached(end);
        }
    }
}

#[test]
fn a_marker_survives_its_bytes() {
    for marker in [
        Marker { commit: true, coordinator_epoch: 7 },
        Marker { commit: false, coordinator_epoch: 0 },
    ] {
        let (key, value) = marker.encode();
        assert_eq!(Marker::decode(&key, &value), Ok(Some(marker)));
    }
    assert_eq!(Marker::decode(&[0, 0, 0, 9], &[]), Ok(None));
}
