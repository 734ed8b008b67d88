//! What oracles and fault plans see of a process, and what they may ask of it. Nothing here answers anybody in the cluster.

use tidemark_broker::steered::Compacted;

use super::{
    Arc, BrokerEpoch, Controller, Image, Io, Micros, Process, Seen, TopicPartition, WantedState,
};
use crate::sim::node::coordination::ToldEnded;

/// For those who look from outside.
impl Process {
    /// What has happened since the last time, for the oracles.
    pub fn take_seen(&mut self) -> Vec<Seen> {
        self.controller.as_mut().map_or(Vec::new(), |it| std::mem::take(&mut it.seen))
    }

    pub fn take_acknowledged(&mut self) -> Vec<(TopicPartition, u64)> {
        std::mem::take(&mut self.serving.acknowledged)
    }

    /// What readers of what is decided were shown since the last call: last stable offsets.
    pub fn take_shown(&mut self) -> Vec<(TopicPartition, u64)> {
        std::mem::take(&mut self.serving.shown)
    }

    /// Ends of transactions that coordinators were told of since the last call.
    pub fn take_told_ended(&mut self) -> Vec<ToldEnded> {
        std::mem::take(&mut self.coordination.told_ended)
    }

    /// What compaction has done since the last call.
    pub fn take_compacted(&mut self) -> Vec<Compacted> {
        std::mem::take(&mut self.coordination.compacted)
    }

    pub fn followed(&self) -> &Arc<Image> {
        &self.followed
    }

    pub fn quorum(&self) -> Option<tidemark_controller::QuorumStatus> {
        self.controller.as_ref().map(Controller::status)
    }

    /// Whether it is a member of the cluster that takes part.
    pub fn is_active(&self) -> bool {
        self.member.is_active
    }

    pub fn broker_epoch(&self) -> Option<BrokerEpoch> {
        self.member.epoch
    }

    /// Asks to be let go.
    pub fn leave(&mut self, io: &mut Io<'_>) {
        self.member.wanted = WantedState::ShutDown;
        self.member.beat_in(0, io);
    }

    pub fn may_shut_down(&self) -> bool {
        self.member.may_shut_down
    }

    pub fn is_leaving(&self) -> bool {
        self.member.wanted == WantedState::ShutDown
    }

    /// Whether the metadata log takes no more.
    pub fn has_controller_failed(&self) -> bool {
        self.controller.as_ref().is_some_and(Controller::has_failed)
    }

    /// The connection over which it says that it is alive breaks.
    pub fn lose_session(&mut self, io: &mut Io<'_>) {
        if let Some(connection) = self.member.connection() {
            io.net.reset(io.core, connection);
        }
    }

    /// Asks to be led by another controller.
    pub fn transfer_leadership(&mut self, io: &mut Io<'_>) {
        let now_ms = self.now_ms(io);
        if let Some(controller) = &mut self.controller {
            controller.transfer_leadership(now_ms, io);
        }
    }

    /// No metadata reaches the broker before `until_us`; then the newest does.
    pub fn hold_metadata(&mut self, until_us: Micros) {
        self.metadata.held_until_us = until_us;
    }

    /// Everything that waits in some queue of this process.
    pub fn waiting(&self) -> usize {
        let controller = self.controller.as_ref().map_or(0, Controller::waiting);
        controller
            + self.peers.waiting()
            + self.commands.waiting()
            + self.streams.waiting()
            + self.sessions.waiting()
            + self.serving.waiting()
            + self.coordination.waiting()
            + self.isr_changes.len()
    }

    pub fn change_voters(&mut self, change: tidemark_controller::VoterChange, io: &mut Io<'_>) {
        let now_ms = self.now_ms(io);
        if let Some(controller) = &mut self.controller {
            controller.change_voters(now_ms, change, io);
        }
    }
}
