//! Producer ids that this broker gives out, from blocks that the controller has handed to it and to nobody else.

use std::{ops::Range, time::Duration};

use tidemark_controller::{Answer, BrokerRun, Command};
use tidemark_coordinator::{ProducerId, ProducerIds};
use tidemark_protocol::{ErrorCode, Failure};
use tokio::sync::Mutex;

use crate::broker::Broker;

/// What is left of the blocks so far.
#[derive(Debug, Default)]
pub(crate) struct ProducerIdBlocks {
    /// Held while a block is asked for, so that one asks for all who wait.
    left: Mutex<ProducerIds>,
}

impl ProducerIdBlocks {
    /// An id that nobody was given before. Asks the controller, for at most `wait`, when none is left.
    pub(crate) async fn take(
        &self,
        broker: &Broker,
        wait: Duration,
    ) -> Result<ProducerId, Failure> {
        let mut left = self.left.lock().await;
        if left.left() == 0 {
            left.add(block(broker, wait).await?);
        }
        left.take().ok_or_else(|| {
            Failure::new(ErrorCode::Internal, "the controller has handed out a block without ids")
        })
    }
}

/// A block that is this broker's alone.
pub(crate) async fn block(broker: &Broker, wait: Duration) -> Result<Range<ProducerId>, Failure> {
    let broker_epoch = broker.registered_epoch().await?;
    let run = BrokerRun { broker_id: broker.id, broker_epoch };
    let committed = broker.control.command(Command::AllocateProducerIds(run), wait).await?;
    let Answer::ProducerIdsAllocated { first, end } = committed.answer else {
        tracing::error!(answer = ?committed.answer, "the controller answered something else");
        return Err(Failure::new(ErrorCode::Internal, "the controller answered something else"));
    };
    let id = |id: u64| {
        ProducerId::try_from(id).map_err(|_| {
            Failure::new(ErrorCode::Internal, "the controller has handed out what is no id")
        })
    };
    let (first, end) = (id(first)?, id(end)?);
    Ok(first..end.max(first))
}
