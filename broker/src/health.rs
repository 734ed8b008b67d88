//! Whether the broker is ready to serve, and everything that is not as it should be. Also where it listens once it does.
//!
//! Parts of the broker raise and clear named reasons; `/health/ready`, the metrics, `DescribeBroker` and the
//! banner read them. Being alive is not tracked here: a process that answers `/health/live` is alive.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::sync::watch;

/// Why a broker is not ready: what raises it, in a word that is stable enough to alert on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Recovering logs, or not listening yet.
    Starting,
    /// Told to stop; connections are being closed.
    Stopping,
    /// A data directory failed; it takes no writes until an operator acts.
    DiskFailed,
    /// A data directory is full; produce is refused until space returns. Reading and administration work, so
    /// this alone does not take the broker out of service.
    DiskFull,
    /// The active controller cannot be reached, or cannot commit metadata.
    Controller,
    /// Not part of the cluster yet: waiting for its controllers, or for them to let this broker in.
    Joining,
    /// The controller has fenced this broker: it leads nothing until it is let in again.
    Fenced,
}

impl Reason {
    /// Every reason, for metrics and documents.
    pub const ALL: &[Self] = &[
        Self::Starting,
        Self::Stopping,
        Self::DiskFailed,
        Self::DiskFull,
        Self::Controller,
        Self::Joining,
        Self::Fenced,
    ];

    /// Name for metric labels, JSON and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::DiskFailed => "disk_failed",
            Self::DiskFull => "disk_full",
            Self::Controller => "controller",
            Self::Joining => "joining",
            Self::Fenced => "fenced",
        }
    }

    /// Whether traffic should stay away while this is so.
    pub const fn blocks_readiness(self) -> bool {
        !matches!(self, Self::DiskFull)
    }
}

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthState {
    /// What is not as it should be, each with a sentence for a person.
    pub reasons: BTreeMap<Reason, String>,
    /// Where the data port really listens (the setting may say port 0), once it does.
    pub data_address: Option<SocketAddr>,
    /// Where the HTTP port really listens, once it does.
    pub http_address: Option<SocketAddr>,
}

impl HealthState {
    /// Whether no reason stands that blocks.
    pub fn is_ready(&self) -> bool {
        !self.reasons.keys().any(|reason| reason.blocks_readiness())
    }

    /// `starting: recovering logs 3 of 10`, one line per reason.
    pub fn sentences(&self) -> Vec<String> {
        self.reasons.iter().map(|(reason, detail)| format!("{}: {detail}", reason.name())).collect()
    }
}

/// The shared state. Cheap to clone; updates are rare, so every reader may be woken by each of them.
#[derive(Clone, Debug)]
pub struct Health {
    state: watch::Sender<HealthState>,
}

impl Health {
    /// Not ready: starting.
    pub fn starting() -> Self {
        let health = Self { state: watch::Sender::default() };
        health.raise(Reason::Starting, "opening the data directory");
        health
    }

    /// Raises a reason, or changes its sentence (progress: `recovering logs 3 of 10`).
    pub fn raise(&self, reason: Reason, detail: impl Into<String>) {
        let detail = detail.into();
        self.state.send_if_modified(|state| {
            state.reasons.insert(reason, detail.clone()).as_deref() != Some(detail.as_str())
        });
    }

    /// Takes a reason back. Clearing [`Reason::Starting`] last is what makes a broker ready.
    pub fn clear(&self, reason: Reason) {
        self.state.send_if_modified(|state| state.reasons.remove(&reason).is_some());
    }

    /// Says where the data port listens.
    pub fn set_data_address(&self, address: SocketAddr) {
        self.state.send_modify(|state| state.data_address = Some(address));
    }

    /// Says where the HTTP port listens.
    pub fn set_http_address(&self, address: SocketAddr) {
        self.state.send_modify(|state| state.http_address = Some(address));
    }

    pub fn state(&self) -> HealthState {
        self.state.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.state.borrow().is_ready()
    }

    /// Completes when no blocking reason stands, with the state of that moment.
    pub async fn ready(&self) -> HealthState {
        let mut states = self.state.subscribe();
        let ready = states.wait_for(HealthState::is_ready).await;
        ready.expect("`self` keeps the sender alive").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broker_is_ready_when_no_blocking_reason_stands() {
        let health = Health::starting();
        health.raise(Reason::DiskFull, "/data has 1MiB free");
        health.raise(Reason::Starting, "recovering logs 3 of 10");
        assert_eq!(
            health.state().sentences(),
            ["starting: recovering logs 3 of 10", "disk_full: /data has 1MiB free"]
        );
        assert!(!health.is_ready());

        let waiting = health.clone();
        let (state, ()) = tokio::join!(waiting.ready(), async { health.clear(Reason::Starting) });
        assert_eq!(
            state.sentences(),
            ["disk_full: /data has 1MiB free"],
            "known, but not blocking"
        );
    }
}
