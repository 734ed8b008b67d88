//! The broker's time: the only file that reads a clock.
//!
//! A [`Clock`] is a value that is passed down, so that a reader of a signature sees who depends on time. Wall
//! time goes into records and decides retention; everything that measures or waits uses monotonic time. The
//! pure crates get neither: they get the numbers as arguments.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tidemark_protocol::TimestampMs;

/// A clock that counts from the moment it was started. Clones share that moment.
#[derive(Clone, Debug)]
pub struct Clock {
    started: Instant,
    started_wall_ms: TimestampMs,
    /// `None`: the system's clocks.
    hands: Option<Arc<ClockHands>>,
}

/// What a clock shows that stands until it is set. For whoever steers time.
#[derive(Debug, Default)]
pub struct ClockHands {
    monotonic_ms: AtomicU64,
    wall_ms: AtomicI64,
}

impl ClockHands {
    /// Sets both times. Monotonic time never goes back.
    pub fn set(&self, monotonic_ms: u64, wall_ms: TimestampMs) {
        let before = self.monotonic_ms.swap(monotonic_ms, Ordering::Relaxed);
        assert!(before <= monotonic_ms, "time went back from {before} to {monotonic_ms}");
        self.wall_ms.store(wall_ms, Ordering::Relaxed);
    }
}

impl Clock {
    /// Starts counting now.
    pub fn start() -> Self {
        Self { started: Instant::now(), started_wall_ms: wall_ms(), hands: None }
    }

    /// A clock that shows what `hands` say.
    pub fn with_hands(hands: Arc<ClockHands>) -> Self {
        let started_wall_ms = hands.wall_ms.load(Ordering::Relaxed);
        // Whatever it is: of such a clock's instants only the differences are seen.
        Self { started: Instant::now(), started_wall_ms, hands: Some(hands) }
    }

    /// Milliseconds since the Unix epoch. May jump in both directions: never subtract two of these to measure.
    pub fn wall_ms(&self) -> TimestampMs {
        self.hands.as_ref().map_or_else(wall_ms, |hands| hands.wall_ms.load(Ordering::Relaxed))
    }

    /// The wall time at which this clock was started.
    pub fn started_wall_ms(&self) -> TimestampMs {
        self.started_wall_ms
    }

    /// An instant to measure from or to wait for.
    pub fn now(&self) -> Instant {
        match &self.hands {
            None => Instant::now(),
            Some(_) => self.started + self.uptime(),
        }
    }

    /// Milliseconds since the clock was started; never goes back. What the machines are stepped with.
    pub fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.uptime().as_millis()).expect("584 million years of uptime")
    }

    /// Time since the clock was started.
    pub fn uptime(&self) -> Duration {
        match &self.hands {
            None => self.started.elapsed(),
            Some(hands) => Duration::from_millis(hands.monotonic_ms.load(Ordering::Relaxed)),
        }
    }

    /// Time since `instant`, which came from [`Self::now`].
    pub fn since(&self, instant: Instant) -> Duration {
        self.now().duration_since(instant)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the file through which wall time enters")]
fn wall_ms() -> TimestampMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampMs::try_from(since_epoch.as_millis()).unwrap_or(TimestampMs::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_starts_near_zero_and_wall_time_does_not() {
        let clock = Clock::start();
        assert!(clock.monotonic_ms() < 60_000);
        assert!(clock.wall_ms() > 1_600_000_000_000, "this machine's clock is before 2020");
        assert!(clock.wall_ms() >= clock.started_wall_ms());
    }

    #[test]
    fn a_clock_with_hands_stands_still_until_it_is_set() {
        let hands = Arc::new(ClockHands::default());
        hands.set(5, 1_000);
        let clock = Clock::with_hands(Arc::clone(&hands));
        let before = clock.now();
        assert_eq!((clock.monotonic_ms(), clock.wall_ms(), clock.now()), (5, 1_000, before));
        hands.set(25, 900);
        let passed = Duration::from_millis(20);
        assert_eq!((clock.monotonic_ms(), clock.wall_ms(), clock.since(before)), (25, 900, passed));
    }
}
