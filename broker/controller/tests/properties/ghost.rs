//! What no image shows: who really has every committed record. The worst is assumed: whenever records can be
//! committed some are, and whoever is killed has lost some.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_controller::{Answer, Command, Election, Image, Partition, RegisterBroker};
use tidemark_protocol::{BrokerId, TopicPartition};

#[derive(Default)]
pub(crate) struct Ghost(BTreeMap<TopicPartition, Holders>);

#[derive(Clone, Debug, Default)]
struct Holders {
    /// If a kill loses what was not flushed: who may lead without a second thought.
    sure: BTreeSet<BrokerId>,
    /// If whatever counts was flushed: who may lead when there is no other.
    durable: BTreeSet<BrokerId>,
}

impl Ghost {
    /// Checks what a command has changed, and what may happen because of it.
    pub(crate) fn follow(
        &mut self,
        before: &Image,
        command: &Command,
        answer: &Answer,
        after: &Image,
    ) {
        if let (Command::AlterPartitions(command), Answer::PartitionsAltered(outcomes)) =
            (command, answer)
        {
            for (change, outcome) in command.changes.iter().zip(outcomes) {
                let id = TopicPartition { topic_id: change.topic_id, partition: change.partition };
                let (Some(old), Ok(state)) = (before.partition(id), outcome) else { continue };
                assert_eq!(change.partition_epoch, old.partition_epoch, "made on another state");
                assert_eq!(Some(command.broker_id), old.leader);
                for member in &change.isr {
                    let epoch = before.broker(member.id).map(|broker| broker.epoch);
                    assert_eq!(Some(member.broker_epoch), epoch, "another run of {}", member.id);
                }
                assert_eq!(after.partition(id).map(|now| now.isr.clone()), Some(state.isr.clone()));
            }
        }
        self.0.retain(|id, _| after.partition(*id).is_some());
        for topic in after.topics() {
            for (partition, now) in (0..).zip(&topic.partitions) {
                let id = TopicPartition { topic_id: topic.id, partition };
                let may_be_unclean = topic.config.unclean_leader_election
                    || matches!(command, Command::ElectLeaders(c) if c.election == Election::Unclean);
                let holders = self.0.entry(id).or_default();
                holders.lose(before, command);
                if let Some(old) = before.partition(id) {
                    holders.check(command, old, now, may_be_unclean);
                }
                holders.commit(now, now.isr.len() >= now.min_insync_replicas(&topic.config));
            }
        }
    }
}

impl Holders {
    /// A broker that starts anew has lost something.
    fn lose(&mut self, before: &Image, command: &Command) {
        let Command::RegisterBroker(RegisterBroker { broker_id, directory, .. }) = command else {
            return;
        };
        let Command::RegisterBroker(RegisterBroker { previous_broker_epoch, .. }) = command else {
            return;
        };
        let known = before.broker(*broker_id);
        let is_wiped = known.is_none_or(|broker| broker.directory != *directory);
        let is_clean = known.is_some_and(|broker| Some(broker.epoch) == *previous_broker_epoch);
        if is_wiped || !is_clean {
            self.sure.remove(broker_id);
        }
        if is_wiped {
            self.durable.remove(broker_id);
        }
    }

    /// Whoever is in sync or eligible has everything, and so does whoever leads.
    fn check(&mut self, command: &Command, old: &Partition, now: &Partition, may_be_unclean: bool) {
        if let Command::AlterPartitions(_) = command {
            // A leader vouches for those it lets in.
            self.sure.extend(now.isr.iter().filter(|id| !old.isr.contains(id)));
            self.durable.extend(&now.isr);
        }
        let is_asked_for = matches!(command, Command::Reassign(_));
        if old.is_reassigning() && !now.is_reassigning() && !is_asked_for {
            assert_eq!(now.isr, now.replicas, "complete too early: {old:?}");
        }
        let is_elected = old.leader != now.leader;
        if let Some(leader) = now.leader.filter(|_| is_elected) {
            let mut candidates = old.isr.iter().chain(&old.elr);
            let was_last_hope = !candidates.any(|id| self.sure.contains(id));
            if !may_be_unclean {
                let may = if was_last_hope { &self.durable } else { &self.sure };
                assert!(may.contains(&leader), "{leader} of {self:?}: {old:?} {now:?}");
            }
            if !self.sure.contains(&leader) {
                // What it has is the truth from now on.
                *self = Self { sure: [leader].into(), durable: [leader].into() };
            }
        }
        for id in now.isr.iter().chain(&now.elr) {
            assert!(self.sure.contains(id), "{id} of {self:?}: {old:?} {now:?}");
        }
        self.sure.retain(|id| now.replicas.contains(id));
        self.durable.retain(|id| now.replicas.contains(id));
    }

    fn commit(&mut self, now: &Partition, has_enough: bool) {
        let isr = now.isr.iter().copied();
        if has_enough {
            (self.sure, self.durable) = (isr.clone().collect(), isr.collect());
        } else {
            self.sure.extend(isr.clone());
            self.durable.extend(isr);
        }
    }
}
