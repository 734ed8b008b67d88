//! What whoever asks is told while a coordinator comes, fails and goes.

mod bench;

use tidemark_protocol::ErrorCode;

use self::bench::{Bench, ID, ME, rot};
use super::{RELOAD_PAUSE_MAX, State};

const BOTH: &[u32] = &[1, 2];

#[tokio::test]
async fn a_request_before_the_log_is_read_says_which_partition_it_waits_for() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.turn().await;
    assert!(bench.is_loading());
    let refused = bench.refusal();
    assert_eq!(refused.code, ErrorCode::CoordinatorLoading);
    assert_eq!(refused.message, "__counters/0 is being read");
    bench.loaded().await;
    let mut answer = bench.ask();
    assert!(answer.try_recv().is_err(), "nothing is committed yet");
    bench.settle().await;
    // The opening came first.
    assert_eq!(answer.try_recv().unwrap().unwrap(), 1);
}

#[tokio::test]
async fn whoever_does_not_lead_says_so() {
    let mut bench = Bench::new();
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
    bench.follow(1);
    bench.settle().await;
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
    // Led, and the host has not looked.
    bench.lead(2);
    let refused = bench.refusal();
    assert_eq!(refused.code, ErrorCode::CoordinatorLoading);
    assert_eq!(refused.message, "__counters/0 is about to be read");
}

#[tokio::test]
async fn leadership_that_ends_while_the_log_is_read_ends_that_too() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.turn().await;
    bench.follow(2);
    bench.loaded().await;
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
    bench.lead(3);
    bench.settle().await;
    let mut answer = bench.ask();
    bench.settle().await;
    assert!(answer.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn leadership_that_moves_away_tells_whoever_waits() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (BOTH, 2));
    bench.settle().await;
    let mut waiting = bench.ask();
    bench.settle().await;
    assert!(waiting.try_recv().is_err(), "the other has not got the record");
    bench.follow(2);
    bench.settle().await;
    let told = waiting.try_recv().unwrap().unwrap_err();
    assert_eq!(told.code, ErrorCode::NotCoordinator, "{told}");
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
}

#[tokio::test]
async fn a_log_that_is_damaged_is_not_served_and_says_so() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.settle().await;
    bench.follow(2);
    bench.settle().await;
    rot(&bench.disk);
    bench.lead(3);
    bench.settle().await;
    let refused = bench.refusal();
    assert_eq!(refused.code, ErrorCode::CorruptData, "{refused}");
    assert!(refused.message.starts_with("__counters/0 cannot be read: "), "{refused}");
    // Nobody looks again before somebody else has led.
    bench.pass(RELOAD_PAUSE_MAX);
    bench.turn().await;
    assert!(!bench.is_loading());
    bench.follow(4);
    bench.settle().await;
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
}

/// Somebody else's record is in the log, and the coordinator is told with its next append.
async fn fail(bench: &mut Bench) {
    let State::Serving(led) = &mut bench.host.slots[0].state else { panic!("it is not served") };
    led.next_offset += 5;
    led.machine.end += 5;
    let mut waiting = bench.ask();
    bench.settle().await;
    let told = waiting.try_recv().unwrap().unwrap_err();
    assert_eq!(told.code, ErrorCode::NotCoordinator, "{told}");
}

#[tokio::test]
async fn a_coordinator_that_failed_says_why_until_the_next_one_has_read_the_log() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.settle().await;
    fail(&mut bench).await;
    let refused = bench.refusal();
    assert_eq!(refused.code, ErrorCode::CoordinatorLoading);
    let State::Pausing { why, .. } = &bench.host.slots[0].state else { panic!("it goes on") };
    assert!(!why.is_empty());
    assert_eq!(refused.message, format!("__counters/0 is not served for the moment: {why}"));
    bench.pass(RELOAD_PAUSE_MAX);
    bench.settle().await;
    let mut answer = bench.ask();
    bench.settle().await;
    assert!(answer.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn whoever_led_and_failed_does_not_lead_when_another_does() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.settle().await;
    fail(&mut bench).await;
    bench.follow(2);
    bench.settle().await;
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
    bench.pass(RELOAD_PAUSE_MAX);
    bench.turn().await;
    assert!(bench.host.wake_at() > bench.host.broker.clock.now(), "there is nothing to wake for");
}

/// What an ended coordinator appended may be committed when the next one serves, in the same leader epoch.
#[tokio::test]
async fn the_outcome_of_an_append_is_for_the_coordinator_that_sent_it() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (BOTH, 2));
    bench.settle().await;
    // Its opening is in the log and not committed. Now too few are in sync, and its next record is refused.
    bench.assign(ME, 1, (&[ME], 2));
    let mut waiting = bench.ask();
    bench.settle().await;
    assert_eq!(waiting.try_recv().unwrap().unwrap_err().code, ErrorCode::NotCoordinator);
    // The metadata lets this broker do alone: the first opening is committed, and the log is read once more.
    bench.assign(ME, 1, (&[ME], 1));
    bench.pass(RELOAD_PAUSE_MAX);
    bench.host.look_at(0);
    bench.loaded().await;
    bench.settle().await;
    let mut answer = bench.ask();
    bench.settle().await;
    assert!(answer.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn stopping_tells_whoever_waits() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (BOTH, 2));
    bench.settle().await;
    let (handle, shutdown) = (&bench.handle, bench.shutdown.clone());
    let (asked, ()) = tokio::join!(handle.ask(ID.partition, ()), async {
        tokio::task::yield_now().await;
        shutdown.start();
        bench.host.run(shutdown.clone()).await;
    });
    let told = asked.unwrap_err();
    assert_eq!((told.code, &*told.message), (ErrorCode::NotCoordinator, "the broker is stopping"));
}

#[tokio::test]
async fn with_too_few_in_sync_nothing_is_read_or_written_before_there_are_enough() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (&[ME], 2));
    for _ in 0..2 {
        bench.turn().await;
        assert!(!bench.is_loading());
        let refused = bench.refusal();
        assert_eq!(refused.code, ErrorCode::CoordinatorLoading);
        let why =
            "__counters/0 is not served for the moment: it has 1 in sync, min_insync_replicas is 2";
        assert_eq!(refused.message, why);
        bench.pass(RELOAD_PAUSE_MAX);
    }
    assert_eq!(bench.view.reader.log_end_offset(), 0);
    bench.turn().await;
    assert!(bench.host.wake_at() > bench.host.broker.clock.now(), "there is nothing to wake for");
    bench.assign(ME, 1, (BOTH, 2));
    bench.settle().await;
    assert_eq!(bench.view.reader.log_end_offset(), 1, "the opening");
}

#[tokio::test]
async fn leadership_that_ends_below_the_minimum_is_no_longer_waited_with() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (&[ME], 2));
    bench.settle().await;
    bench.follow(2);
    bench.settle().await;
    assert_eq!(bench.refusal().code, ErrorCode::NotCoordinator);
}

#[tokio::test]
async fn a_coordinator_whose_opening_is_not_committed_answers_when_enough_are_in_sync() {
    let mut bench = Bench::new();
    bench.assign(ME, 1, (BOTH, 2));
    bench.settle().await;
    let mut answer = bench.ask();
    bench.settle().await;
    bench.assign(ME, 1, (&[ME], 2));
    bench.settle().await;
    assert!(answer.try_recv().is_err(), "not even the opening is committed");
    bench.assign(ME, 1, (&[ME], 1));
    bench.settle().await;
    assert_eq!(answer.try_recv().unwrap().unwrap(), 1);
}

/// Nothing is tried again before it can succeed, and one failure is one failure.
#[tokio::test]
async fn a_coordinator_that_falls_below_the_minimum_is_loaded_once_when_there_are_enough() {
    let mut bench = Bench::new();
    bench.lead(1);
    bench.settle().await;
    bench.assign(ME, 1, (&[ME], 2));
    let mut refused = bench.ask();
    bench.settle().await;
    let told = refused.try_recv().unwrap().unwrap_err();
    assert_eq!(told.code, ErrorCode::NotCoordinator);
    assert!(matches!(bench.host.slots[0].state, State::TooFewInSync { .. }));
    assert_eq!(bench.host.slots[0].failures, 1);
    let end = bench.view.reader.log_end_offset();
    for _ in 0..3 {
        bench.pass(RELOAD_PAUSE_MAX);
        bench.settle().await;
    }
    assert_eq!(bench.view.reader.log_end_offset(), end, "nothing was tried");
    bench.assign(ME, 1, (&[ME], 1));
    bench.settle().await;
    assert_eq!((bench.host.slots[0].life, bench.host.slots[0].failures), (2, 0));
    let mut answer = bench.ask();
    bench.settle().await;
    assert!(answer.try_recv().unwrap().is_ok());
}
