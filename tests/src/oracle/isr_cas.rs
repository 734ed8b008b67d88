//! S13, ISR by compare-and-swap: every committed change of a partition was made on the state before it. And what a change
//! may be: a leader is in sync, is elected from those who have everything, and in a new epoch.

use tidemark_controller::{Image, MetadataRecord, Partition, TopicConfig};
use tidemark_protocol::TopicPartition;

use super::{Verdict, Violation, require};
use crate::sim::figures::Figures;

/// Looks at one entry, and gives the partitions it has changed.
pub(super) fn check(
    before: &Image,
    after: &Image,
    records: &[MetadataRecord],
    figures: &mut Figures,
) -> Result<Vec<TopicPartition>, Violation> {
    let mut changed = Vec::new();
    for record in records {
        match record {
            MetadataRecord::PartitionsChanged { topic_id, changes } => {
                for change in changes {
                    let id = TopicPartition { topic_id: *topic_id, partition: change.partition };
                    let was = before.partition(id);
                    let config = after.topic_by_id(*topic_id).map(|topic| topic.config);
                    if let (Some(was), Some(config)) = (was, config) {
                        check_change(id, was, &change.state, &config, after)?;
                        count(was, &change.state, figures);
                    }
                    changed.push(id);
                }
            }
            MetadataRecord::PartitionsAdded { topic_id, first_partition, replicas } => {
                let all = (*first_partition..).zip(replicas);
                changed.extend(
                    all.map(|(partition, _)| TopicPartition { topic_id: *topic_id, partition }),
                );
            }
            MetadataRecord::BrokerRegistered { .. } => figures.happened("registrations"),
            MetadataRecord::BrokerChanged { fenced: true, .. } => {
                figures.happened("brokers fenced");
            }
            _ => {}
        }
    }
    Ok(changed)
}

fn check_change(
    id: TopicPartition,
    was: &Partition,
    now: &Partition,
    config: &TopicConfig,
    image: &Image,
) -> Verdict {
    require(now.partition_epoch == was.partition_epoch + 1, "S13", || {
        format!("{id} goes from partition epoch {} to {}", was.partition_epoch, now.partition_epoch)
    })?;
    let elected = now.leader.filter(|leader| Some(*leader) != was.leader);
    let is_new_epoch = now.leader_epoch == was.leader_epoch + 1;
    require(
        is_new_epoch || (now.leader_epoch == was.leader_epoch && now.leader == was.leader),
        "S13",
        || {
            format!(
                "{id} is led by {:?} instead of {:?} from epoch {} on",
                now.leader, was.leader, now.leader_epoch
            )
        },
    )?;
    require(now.leader.is_none_or(|leader| now.isr.contains(&leader)), "S13", || {
        format!("{id} is led by a broker that is not in sync: {now:?}")
    })?;
    let is_eligible = |node: &u32| image.is_eligible(*node);
    let joined = now.isr.iter().filter(|node| !was.isr.contains(node));
    let stray = joined.clone().find(|node| !is_eligible(node));
    require(stray.is_none(), "S13", || {
        format!("{stray:?} joins those in sync for {id}, and is fenced")
    })?;
    if let Some(leader) = elected {
        require(is_eligible(&leader), "S13", || {
            format!("{leader} is elected for {id}, and is fenced")
        })?;
        let is_clean = was.isr.contains(&leader)
            || was.elr.contains(&leader)
            || (was.isr.is_empty() && was.elr.is_empty() && was.last_known_leader == Some(leader));
        // The entry that takes the last of those in sync away may elect the last leader at once.
        let is_last = was.leader == Some(leader) || was.last_known_leader == Some(leader);
        // The change that completes a reassignment brings the last of those who stay into sync, on the leader's word.
        let has_arrived = was.is_reassigning() && !now.is_reassigning();
        require(
            is_clean || is_last || has_arrived || config.unclean_leader_election,
            "S13",
            || format!("{leader} is elected for {id} without having everything: {was:?}"),
        )?;
    }
    Ok(())
}

fn count(was: &Partition, now: &Partition, figures: &mut Figures) {
    if now.leader.is_some() && now.leader != was.leader {
        figures.happened("elections");
    }
    if now.leader.is_none() && was.leader.is_some() {
        figures.happened("left without a leader");
    }
    let is_clean = |leader| was.isr.contains(&leader);
    if let Some(leader) = now.leader.filter(|leader| Some(*leader) != was.leader) {
        if was.elr.contains(&leader) {
            figures.happened("elections of eligible replicas");
        } else if !is_clean(leader) {
            figures.happened("elections of last leaders");
        }
    }
    if now.isr.iter().any(|node| !was.isr.contains(node)) {
        figures.happened("isr expansions");
    }
    if was.isr.iter().any(|node| !now.isr.contains(node)) {
        figures.happened("isr shrinks");
    }
    if was.is_reassigning() && !now.is_reassigning() {
        figures.happened("reassignments ended");
    }
}
