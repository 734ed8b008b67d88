//! Keeps replicas that catch up from taking the whole disk and network: their next questions wait until what they were
//! sent fits the bound that an operator has set. Replicas in sync never wait.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidemark_protocol::{BrokerId, TopicPartition, messages::Position};
use tokio::time::{Instant, sleep_until};

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
    /// When everything received so far fits the bound; `None`: it does.
    paid_at: Mutex<Option<Instant>>,
    waiting: Outbox<(BrokerId, Position)>,
}

impl Throttle {
    /// Notes bytes received for a replica that catches up.
    pub(super) fn spend(&self, bytes: usize, bytes_per_second: u64) {
        let now = Instant::now();
        let mut paid_at = self.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = paid_at.map_or(earliest, |paid_at| paid_at.max(earliest));
        let micros = (bytes as u64).saturating_mul(1_000_000) / bytes_per_second.max(1);
        *paid_at = Some(from + Duration::from_micros(micros).min(DEBT_MAX));
    }

    /// Whether the next question of a replica that catches up has to wait.
    pub(super) fn holds(&self) -> bool {
        self.lock().is_some_and(|paid_at| paid_at > Instant::now())
    }

    /// Keeps a position until there is room for its answer; a newer one takes its place.
    pub(super) fn keep(&self, leader: BrokerId, partition: TopicPartition, position: Position) {
        self.waiting.put(partition, (leader, position), |_, _| false);
    }

    /// Gives out positions that were kept, as there is room for them. Never ends.
    pub(super) async fn release(&self, mut send: impl FnMut(BrokerId, TopicPartition, Position)) {
        loop {
            self.waiting.filled().await;
            let paid_at = *self.lock();
            if let Some(paid_at) = paid_at {
                sleep_until(paid_at).await;
            }
            // A few at a time: what they bring is not known before it comes.
            for (partition, (leader, position)) in self.waiting.take(POSITIONS_MAX).await {
                send(leader, partition, position);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paid_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_received_is_paid_for_in_time() {
        let throttle = Throttle::default();
        assert!(!throttle.holds());
        throttle.spend(1_000, 1_000);
        assert!(throttle.holds());
        tokio::time::advance(Duration::from_millis(901)).await;
        assert!(!throttle.holds(), "a tenth of a second is allowed at once");
    }

    #[tokio::test(start_paused = true)]
    async fn positions_wait_and_the_newest_is_sent() {
        let throttle = Throttle::default();
        throttle.spend(2_000, 1_000);
        let partition = TopicPartition { topic_id: tidemark_protocol::TopicId::ZERO, partition: 0 };
        let position = |round| Position {
            leader_epoch: 1,
            round,
            fetch_offset: 0,
            flushed_offset: 0,
            last_fetched_epoch: None,
            log_start_offset: 0,
        };
        throttle.keep(2, partition, position(1));
        throttle.keep(2, partition, position(2));
        let mut sent = Vec::new();
        let releasing = throttle.release(|leader, _, position| sent.push((leader, position.round)));
        tokio::time::timeout(Duration::from_secs(5), releasing).await.unwrap_err();
        assert_eq!(sent, [(2, 2)]);
    }
}
