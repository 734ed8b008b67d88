//! The end of a shard: answer everybody who waits, have the flusher flush what is dirty, all logs side by side, and say
//! what is durable. It deletes nothing and tries nothing twice.

use tidemark_protocol::ErrorCode;
use tidemark_replication::Event;
use tokio::sync::oneshot;

use super::{Hands, LogCheckpoint, Shard, partition::Partition};

/// How a shard ended.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    pub(crate) checkpoints: Vec<LogCheckpoint>,
    /// Logs whose last records may not be durable.
    pub(crate) unclean: usize,
}

/// A shard that takes no more commands.
#[derive(Debug)]
pub(super) struct Closing {
    reply: oneshot::Sender<Closed>,
    /// Partitions with a flush under way.
    flushing: usize,
}

impl Closing {
    /// A flush has ended: begins the next, if there is still something to flush and the disk takes it.
    pub(super) fn flushed(
        &mut self,
        partition: &mut Partition,
        succeeded: bool,
        hands: &mut Hands,
    ) {
        if !(succeeded && partition.flush_rest(hands)) {
            self.flushing -= 1;
        }
    }
}

impl Shard {
    pub(super) fn close(&mut self, reply: oneshot::Sender<Closed>) {
        let mut flushing = 0;
        for partition in self.partitions.values_mut() {
            partition.step(Event::Stop { reason: ErrorCode::NotReady }, &mut self.hands);
            flushing += usize::from(partition.flush_rest(&mut self.hands));
        }
        self.closing = Some(Closing { reply, flushing });
    }

    /// Ends a closing shard once nothing is under way any more. Says whether it did.
    pub(super) fn end_if_flushed(&mut self) -> bool {
        let Some(closing) = self.closing.take_if(|closing| closing.flushing == 0) else {
            return false;
        };
        let mut closed = Closed::default();
        for (id, partition) in std::mem::take(&mut self.partitions) {
            if partition.is_flushed() {
                closed.checkpoints.push((id, partition.checkpoint(true)));
            } else {
                let topic = &partition.view.topic;
                tracing::error!(%topic, partition = id.partition, "a log was closed unflushed");
                closed.unclean += 1;
            }
        }
        // The server may have stopped waiting.
        drop(closing.reply.send(closed));
        true
    }
}
