//! A broker whose disk is full takes no records: where another replica is in sync, that one is to lead. Once there is space
//! again, leadership comes back with the next balancing of leaders. Where this broker alone is in sync it goes on leading, so
//! that what it holds can be read.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidemark_controller::{
    Command, Image,
    command::{ElectLeaders, Election},
};
use tidemark_protocol::{BrokerId, TopicPartition};
use tokio::time::sleep;

use crate::{broker::Broker, disk_watch::DiskState, tasks::Shutdown};

/// How often a full disk is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long the controller is waited for.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Partitions given up at a time.
const PARTITIONS_MAX: usize = 1_000;

/// Runs until `shutdown`.
pub(crate) async fn run(broker: Arc<Broker>, shutdown: Shutdown) {
    let watching = async {
        loop {
            sleep(INTERVAL).await;
            if broker.disk_watch.state() == DiskState::Full {
                give_up_leadership(&broker).await;
            }
        }
    };
    shutdown.or_stop(watching).await;
}

async fn give_up_leadership(broker: &Broker) {
    for (to, partitions) in heirs(&broker.image(), broker.id) {
        let count = partitions.len();
        let command = Command::ElectLeaders(ElectLeaders {
            election: Election::Transfer { to },
            partitions: Some(partitions),
        });
        match broker.control.command(command, COMMAND_TIMEOUT).await {
            Ok(_) => tracing::warn!(to, count, "the disk is full: others lead"),
            Err(failure) => tracing::debug!(to, %failure, "others do not lead yet"),
        }
    }
}

/// Who may lead instead of `me`, and which partitions.
fn heirs(image: &Image, me: BrokerId) -> BTreeMap<BrokerId, Vec<TopicPartition>> {
    let mut heirs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let all = image.topics().flat_map(|topic| {
        let topic_id = topic.id;
        topic.partitions.iter().zip(0..).map(move |(partition, index)| (partition, topic_id, index))
    });
    let led = all.filter(|(partition, _, _)| partition.leader == Some(me));
    for (state, topic_id, partition) in led.take(PARTITIONS_MAX) {
        let is_heir = |id: &&BrokerId| **id != me && image.is_eligible(**id);
        if let Some(heir) = state.isr.iter().find(is_heir) {
            heirs.entry(*heir).or_default().push(TopicPartition { topic_id, partition });
        }
    }
    heirs
}
