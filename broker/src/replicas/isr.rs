//! Changes of in-sync sets on their way to the controller: gathered, sent together, answered one by one.

use std::{sync::Arc, time::Duration};

use tidemark_controller::{AlterPartition, AlterPartitions, Answer, Command, IsrMember};
use tidemark_protocol::{ErrorCode, Failure, TopicPartition};
use tidemark_replication::IsrChange;

use super::outbox::Outbox;
use crate::{broker::Broker, shard, tasks::Shutdown};

/// Changes in one command.
const CHANGES_PER_COMMAND_MAX: usize = 2_000;
/// How long the controller is waited for. The partitions ask again by themselves.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// The task that takes changes to the controller.
#[derive(Debug)]
pub(crate) struct IsrChanges {
    pub(super) outbox: Arc<Outbox<IsrChange>>,
}

impl IsrChanges {
    /// Runs until `shutdown`.
    pub(crate) async fn run(self, broker: Arc<Broker>, shutdown: Shutdown) {
        let sending = async {
            loop {
                let changes = self.outbox.take(CHANGES_PER_COMMAND_MAX).await;
                send(&broker, changes).await;
            }
        };
        shutdown.or_stop(sending).await;
    }
}

async fn send(broker: &Broker, changes: Vec<(TopicPartition, IsrChange)>) {
    let Ok(broker_epoch) = broker.registered_epoch().await else { return };
    let command = Command::AlterPartitions(AlterPartitions {
        broker_id: broker.id,
        broker_epoch,
        changes: changes.iter().map(|(partition, change)| wanted(*partition, change)).collect(),
    });
    let outcomes = match broker.control.command(command, COMMAND_TIMEOUT).await {
        Ok(committed) => match committed.answer {
            Answer::PartitionsAltered(outcomes) => outcomes,
            other => {
                tracing::error!(answer = ?other, "changes of in-sync sets were answered otherwise");
                return;
            }
        },
        Err(failure) => {
            // Nobody knows whether it was carried out: the partitions ask again.
            tracing::debug!(%failure, changes = changes.len(), "in-sync sets were not changed");
            return;
        }
    };
    for ((partition, change), outcome) in changes.into_iter().zip(outcomes) {
        let answer = outcome.map(drop).map_err(|Failure { code, message }| {
            tracing::debug!(%partition, ?code, message, "an in-sync set was not changed");
            code
        });
        answered(broker, partition, &change, answer).await;
    }
}

fn wanted(id: TopicPartition, change: &IsrChange) -> AlterPartition {
    let member = |replica: &tidemark_replication::ReplicaId| IsrMember {
        id: replica.broker_id,
        broker_epoch: replica.broker_epoch,
    };
    AlterPartition {
        topic_id: id.topic_id,
        partition: id.partition,
        leader_epoch: change.leader_epoch,
        partition_epoch: change.partition_epoch,
        isr: change.isr.iter().map(member).collect(),
    }
}

async fn answered(
    broker: &Broker,
    partition: TopicPartition,
    change: &IsrChange,
    answer: Result<(), ErrorCode>,
) {
    let Some(view) = broker.partitions.get(partition) else { return };
    let partition_epoch = change.partition_epoch;
    let answered = shard::Command::IsrAnswered { partition, partition_epoch, answer };
    // A shard that has ended needs no answers.
    view.shard.send(answered).await.ok();
}
