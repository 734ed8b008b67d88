//! Elections that somebody asks for: the preferred leader where it may lead, or, where nobody may, whoever lives.

use std::collections::BTreeSet;

use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, TopicPartition, limits::REQUEST_PARTITIONS_MAX,
};

use super::{
    Changes, Decision,
    change::{After, Change},
    check_request_partitions, named_twice,
};
use crate::{
    command::{Answer, ElectLeaders, Elected, Election},
    image::{Image, Partition},
    settings::TopicConfig,
};

pub(super) fn decide(image: &Image, command: &ElectLeaders) -> Result<Decision, Failure> {
    let mut changes = Changes::default();
    let elected = match &command.partitions {
        Some(partitions) => {
            check_request_partitions(partitions.len())?;
            let mut seen = BTreeSet::new();
            let elect = |id: &TopicPartition| {
                (*id, elect_one(image, command.election, *id, &mut seen, &mut changes))
            };
            Elected { partitions: partitions.iter().map(elect).collect(), remaining: 0 }
        }
        None => elect_all(image, command.election, &mut changes),
    };
    Ok((changes.into_records().collect(), Answer::LeadersElected(elected)))
}

fn elect_one(
    image: &Image,
    election: Election,
    id: TopicPartition,
    seen: &mut BTreeSet<TopicPartition>,
    changes: &mut Changes,
) -> Result<BrokerId, Failure> {
    let (topic, partition) = image.require_partition(id)?;
    if !seen.insert(id) {
        return Err(named_twice(topic, id.partition));
    }
    let after = elect(image, &topic.config, partition, election);
    let leader = after.as_ref().map_or(partition.leader, |after| after.state.leader);
    let wanted = match election {
        Election::Preferred => leader.filter(|leader| *leader == partition.replicas[0]),
        Election::Transfer { to } => leader.filter(|leader| *leader == to),
        Election::Unclean => leader,
    };
    let leader = wanted.ok_or_else(|| {
        let message = match election {
            Election::Preferred => {
                format!("broker {} is not in sync, or not alive", partition.replicas[0])
            }
            Election::Transfer { to } => {
                format!("broker {to} is no replica that is in sync, or not alive")
            }
            Election::Unclean => format!("none of the brokers {:?} is alive", partition.replicas),
        };
        Failure::new(ErrorCode::IneligibleReplica, message)
    })?;
    changes.add(id.topic_id, id.partition, after);
    Ok(leader)
}

fn elect_all(image: &Image, election: Election, changes: &mut Changes) -> Elected {
    let mut elected = Elected { partitions: Vec::new(), remaining: 0 };
    for (topic, partition, state) in image.partitions() {
        let Some(after) = elect(image, &topic.config, state, election) else { continue };
        let leader = after.state.leader;
        let Some(leader) = leader.filter(|_| leader != state.leader) else { continue };
        if elected.partitions.len() == REQUEST_PARTITIONS_MAX {
            elected.remaining += 1;
            continue;
        }
        let id = TopicPartition { topic_id: topic.id, partition };
        elected.partitions.push((id, Ok(leader)));
        changes.add(topic.id, partition, Some(after));
    }
    elected
}

/// The partition after the election, if anything comes of it.
fn elect(
    image: &Image,
    config: &TopicConfig,
    partition: &Partition,
    election: Election,
) -> Option<After> {
    let change = Change::of(image, config, partition);
    match election {
        Election::Preferred => change.preferred().build(),
        Election::Transfer { to } => change.led_by(to).build(),
        Election::Unclean if partition.leader.is_some() => None,
        Election::Unclean => change.unclean().build(),
    }
}
