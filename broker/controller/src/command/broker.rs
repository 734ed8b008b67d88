//! Commands about brokers. They say what is wanted; they do not check it.

use serde::{Deserialize, Serialize};
use tidemark_protocol::{BrokerEpoch, BrokerId, DirectoryId};

use crate::record::IncarnationId;

/// A broker process has started and can be reached. Sent once per process; sent again with the same incarnation
/// it changes nothing. The broker is fenced until it is heard to want otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterBroker {
    pub broker_id: BrokerId,
    pub incarnation: IncarnationId,
    /// Identity of its data.
    pub directory: DirectoryId,
    /// Where clients reach it.
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
    /// The broker epoch that a clean shutdown left in the directory. Anything but the epoch it is registered with
    /// means that the last run did not end cleanly, and that what it had not flushed may be gone.
    pub previous_broker_epoch: Option<BrokerEpoch>,
}

/// One run of a broker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRun {
    pub broker_id: BrokerId,
    pub broker_epoch: BrokerEpoch,
}

/// Moves everything off a broker, or stops doing so. What is on its way by then arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDraining {
    pub broker_id: BrokerId,
    pub draining: bool,
}

/// Forgets a broker that is stopped and holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnregisterBroker {
    pub broker_id: BrokerId,
}
