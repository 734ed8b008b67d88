//! The producer.

mod config;
mod delivery;

use std::sync::Arc;

use crate::{cluster::Cluster, error::ProduceError, record::ProducerRecord};
pub use config::ProducerConfig;
pub use delivery::Delivery;

#[derive(Debug)]
pub struct Producer {}

impl Producer {
    pub(crate) fn start(_cluster: Arc<Cluster>, _config: ProducerConfig) -> Self {
        Self {}
    }
    pub async fn send(&self, _record: ProducerRecord) -> Result<Delivery, ProduceError> {
        Err(ProduceError::Closed)
    }
    /// Like send, but never waits.
    pub fn try_send(&self, record: ProducerRecord) -> Result<Delivery, TrySendError> {
        Err(TrySendError { record: Box::new(record), error: ProduceError::WouldBlock })
    }
    /// First failure since the last flush, if any.
    pub async fn flush(&self) -> Result<(), ProduceError> {
        Ok(())
    }
    pub async fn close(self) -> Result<(), ProduceError> {
        Ok(())
    }
}

/// A record that `try_send` did not take, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct TrySendError {
    pub record: Box<ProducerRecord>,
    pub error: ProduceError,
}
