//! The one place where this crate starts a task, and where it reads the wall clock and draws at random.
//!
//! Whoever starts a task keeps its handle or ends it through a channel or token it owns: none outlives the
//! value that started it by more than the time it takes to notice.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tidemark_protocol::TimestampMs;
use tokio::task::JoinHandle;
use tracing::{Instrument, debug_span};

/// Starts a task whose events carry `name` and `about`.
#[expect(clippy::disallowed_methods, reason = "this is the function that names tasks")]
pub(crate) fn spawn<F>(name: &'static str, about: &str, task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task.instrument(debug_span!("task", name, about)))
}

/// Milliseconds since the Unix epoch; 0 for a clock that is set before it.
#[expect(clippy::disallowed_methods, reason = "a producer stamps records with wall time")]
pub(crate) fn now_ms() -> TimestampMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampMs::try_from(since_epoch.as_millis()).unwrap_or(TimestampMs::MAX)
}

/// A number drawn from the process's own entropy. Good for spreading load, not for secrets.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What each pause is longer than the one before. Little, so that a pause is never more than about a quarter of the time
/// since the first failure: whoever waits for a new leader finds it soon after it exists, however long that took.
const PAUSE_GROWTH: f64 = 1.25;

/// Pauses between attempts: exponential, bounded, and spread at random so that clients that failed together
/// do not come back together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// How long to pause after one more failure: between half and all of the exponential step.
    pub(crate) fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        pause(self.first, self.longest, self.failures)
    }

    /// Forgets the failures so far.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The pause after the `failures`-th failure in a row.
pub(crate) fn pause(first: Duration, longest: Duration, failures: u32) -> Duration {
    let growths = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX).min(200);
    let step = first.as_secs_f64() * PAUSE_GROWTH.powi(growths);
    let step = Duration::from_secs_f64(step.min(longest.as_secs_f64()));
    let half_us = u64::try_from(step.as_micros() / 2).unwrap_or(u64::MAX);
    Duration::from_micros(half_us + random_u64() % (half_us + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_stay_within_half_and_all_of_it() {
        let mut backoff = Backoff::new(Duration::from_millis(80), Duration::from_millis(130));
        for step_ms in [80, 100, 125, 130, 130] {
            let drawn = backoff.after_failure();
            assert!(drawn >= Duration::from_millis(step_ms) / 2, "{drawn:?} of {step_ms}");
            assert!(drawn <= Duration::from_millis(step_ms), "{drawn:?} of {step_ms}");
        }
        backoff.reset();
        assert!(backoff.after_failure() <= Duration::from_millis(80));
        let longest = Duration::from_secs(1);
        assert!(pause(longest, longest, u32::MAX) <= longest);
    }

    #[test]
    fn with_the_defaults_a_pause_is_a_small_part_of_the_time_that_has_passed() {
        let config = crate::ClientConfig::default();
        let mut passed = Duration::ZERO;
        let mut attempts = 0;
        while passed < Duration::from_secs(1) {
            // The longest that may be drawn.
            let next = config.retry_backoff.mul_f64(PAUSE_GROWTH.powi(attempts));
            attempts += 1;
            let bound = passed / 4 + config.retry_backoff + Duration::from_millis(1);
            assert!(next <= bound, "{next:?} after {passed:?}");
            passed += next;
        }
        assert!((10..30).contains(&attempts), "{attempts} in the first second");
    }
}
