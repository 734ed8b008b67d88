//! A broker process starts: it is given a broker epoch, and everything its former life led or held is decided
//! anew, in the same batch.

use tidemark_protocol::{BrokerId, ErrorCode, Failure, PartitionIndex};

use super::Decision;
use crate::{
    command::{Answer, RegisterBroker},
    image::{Image, Partition, Topic},
    record::MetadataRecord,
};

/// Longest host name (that of DNS) and rack, in bytes.
const NAME_BYTES_MAX: usize = 253;

pub(super) fn decide(image: &Image, command: &RegisterBroker) -> Result<Decision, Failure> {
    let is_name = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len());
    if !is_name(&command.host) || !command.rack.as_deref().is_none_or(is_name) {
        let message = format!(
            "a broker registers with the host where clients reach it, and perhaps a rack, \
             each of 1 to {NAME_BYTES_MAX} bytes"
        );
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let known = image.broker(command.broker_id);
    if let Some(broker) = known.filter(|broker| broker.incarnation == command.incarnation) {
        return Ok((Vec::new(), Answer::BrokerRegistered { broker_epoch: broker.epoch }));
    }
    let mut records = vec![MetadataRecord::BrokerRegistered {
        broker_id: command.broker_id,
        incarnation: command.incarnation,
        host: command.host.clone(),
        port: command.port,
        rack: command.rack.clone(),
        // In a quorum of one the broker that registers is the process that decides: nothing can come
        // between them, and it asks only when its logs are open.
        fenced: false,
    }];
    for topic in image.topics() {
        for (index, partition) in (0..).zip(&topic.partitions) {
            records.extend(restarted(image, command.broker_id, topic, index, partition));
        }
    }
    Ok((records, Answer::BrokerRegistered { broker_epoch: image.metadata_index() }))
}

/// What becomes of a partition when a broker in its in-sync set starts anew. Every new incarnation counts as
/// an unclean stop: whatever the broker had not flushed may be gone.
fn restarted(
    image: &Image,
    restarted: BrokerId,
    topic: &Topic,
    index: PartitionIndex,
    partition: &Partition,
) -> Option<MetadataRecord> {
    if !partition.isr.contains(&restarted) {
        return None;
    }
    let others: Vec<BrokerId> =
        partition.isr.iter().copied().filter(|member| *member != restarted).collect();
    // The last in-sync replica stays in: nobody has more than it has.
    let isr = if others.is_empty() { vec![restarted] } else { others };
    let is_live =
        |id: BrokerId| id == restarted || image.broker(id).is_some_and(|broker| !broker.fenced);
    let stays = partition.leader.filter(|leader| *leader != restarted && isr.contains(leader));
    let leader = stays
        .or_else(|| partition.replicas.iter().copied().find(|id| isr.contains(id) && is_live(*id)));
    // A leader that starts anew may have lost its tail and will fill those offsets again: the new epoch tells
    // the two contents apart.
    let same_leadership = stays.is_some();
    Some(MetadataRecord::PartitionChanged {
        topic_id: topic.id,
        partition: index,
        isr,
        leader,
        leader_epoch: partition.leader_epoch + u32::from(!same_leadership),
        partition_epoch: partition.partition_epoch + 1,
    })
}
