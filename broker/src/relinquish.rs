//! What a broker that cannot serve well gives to others. One whose disk is full takes no records: where another replica is in
//! sync, that one is to lead. Once there is space again, leadership comes back with the next balancing of leaders. And what a
//! broker holds damaged is led by somebody who holds it whole; as a follower it then gets rid of the damage. Where this broker
//! alone is in sync it goes on leading, so that what it holds can be read.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidemark_controller::{
    Command, Image,
    command::{ElectLeaders, Election},
};
use tidemark_protocol::{BrokerId, TopicPartition};
use tokio::time::sleep;

use crate::{
    broker::Broker,
    disk_watch::{DiskState, DiskWatch},
    partitions::Partitions,
    tasks::Shutdown,
};

/// How often disk and logs are looked at.
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
            give_up_leadership(&broker).await;
        }
    };
    shutdown.or_stop(watching).await;
}

async fn give_up_leadership(broker: &Broker) {
    let Broker { id, disk_watch, partitions, .. } = broker;
    if disk_watch.state() != DiskState::Full && !partitions.are_damaged() {
        return;
    }
    for command in commands(&broker.image(), *id, disk_watch, partitions) {
        match broker.control.command(command, COMMAND_TIMEOUT).await {
            Ok(_) => tracing::warn!("the disk is full, or what it holds is damaged: others lead"),
            Err(failure) => tracing::debug!(%failure, "others do not lead yet"),
        }
    }
}

/// What the controller is asked for, as things are: nothing, if all is well.
pub(crate) fn commands(
    image: &Image,
    me: BrokerId,
    disk_watch: &DiskWatch,
    partitions: &Partitions,
) -> Vec<Command> {
    let is_full = disk_watch.state() == DiskState::Full;
    let is_given_up = |id: TopicPartition| {
        let is_damaged = || partitions.get(id)?.reader.damaged_from();
        is_full || is_damaged().is_some()
    };
    let heirs = heirs(image, me, is_given_up).into_iter();
    let commands = heirs.map(|(to, partitions)| {
        let election = Election::Transfer { to };
        Command::ElectLeaders(ElectLeaders { election, partitions: Some(partitions) })
    });
    commands.collect()
}

/// Who may lead instead of `me`, and which of the partitions that are given up.
fn heirs(
    image: &Image,
    me: BrokerId,
    is_given_up: impl Fn(TopicPartition) -> bool,
) -> BTreeMap<BrokerId, Vec<TopicPartition>> {
    let mut heirs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let all = image.topics().flat_map(|topic| {
        let topic_id = topic.id;
        let id = move |partition| TopicPartition { topic_id, partition };
        topic.partitions.iter().zip((0..).map(id))
    });
    let led = all.filter(|(state, id)| state.leader == Some(me) && is_given_up(*id));
    for (state, id) in led.take(PARTITIONS_MAX) {
        let is_heir = |heir: &&BrokerId| **heir != me && image.is_eligible(**heir);
        if let Some(heir) = state.isr.iter().find(is_heir) {
            heirs.entry(*heir).or_default().push(id);
        }
    }
    heirs
}
