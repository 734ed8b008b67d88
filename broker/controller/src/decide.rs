//! What a command comes to: the records to commit and the answer to give once they are, or a refusal. One
//! file per command. Pure: the same image and command give the same decision.

mod add_partitions;
mod alter_topic;
mod create_topic;
mod delete_topic;
mod register_broker;

use tidemark_protocol::{BrokerId, ErrorCode, Failure, limits::TOPIC_PARTITIONS_MAX};

use crate::{
    command::{Answer, Command},
    image::Image,
    record::MetadataRecord,
};

/// Most partitions in the whole cluster: what one image is meant to hold in memory.
pub const CLUSTER_PARTITIONS_MAX: u32 = 200_000;

/// Records to be committed together, and the answer to give then. No records: nothing is to change.
pub type Decision = (Vec<MetadataRecord>, Answer);

impl Image {
    /// Checks the command against this image and says what to commit. The records apply to this image and
    /// to no other.
    pub fn decide(&self, command: &Command) -> Result<Decision, Failure> {
        match command {
            Command::RegisterBroker(command) => register_broker::decide(self, command),
            Command::CreateTopic(command) => create_topic::decide(self, command),
            Command::DeleteTopic(command) => delete_topic::decide(self, command),
            Command::AlterTopic(command) => alter_topic::decide(self, command),
            Command::AddPartitions(command) => add_partitions::decide(self, command),
        }
    }

    fn live_broker_ids(&self) -> Vec<BrokerId> {
        self.live_brokers().map(|broker| broker.id).collect()
    }

    /// Whether a topic may have `total` partitions, of which `added` are new to the cluster.
    fn check_partition_count(&self, total: u32, added: u32) -> Result<(), Failure> {
        let refuse = |message| Err(Failure::new(ErrorCode::InvalidPartitions, message));
        if total == 0 || total > TOPIC_PARTITIONS_MAX {
            return refuse(format!(
                "a topic has 1 to {TOPIC_PARTITIONS_MAX} partitions; {total} were asked for"
            ));
        }
        let room = CLUSTER_PARTITIONS_MAX.saturating_sub(self.partition_count());
        if added > room {
            return refuse(format!(
                "the cluster holds at most {CLUSTER_PARTITIONS_MAX} partitions and has room for \
                 {room} more; {added} were asked for"
            ));
        }
        Ok(())
    }
}
