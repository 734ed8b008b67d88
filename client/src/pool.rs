//! The connections of one purpose, one per address, opened when wanted and again after a loss.
//!
//! An address that fails is left alone for a growing pause, whoever asks. The pool refuses to repeat a
//! request: it gives out connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Instant, sleep_until};

use crate::{config::ClientConfig, connection::Connection, error::ConnectError, tasks};

/// Connections for one purpose. Dropping it closes those that nobody else holds.
#[derive(Debug)]
pub(crate) struct Pool {
    config: ClientConfig,
    slots: Mutex<HashMap<Arc<str>, Arc<Slot>>>,
}

/// One address. The lock is held while connecting, so that many who want it make one connection.
#[derive(Debug, Default)]
struct Slot(tokio::sync::Mutex<Link>);

#[derive(Debug, Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Pool {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self { config, slots: Mutex::default() }
    }

    /// The connection to `address`, opened if need be. Waits out the pause after a failure, but not past
    /// `deadline`, when it answers `TimedOut`.
    pub(crate) async fn get(
        &self,
        address: &Arc<str>,
        deadline: Instant,
    ) -> Result<Arc<Connection>, ConnectError> {
        let begun = Instant::now();
        let connecting = self.get_unhurried(address);
        tokio::time::timeout_at(deadline, connecting).await.unwrap_or_else(|_| {
            Err(ConnectError::TimedOut { address: address.clone(), after: begun.elapsed() })
        })
    }

    async fn get_unhurried(&self, address: &Arc<str>) -> Result<Arc<Connection>, ConnectError> {
        let slot = self.slots().entry(address.clone()).or_default().clone();
        let mut link = slot.0.lock().await;
        if let Some(connection) = link.connection.as_ref().filter(|held| !held.is_lost()) {
            return Ok(connection.clone());
        }
        link.connection = None;
        if let Some(not_before) = link.not_before {
            sleep_until(not_before).await;
        }
        match Connection::open(address, &self.config).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *link = Link { connection: Some(connection.clone()), ..Link::default() };
                Ok(connection)
            }
            Err(error) => {
                link.failures = link.failures.saturating_add(1);
                let (first, longest) = (self.config.retry_backoff, self.config.retry_backoff_max);
                link.not_before =
                    Some(Instant::now() + tasks::pause(first, longest, link.failures));
                Err(error)
            }
        }
    }

    /// How often in a row connecting has failed; 0 also for an address never tried, and while somebody tries.
    pub(crate) fn failures(&self, address: &str) -> u32 {
        let slot = self.slots().get(address).cloned();
        slot.map_or(0, |slot| slot.0.try_lock().map_or(0, |link| link.failures))
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
