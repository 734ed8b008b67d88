//! One coordinator over a partition whose watermark and leadership the test moves.

use std::{path::Path, sync::Arc, time::Duration};

use tidemark_controller::TopicConfig;
use tidemark_coordinator::{Now, decision};
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, Offset, TopicId, TopicPartition};
use tidemark_storage::{LogIdentity, disk::SimDisk};
use tokio::sync::oneshot;

use super::{BACKLOG_MAX, Led, WAITING_MAX, first_offset};
use crate::{
    clock::Clock,
    coordinators::testing::Counter,
    disk::{Disk, Log, SegmentFiles},
    disk_watch::DiskWatch,
    flusher::Flusher,
    health::Health,
    metrics::Metrics,
    partitions::PartitionView,
    shard::{Shard, ShardConfig, log_config},
    steered::replicas::Kept,
};

const ID: TopicPartition = TopicPartition { topic_id: TopicId([7; 16]), partition: 3 };
const EPOCH: LeaderEpoch = 5;
const NOW: Now = Now { mono_ms: 0, wall_ms: 0 };

/// A partition that is led in [`EPOCH`]. Its shard does nothing.
fn view() -> Arc<PartitionView> {
    let clock = Clock::start();
    let health = Health::starting();
    let metrics = Metrics::new(clock.clone(), health.clone());
    let disk_watch = DiskWatch::new("/data".into(), 0, health);
    let config = ShardConfig { index: 0, queue_max: 10, flush_interval: Duration::from_secs(1) };
    let port = Arc::<Kept>::default();
    let flusher = Flusher::by_hand();
    let (_shard, handle) =
        Shard::new(config, clock, metrics.clone(), disk_watch, flusher, port as Arc<_>);
    let files = SegmentFiles::new(Disk::from(SimDisk::new(1)), 16);
    let identity = LogIdentity { partition: ID };
    let config = log_config(&TopicConfig::default());
    let opened = Log::open(&files, Path::new("/data/topics/t/3"), identity, config, None);
    let reader = opened.unwrap().0.reader();
    let view = PartitionView::new(ID, "t".into(), metrics.topic("t"), reader, handle);
    view.set_leader_epoch(Some(EPOCH));
    Arc::new(view)
}

fn led(view: &Arc<PartitionView>) -> Led<Counter> {
    let mut machine = Counter { end: first_offset(0) };
    let first = machine.decide(None);
    Led::new(machine, first, Arc::clone(view), EPOCH)
}

type Answer = oneshot::Receiver<Result<Offset, Failure>>;

fn ask(led: &mut Led<Counter>) -> Answer {
    let (reply, answer) = oneshot::channel();
    led.request(NOW, (), reply);
    answer
}

#[test]
fn nothing_is_told_before_it_is_committed() {
    let view = view();
    let mut led = led(&view);
    let (mut first, mut second) = (ask(&mut led), ask(&mut led));
    assert!(led.release().is_empty());
    view.set_high_watermark(2, 2);
    assert_eq!(led.release(), [1]);
    assert_eq!(first.try_recv().unwrap().unwrap(), 1);
    assert!(second.try_recv().is_err(), "its record is not committed");
    view.set_high_watermark(3, 3);
    assert_eq!(led.release(), [2]);
    assert_eq!(second.try_recv().unwrap().unwrap(), 2);
}

/// Another leader has written at the same offsets, and that is committed here: not what this one has decided.
#[test]
fn what_is_committed_under_another_leader_answers_nothing() {
    for next in [None, Some(EPOCH + 1)] {
        let view = view();
        let mut led = led(&view);
        let mut answer = ask(&mut led);
        view.set_leader_epoch(next);
        view.set_high_watermark(10, 10);
        assert!(led.release().is_empty(), "{next:?}");
        assert!(answer.try_recv().is_err(), "{next:?}");
        led.end(&Failure::new(ErrorCode::NotCoordinator, "another one leads"));
        assert_eq!(answer.try_recv().unwrap().unwrap_err().code, ErrorCode::NotCoordinator);
    }
}

/// Nothing of this leader is committed yet, so that an older leader's records may still come instead of it: what it says may
/// be wrong even if it needs no record.
#[test]
fn an_answer_without_a_record_waits_for_the_opening() {
    let view = view();
    let mut led = led(&view);
    let (reply, mut answer) = oneshot::channel();
    led.waiting.insert(7, reply);
    let mut decision = led.machine.decide(None);
    decision.replies.push(decision::Reply { token: 7, outcome: Ok(0) });
    led.take(decision);
    assert!(led.release().is_empty());
    assert!(answer.try_recv().is_err(), "the opening is not committed");
    view.set_high_watermark(first_offset(0), 0);
    assert!(led.release().is_empty());
    assert_eq!(answer.try_recv().unwrap().unwrap(), 0);
}

#[test]
fn what_waits_is_bounded() {
    let view = view();
    let mut led = led(&view);
    let waiting: Vec<_> = (0..WAITING_MAX).map(|_| ask(&mut led)).collect();
    let overloaded = |mut answer: Answer| {
        let refused = answer.try_recv().expect("it is answered at once").unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
    };
    overloaded(ask(&mut led));
    // All of them have their answers, and as many again may wait for their turn while too much is on its way.
    view.set_high_watermark(first_offset(WAITING_MAX as Offset), 0);
    assert_eq!(led.release().len(), WAITING_MAX);
    for (answer, offset) in waiting.into_iter().zip(first_offset(0)..) {
        assert_eq!(answer.blocking_recv().unwrap().unwrap(), offset);
    }
    led.appends = super::APPENDS_MAX;
    let mut queued: Vec<_> = (0..BACKLOG_MAX).map(|_| ask(&mut led)).collect();
    overloaded(ask(&mut led));
    assert!(queued.iter_mut().all(|answer| answer.try_recv().is_err()));
    assert_eq!(led.machine.end, first_offset(WAITING_MAX as Offset), "nothing of that is decided");
    led.appended(NOW);
    assert_eq!(led.machine.end, first_offset((WAITING_MAX + BACKLOG_MAX) as Offset));
}
