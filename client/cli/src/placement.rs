//! Where the replicas of partitions are and should be, what is wrong with that, and naming partitions on the command line.
//!
//! Only reads metadata; it asks nobody and decides nothing.

use std::{fmt, str::FromStr};

use tidemark_protocol::{
    BrokerId, PartitionIndex, TopicId, TopicPartition,
    messages::{PartitionMetadata, TopicMetadata},
};

use crate::exit::{CliError, Exit};

/// What is in force when the topic does not set `min_insync_replicas`.
const MIN_INSYNC_REPLICAS: usize = 1;

/// One partition and what the metadata says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) topic: String,
    pub(crate) topic_id: TopicId,
    pub(crate) index: PartitionIndex,
    pub(crate) metadata: PartitionMetadata,
    min_insync_replicas: usize,
}

/// `topic/partition`.
impl fmt::Display for Partition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.topic, self.index)
    }
}

impl Partition {
    pub(crate) fn id(&self) -> TopicPartition {
        TopicPartition { topic_id: self.topic_id, partition: self.index }
    }

    /// The replicas before a move under way.
    pub(crate) fn origin(&self) -> Vec<BrokerId> {
        without(&self.metadata.replicas, &self.metadata.adding)
    }

    /// The replicas after a move under way.
    pub(crate) fn target(&self) -> Vec<BrokerId> {
        without(&self.metadata.replicas, &self.metadata.removing)
    }

    pub(crate) fn is_moving(&self) -> bool {
        !self.metadata.adding.is_empty() || !self.metadata.removing.is_empty()
    }

    pub(crate) fn is_leaderless(&self) -> bool {
        self.metadata.leader.is_none()
    }

    /// Whether a replica is not in sync that should be; those that a move adds are still to become it.
    pub(crate) fn is_under_replicated(&self) -> bool {
        self.origin().iter().any(|replica| !self.metadata.isr.contains(replica))
    }

    /// In-sync replicas without which nothing is accepted with acks=all.
    pub(crate) fn min_isr(&self) -> usize {
        self.min_insync_replicas.min(self.target().len())
    }

    pub(crate) fn is_below_min_isr(&self) -> bool {
        self.metadata.isr.len() < self.min_isr()
    }

    /// The replica that leads when all is well.
    pub(crate) fn preferred(&self) -> Option<BrokerId> {
        self.target().first().copied()
    }

    /// Whether another replica leads although the preferred one could.
    pub(crate) fn is_led_by_another(&self) -> bool {
        let preferred = self.preferred();
        self.metadata.leader.is_some()
            && self.metadata.leader != preferred
            && preferred.is_some_and(|preferred| self.metadata.isr.contains(&preferred))
    }

    /// The worst that can be said of it, for one cell of a table.
    pub(crate) fn health(&self) -> &'static str {
        if self.is_leaderless() {
            "no leader"
        } else if self.is_below_min_isr() {
            "below min ISR"
        } else if self.is_under_replicated() {
            "under-replicated"
        } else if self.is_moving() {
            "moving"
        } else {
            "ok"
        }
    }

    pub(crate) fn is_in_trouble(&self) -> bool {
        self.is_leaderless() || self.is_below_min_isr() || self.is_under_replicated()
    }
}

fn without(all: &[BrokerId], some: &[BrokerId]) -> Vec<BrokerId> {
    all.iter().filter(|id| !some.contains(id)).copied().collect()
}

/// Every partition of these topics, in order.
pub(crate) fn partitions(topics: &[TopicMetadata]) -> Vec<Partition> {
    topics.iter().flat_map(partitions_of).collect()
}

pub(crate) fn partitions_of(topic: &TopicMetadata) -> Vec<Partition> {
    let setting = topic.settings.get("min_insync_replicas");
    let min_insync_replicas =
        setting.and_then(|text| text.parse().ok()).unwrap_or(MIN_INSYNC_REPLICAS);
    let numbered = topic.partitions.iter().zip(0..);
    let partition = |(metadata, index): (&PartitionMetadata, _)| Partition {
        topic: topic.name.clone(),
        topic_id: topic.id,
        index,
        metadata: metadata.clone(),
        min_insync_replicas,
    };
    numbered.map(partition).collect()
}

/// `1,2,3`.
pub(crate) fn ids(ids: &[BrokerId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `1,2,3`, and `-` for none.
pub(crate) fn ids_or_dash(some: &[BrokerId]) -> String {
    if some.is_empty() { "-".to_owned() } else { ids(some) }
}

/// Up to five partitions by name, and how many more there are.
pub(crate) fn named(partitions: &[&Partition]) -> String {
    const NAMED_MAX: usize = 5;
    let mut names: Vec<String> =
        partitions.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if partitions.len() > NAMED_MAX {
        names.push(format!("and {} more", partitions.len() - NAMED_MAX));
    }
    names.join(", ")
}

/// Partitions as named on the command line: `orders`, `orders/2`, `orders/0,3` or `orders/0-5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    topic: String,
    /// First and last, both meant; empty: the whole topic.
    ranges: Vec<(PartitionIndex, PartitionIndex)>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || {
            format!(
                "`{text}` names no partitions; write it like orders, orders/2, orders/0,3 or orders/0-5"
            )
        };
        let (topic, partitions) = match text.split_once('/') {
            Some((topic, partitions)) => (topic, Some(partitions)),
            None => (text, None),
        };
        if topic.is_empty() {
            return Err(problem());
        }
        let mut ranges = Vec::new();
        for range in partitions.into_iter().flat_map(|partitions| partitions.split(',')) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<PartitionIndex>().map_err(|_| problem());
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(problem());
            }
            ranges.push((first, last));
        }
        Ok(Self { topic: topic.to_owned(), ranges })
    }
}

impl Selection {
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    fn contains(&self, partition: &Partition) -> bool {
        let inside = |(first, last): &(PartitionIndex, PartitionIndex)| {
            (*first..=*last).contains(&partition.index)
        };
        partition.topic == self.topic && (self.ranges.is_empty() || self.ranges.iter().any(inside))
    }

    /// Refuses a partition that its topic does not have.
    fn check(&self, partitions: u32) -> Result<(), CliError> {
        match self.ranges.iter().map(|(_, last)| *last).max() {
            Some(last) if last >= partitions => Err(CliError::new(
                Exit::NotFound,
                format!("{} has no partition {last}: it has {partitions}", self.topic),
            )),
            _ => Ok(()),
        }
    }
}

/// Those of `partitions` that are selected, in their order; all of them when nothing is named. Every topic that is named
/// has to be there.
pub(crate) fn select(
    partitions: Vec<Partition>,
    selections: &[Selection],
) -> Result<Vec<Partition>, CliError> {
    for selection in selections {
        let of_topic = partitions.iter().filter(|it| it.topic == selection.topic);
        selection.check(u32::try_from(of_topic.count()).unwrap_or(u32::MAX))?;
    }
    let selected = |partition: &Partition| {
        selections.is_empty() || selections.iter().any(|it| it.contains(partition))
    };
    Ok(partitions.into_iter().filter(selected).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use tidemark_protocol::messages::TopicSettings;

    use super::*;

    /// A topic `orders`, one partition for each `(leader, replicas, isr)`.
    pub(crate) fn topic(
        partitions: &[(Option<BrokerId>, &[BrokerId], &[BrokerId])],
        min_isr: &str,
    ) -> TopicMetadata {
        let partition =
            |(leader, replicas, isr): &(Option<BrokerId>, &[_], &[_])| PartitionMetadata {
                leader: *leader,
                replicas: replicas.to_vec(),
                isr: isr.to_vec(),
                ..PartitionMetadata::default()
            };
        TopicMetadata {
            name: "orders".to_owned(),
            id: TopicId([1; 16]),
            partitions: partitions.iter().map(partition).collect(),
            settings: TopicSettings::from([("min_insync_replicas".to_owned(), min_isr.to_owned())]),
        }
    }

    #[test]
    fn what_is_wrong_with_a_partition_is_the_worst_of_it() {
        let topic = topic(
            &[
                (Some(1), &[1, 2, 3], &[1, 2, 3]),
                (Some(1), &[1, 2, 3], &[1, 3]),
                (Some(1), &[1, 2, 3], &[1]),
                (None, &[1, 2, 3], &[]),
                (Some(2), &[1, 2, 3], &[1, 2, 3]),
            ],
            "2",
        );
        let partitions = partitions_of(&topic);
        let health: Vec<_> = partitions.iter().map(Partition::health).collect();
        assert_eq!(health, ["ok", "under-replicated", "below min ISR", "no leader", "ok"]);
        assert!(partitions[4].is_led_by_another() && !partitions[0].is_led_by_another());
    }

    #[test]
    fn a_replica_that_a_move_adds_is_not_missing_yet() {
        let mut topic = topic(&[(Some(1), &[1, 2, 3, 4], &[1, 2, 3])], "3");
        topic.partitions[0].adding = vec![4];
        topic.partitions[0].removing = vec![1];
        let partition = &partitions_of(&topic)[0];
        assert_eq!((partition.origin(), partition.target()), (vec![1, 2, 3], vec![2, 3, 4]));
        assert_eq!((partition.health(), partition.preferred()), ("moving", Some(2)));
        topic.partitions[0].isr = vec![1, 3];
        assert_eq!(partitions_of(&topic)[0].health(), "below min ISR");
    }

    #[test]
    fn more_min_isr_than_replicas_means_all_of_them() {
        let partition = &partitions_of(&topic(&[(Some(1), &[1], &[1])], "3"))[0];
        assert_eq!((partition.min_isr(), partition.health()), (1, "ok"));
    }

    #[test]
    fn partitions_are_named_by_topic_number_list_and_range() {
        let three: &[_] = &[(Some(1), &[1][..], &[1][..]); 3];
        let all = partitions(&[topic(three, "1")]);
        let chosen = |text: &str| {
            let selection: Selection = text.parse().unwrap();
            let chosen = select(all.clone(), &[selection])?;
            Ok::<_, CliError>(chosen.iter().map(|it| it.index).collect::<Vec<_>>())
        };
        assert_eq!(chosen("orders").unwrap(), [0, 1, 2]);
        assert_eq!(chosen("orders/1").unwrap(), [1]);
        assert_eq!(chosen("orders/2,0").unwrap(), [0, 2]);
        assert_eq!(chosen("orders/1-2").unwrap(), [1, 2]);
        let missing = chosen("orders/1-3").unwrap_err();
        assert_eq!(missing.to_string(), "orders has no partition 3: it has 3");
        assert_eq!(select(all.clone(), &[]).unwrap().len(), 3);
        for wrong in ["", "/1", "orders/", "orders/x", "orders/3-1", "orders/1,,2"] {
            assert!(wrong.parse::<Selection>().is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn many_partitions_are_named_in_part() {
        let seven: &[_] = &[(Some(1), &[1][..], &[1][..]); 7];
        let all = partitions(&[topic(seven, "1")]);
        let all: Vec<&Partition> = all.iter().collect();
        assert_eq!(named(&all[..2]), "orders/0, orders/1");
        assert!(named(&all).ends_with("orders/4, and 2 more"), "{}", named(&all));
    }
}
