//! Keeps replicas that catch up from taking the whole disk and network: their next questions wait until what they were
//! sent fits the bound that an operator has set. Replicas in sync never wait.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidemark_protocol::{BrokerId, TopicPartition, messages::Position};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::outbox::Outbox;

/// What may come at once after a pause: this much of a second's worth.
const BURST: Duration = Duration::from_millis(100);
/// Longest wait that one answer costs.
const DEBT_MAX: Duration = Duration::from_hours(1);
/// Positions let go at a time.
const POSITIONS_MAX: usize = 64;

/// Bytes that came for replicas out of sync, against the bound on them.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    account: Mutex<Account>,
    bound_changed: Notify,
    waiting: Outbox<(BrokerId, Position)>,
}

#[derive(Debug, Default)]
struct Account {
    /// Bytes per second, never 0; `None`: no bound.
    bound: Option<u64>,
    /// When everything received so far fits the bound; `None`: it does.
    paid_at: Option<Instant>,
}

impl Throttle {
    /// The bound from now on, in bytes per second. What was received before is paid for at the new one: an operator who
    /// raises it, or takes it back, does not wait for what the old one would have cost.
    pub(super) fn set_bound(&self, bytes_per_second: Option<u64>) {
        let bound = bytes_per_second.map(|bound| bound.max(1));
        let mut account = self.lock();
        if account.bound == bound {
            return;
        }
        let now = Instant::now();
        let owed = account.paid_at.map(|paid_at| paid_at.saturating_duration_since(now));
        account.paid_at = match (owed, account.bound, bound) {
            (Some(owed), Some(old), Some(new)) => {
                let micros = owed.as_micros().saturating_mul(old.into()) / u128::from(new);
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                Some(now + Duration::from_micros(micros).min(DEBT_MAX))
            }
            _ => None,
        };
        account.bound = bound;
        drop(account);
        self.bound_changed.notify_one();
    }

    /// Notes bytes received for a replica that catches up. Nothing without a bound.
    pub(super) fn spend(&self, bytes: usize) {
        let mut account = self.lock();
        let Some(bound) = account.bound else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = account.paid_at.map_or(earliest, |paid_at| paid_at.max(earliest));
        let micros = (bytes as u64).saturating_mul(1_000_000) / bound;
        account.paid_at = Some(from + Duration::from_micros(micros).min(DEBT_MAX));
    }

    /// Whether the next question of a replica that catches up has to wait.
    pub(super) fn holds(&self) -> bool {
        self.held_until().is_some()
    }

    fn held_until(&self) -> Option<Instant> {
        self.lock().paid_at.filter(|paid_at| *paid_at > Instant::now())
    }

    /// Keeps a position until there is room for its answer; a newer one takes its place.
    pub(super) fn keep(&self, leader: BrokerId, partition: TopicPartition, position: Position) {
        self.waiting.put(partition, (leader, position), |_, _| false);
    }

    /// Gives out positions that were kept, as there is room for them. Never ends.
    pub(super) async fn release(&self, mut send: impl FnMut(BrokerId, TopicPartition, Position)) {
        loop {
            self.waiting.filled().await;
            while let Some(paid_at) = self.held_until() {
                tokio::select! {
                    () = sleep_until(paid_at) => {}
                    () = self.bound_changed.notified() => {}
                }
            }
            // A few at a time: what they bring is not known before it comes.
            for (partition, (leader, position)) in self.waiting.take(POSITIONS_MAX).await {
                send(leader, partition, position);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(bytes_per_second: u64) -> Throttle {
        let throttle = Throttle::default();
        throttle.set_bound(Some(bytes_per_second));
        throttle
    }

    fn keep(throttle: &Throttle, round: u64) {
        let partition = TopicPartition { topic_id: tidemark_protocol::TopicId::ZERO, partition: 0 };
        let position = Position {
            leader_epoch: 1,
            round,
            fetch_offset: 0,
            flushed_offset: 0,
            last_fetched_epoch: None,
            log_start_offset: 0,
        };
        throttle.keep(2, partition, position);
    }

    /// The rounds of the positions let go within `wait`.
    async fn released(throttle: &Throttle, wait: Duration) -> Vec<u64> {
        let mut rounds = Vec::new();
        let releasing = throttle.release(|_, _, position| rounds.push(position.round));
        tokio::time::timeout(wait, releasing).await.unwrap_err();
        rounds
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_received_is_paid_for_in_time() {
        let throttle = bounded(1_000);
        assert!(!throttle.holds());
        throttle.spend(1_000);
        assert!(throttle.holds());
        tokio::time::advance(Duration::from_millis(901)).await;
        assert!(!throttle.holds(), "a tenth of a second is allowed at once");
    }

    #[tokio::test(start_paused = true)]
    async fn positions_wait_and_the_newest_is_sent() {
        let throttle = bounded(1_000);
        throttle.spend(2_000);
        keep(&throttle, 1);
        keep(&throttle, 2);
        assert_eq!(released(&throttle, Duration::from_secs(5)).await, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_is_raised_or_taken_back_counts_at_once() {
        for (bound, wait) in [(Some(1_000_000), Duration::from_secs(4)), (None, Duration::ZERO)] {
            let throttle = bounded(1_000);
            // An hour's worth.
            throttle.spend(3_600_000);
            keep(&throttle, 1);
            let ((), released) = tokio::join!(
                async {
                    // Positions are waiting for the old bound by now.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    throttle.set_bound(bound);
                },
                released(&throttle, Duration::from_secs(1) + wait + Duration::from_millis(1)),
            );
            assert_eq!(released, [1], "{bound:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_is_lowered_counts_for_what_is_owed() {
        let throttle = bounded(1_000);
        throttle.spend(1_100);
        throttle.set_bound(Some(100));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(throttle.holds(), "a thousand bytes take ten seconds now");
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(!throttle.holds());
    }
}
