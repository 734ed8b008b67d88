//! Wishes about in-sync sets on their way to the controller.

use super::{
    ALTER_ISR_US, AlterPartition, AlterPartitions, Command, Io, IsrChange, IsrMember, Process,
    TopicPartition, Wanted,
};

impl Process {
    /// Sends the changes that have come together, one command at a time.
    pub(super) fn alter_isr(&mut self, io: &mut Io<'_>) {
        let Some(broker_epoch) = self.member.epoch else { return };
        if self.is_altering || self.isr_changes.is_empty() {
            return;
        }
        self.is_altering = true;
        let changes = std::mem::take(&mut self.isr_changes);
        let alter = |(partition, change): &(TopicPartition, IsrChange)| AlterPartition {
            topic_id: partition.topic_id,
            partition: partition.partition,
            leader_epoch: change.leader_epoch,
            partition_epoch: change.partition_epoch,
            isr: change
                .isr
                .iter()
                .map(|member| IsrMember { id: member.broker_id, broker_epoch: member.broker_epoch })
                .collect(),
        };
        let command = Command::AlterPartitions(AlterPartitions {
            broker_id: io.node(),
            broker_epoch,
            changes: changes.iter().map(alter).collect(),
        });
        let id = self.commands.add(command, Wanted::AlterIsr(changes), ALTER_ISR_US, io);
        self.attempt(id, io);
    }
}
