//! Bugs that other coordinators had, each as the shortest way to it. The number is Kafka's.

use proptest::prelude::*;
use tidemark_coordinator::{
    TransactionConfig,
    transactions::{MarkerResult, ProducerIdentity, TransactionState},
};
use tidemark_protocol::ErrorCode;

use crate::coordinator::{World, partition};

fn world(epoch_max: i16) -> World {
    World::new(TransactionConfig { epoch_max, ..TransactionConfig::default() })
}

fn next(identity: ProducerIdentity) -> ProducerIdentity {
    ProducerIdentity { epoch: identity.epoch + 1, ..identity }
}

/// A producer ended a transaction with an epoch that the coordinator was about to give to another.
#[test]
fn kafka_9600_an_end_in_an_epoch_that_nobody_was_given_is_refused() {
    let mut world = world(i16::MAX);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    for commit in [true, false] {
        let ahead = world.end("t", next(producer), commit);
        assert_eq!(ahead, Err(ErrorCode::InvalidProducerEpoch));
    }
    assert_eq!(world.add("t", next(producer), 1), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(world.transaction("t").state, TransactionState::Ongoing);
    // And in the epoch that a fence has just begun.
    assert_eq!(world.init("t"), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.end("t", producer, true), Err(ErrorCode::ProducerFenced));
    assert!(world.end("t", next(producer), true).is_err());
    assert_eq!(world.transaction("t").state, TransactionState::PrepareAbort);
}

/// Every attempt to fence raised the epoch, until there were none left.
#[test]
fn kafka_9666_fencing_again_and_again_uses_up_one_epoch() {
    let mut world = world(i16::MAX);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    for _ in 0..10 {
        assert_eq!(world.init("t"), Err(ErrorCode::ConcurrentTransactions));
    }
    assert_eq!(world.transaction("t").producer_epoch, producer.epoch + 1);
}

/// Markers of a transaction were awaited for the next one of the same producer id, or answers counted for it.
#[test]
fn kafka_9777_10080_16352_answers_for_another_transaction_complete_nothing() {
    let mut world = world(i16::MAX);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    let producer = world.end("t", producer, true).unwrap();
    let first = world.markers().remove(0);
    world.written(&first);
    let written = world.log.len();
    // Late, twice: no second record of completion.
    world.written(&first);
    assert_eq!(world.log.len(), written);

    world.add("t", producer, 0).unwrap();
    world.written(&first);
    assert_eq!(world.transaction("t").state, TransactionState::Ongoing);
    world.end("t", producer, false).unwrap();
    world.written(&first);
    assert_eq!(world.transaction("t").state, TransactionState::PrepareAbort);
    let second = world.markers().remove(0);
    world.written(&second);
    assert_eq!(world.transaction("t").state, TransactionState::CompleteAbort);
}

/// The coordinator moved while markers were under way; the markers of the new one were taken for those of the old.
#[test]
fn kafka_16352_a_decided_transaction_completes_whoever_coordinates() {
    let mut world = world(i16::MAX);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    world.add("t", producer, 1).unwrap();
    world.end("t", producer, true).unwrap();
    let old = world.markers().remove(0);
    world.written_in(&old, partition(0), MarkerResult::Written);
    world.fail_over();
    let new = world.markers().remove(0);
    assert_eq!(new.partitions, old.partitions, "who wrote what is not in the log");
    assert!(new.coordinator_epoch > old.coordinator_epoch);
    world.written_in(&new, partition(1), MarkerResult::TopicDeleted);
    assert_eq!(world.transaction("t").state, TransactionState::PrepareCommit);
    world.written_in(&new, partition(0), MarkerResult::Written);
    assert_eq!(world.transaction("t").state, TransactionState::CompleteCommit);
}

/// Ids were never forgotten, because only those with a producer in a certain epoch were looked at.
#[test]
fn kafka_14880_every_id_without_open_transaction_is_forgotten_in_time() {
    let config = TransactionConfig { retention_ms: 1_000, ..TransactionConfig::default() };
    let mut world = World::new(config);
    for id in ["empty", "ended", "open", "decided"] {
        let producer = world.init(id).unwrap();
        if id != "empty" {
            world.add(id, producer, 0).unwrap();
        }
        if id == "ended" || id == "decided" {
            world.end(id, producer, true).unwrap();
        }
        let sent = world.markers();
        if id == "ended" {
            world.written(&sent[0]);
        }
    }
    world.wait(1_000);
    // The open one timed out, and is decided as well now.
    world.wait(600_000);
    let left: Vec<_> = world.coordinator.state().keys().cloned().collect();
    assert_eq!(left, ["decided", "open"]);
    assert_eq!(world.init("empty").unwrap().epoch, 0);
}

/// With the last epoch reached, ending the transaction raised it twice, past what fits.
#[test]
fn kafka_18660_19367_no_epoch_is_past_the_last_one_whoever_ends_the_transaction() {
    for epoch_max in 1..4 {
        let mut world = world(epoch_max);
        let mut producer = world.init("t").unwrap();
        for round in 0..12 {
            world.add("t", producer, 0).unwrap();
            // `write` asserts that the epoch is one there is.
            producer = match round % 3 {
                0 => {
                    let next = world.end("t", producer, true).unwrap();
                    let sent = world.markers();
                    world.written(&sent[0]);
                    next
                }
                1 => {
                    world.wait(1_000);
                    let sent = world.markers();
                    world.written(&sent[0]);
                    world.init_again("t", Some(producer)).unwrap()
                }
                _ => {
                    assert_eq!(world.init("t"), Err(ErrorCode::ConcurrentTransactions));
                    let sent = world.markers();
                    world.written(&sent[0]);
                    world.init("t").unwrap()
                }
            };
            assert!((0..epoch_max).contains(&producer.epoch), "{producer:?}");
        }
    }
}

/// A producer whose epochs were used up is told the id that it goes on under when the end is decided, before the markers are
/// written. Found by the simulator: what it began at once was refused as a stranger's, and the producer took itself for fenced.
#[test]
fn whoever_goes_on_under_another_id_waits_for_the_markers_like_any_other() {
    let mut world = world(1);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    let successor = world.end("t", producer, true).unwrap();
    assert_ne!(successor.producer_id, producer.producer_id);
    let concurrent = ErrorCode::ConcurrentTransactions;
    assert_eq!(world.add("t", successor, 1), Err(concurrent));
    assert_eq!(world.end("t", successor, false), Err(concurrent));
    assert_eq!(world.init_again("t", Some(successor)), Err(concurrent));
    assert_eq!(world.add("t", next(successor), 1), Err(ErrorCode::InvalidProducerId));
    let sent = world.markers();
    world.written(&sent[0]);
    assert_eq!(world.add("t", successor, 1), Ok(()));
}

/// The epochs were used up when a transaction timed out, and it stayed open for ever.
#[test]
fn kafka_20090_a_transaction_in_the_last_epoch_times_out_like_any_other() {
    let mut world = world(1);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    world.wait(1_000);
    assert_eq!(world.transaction("t").state, TransactionState::PrepareAbort);
    assert_eq!(world.end("t", producer, true), Err(ErrorCode::TransactionAborted));
    assert_eq!(world.end("t", producer, false), Err(ErrorCode::ConcurrentTransactions));
    let sent = world.markers();
    assert_eq!(sent[0].producer, next(producer));
    world.written(&sent[0]);
    // Nobody can go on in the epoch of the markers, least of all the one that timed out.
    assert_eq!(world.add("t", next(producer), 0), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.add("t", producer, 0), Err(ErrorCode::TransactionAborted));
    let successor = world.init_again("t", Some(producer)).unwrap();
    assert!(successor.producer_id != producer.producer_id && successor.epoch == 0);
    assert_eq!(world.init_again("t", Some(producer)), Ok(successor), "the answer was lost");
    assert_eq!(world.add("t", successor, 0), Ok(()));
    assert_eq!(world.init_again("t", Some(producer)), Err(ErrorCode::ProducerFenced));
}

/// Found by the simulator: whoever asked for the abort of a transaction that had timed out in the last epoch was told to go on in
/// the epoch of the markers, in which nobody can.
#[test]
fn nobody_is_told_to_go_on_in_an_epoch_that_is_for_markers_only() {
    let mut world = world(1);
    let producer = world.init("t").unwrap();
    world.add("t", producer, 0).unwrap();
    world.wait(1_000);
    let sent = world.markers();
    world.written(&sent[0]);
    assert_eq!(world.end("t", producer, false), Err(ErrorCode::TransactionAborted));
    let successor = world.init_again("t", Some(producer)).unwrap();
    assert_eq!(world.add("t", successor, 0), Ok(()));
}

/// KIP-890, in the words of Jepsen's report: a delayed end commits or aborts a later transaction.
#[test]
fn a_delayed_end_does_nothing_to_a_later_transaction() {
    let mut world = world(i16::MAX);
    let first = world.init("t").unwrap();
    world.add("t", first, 0).unwrap();
    let second = world.end("t", first, true).unwrap();
    let sent = world.markers();
    world.written(&sent[0]);
    world.add("t", second, 0).unwrap();
    for commit in [true, false] {
        assert_eq!(world.end("t", first, commit), Err(ErrorCode::ProducerFenced));
    }
    assert_eq!(world.add("t", first, 1), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.transaction("t").state, TransactionState::Ongoing);
    assert_eq!(world.transaction("t").partitions, [partition(0)].into());
}

proptest! {
    /// What the owner of an id asks for once more is answered with the same, and changes nothing.
    #[test]
    fn a_repeated_request_is_answered_alike(
        steps in prop::collection::vec(0..5_u8, 1..40),
        epoch_max in 1..5_i16,
    ) {
        let mut world = world(epoch_max);
        let mut producer = world.init("t").unwrap();
        for step in steps {
            let open = world.transaction("t").state == TransactionState::Ongoing;
            match step {
                0 => {
                    world.add("t", producer, 0).unwrap();
                    let written = world.log.len();
                    world.add("t", producer, 0).unwrap();
                    prop_assert_eq!(world.log.len(), written);
                }
                1 | 2 if open || step == 2 => {
                    let next = world.end("t", producer, step == 1).unwrap();
                    for markers in world.markers() {
                        world.written(&markers);
                    }
                    let written = world.log.len();
                    prop_assert_eq!(world.end("t", producer, step == 1), Ok(next));
                    prop_assert_eq!(world.log.len(), written);
                    producer = next;
                }
                3 => {
                    let before = producer;
                    producer = match world.init_again("t", Some(before)) {
                        Err(ErrorCode::ConcurrentTransactions) => {
                            for markers in world.markers() {
                                world.written(&markers);
                            }
                            world.init_again("t", Some(before)).unwrap()
                        }
                        outcome => outcome.unwrap(),
                    };
                    let written = world.log.len();
                    prop_assert_eq!(world.init_again("t", Some(before)), Ok(producer));
                    prop_assert_eq!(world.log.len(), written);
                }
                4 => {
                    world.fail_over();
                    for markers in world.markers() {
                        world.written(&markers);
                    }
                }
                _ => {}
            }
        }
    }
}
