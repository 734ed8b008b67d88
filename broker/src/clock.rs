//! The broker's time: the only file that reads a clock.
//!
//! A [`Clock`] is a value that is passed down, so that a reader of a signature sees who depends on time. Wall
//! time goes into records and decides retention; everything that measures or waits uses monotonic time. The
//! pure crates get neither: they get the numbers as arguments.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemark_protocol::TimestampMs;

/// A clock that counts from the moment it was started. Copies share that moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall_ms: TimestampMs,
}

impl Clock {
    /// Starts counting now.
    pub fn start() -> Self {
        Self { started: Instant::now(), started_wall_ms: wall_ms() }
    }

    /// Milliseconds since the Unix epoch. May jump in both directions: never subtract two of these to measure.
    #[expect(clippy::unused_self, reason = "whoever reads a clock has been given one")]
    pub fn wall_ms(self) -> TimestampMs {
        wall_ms()
    }

    /// The wall time at which this clock was started.
    pub fn started_wall_ms(self) -> TimestampMs {
        self.started_wall_ms
    }

    /// An instant to measure from or to wait for.
    #[expect(clippy::unused_self, reason = "whoever reads a clock has been given one")]
    pub fn now(self) -> Instant {
        Instant::now()
    }

    /// Milliseconds since the clock was started; never goes back. What the machines are stepped with.
    pub fn monotonic_ms(self) -> u64 {
        u64::try_from(self.uptime().as_millis()).expect("584 million years of uptime")
    }

    /// Time since the clock was started.
    pub fn uptime(self) -> Duration {
        self.started.elapsed()
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
}
