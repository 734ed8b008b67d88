//! The part of the world that is about producers and coordinators: their clients and topics, and what the oracles are told
//! of them after each step.

use std::collections::BTreeMap;

use tidemark_broker::steered::Compacted;
use tidemark_controller::Command;
use tidemark_protocol::{NodeId, TopicPartition};

use super::{
    client::{
        copier::Copier,
        member::{GroupEvent, Member},
        reader::Reader,
        transactor::Transactor,
    },
    node::Node,
    shape::{COPIES, GROUPS, LEDGER, TRANSACTIONS, is_plain},
    world::{FIRST_COPIER, FIRST_MEMBER, FIRST_READER, FIRST_TRANSACTOR, World},
};
use crate::oracle::{
    Ghost, Roles, Truth, Verdict, keeps_removals_us, liveness, retention, violation,
};

impl World {
    /// Makes the topics and the clients, if this run has any.
    pub(super) fn begin_coordinated(&mut self) {
        if self.shape.coordinated.is_empty() {
            return;
        }
        for topic in self.shape.coordinated.clone() {
            let command = Command::CreateTopic(topic.command(&mut self.core));
            self.wish(command);
        }
        let nodes = self.shape.nodes.clone();
        for at in 0..self.shape.transactors {
            let id = FIRST_TRANSACTOR + at;
            let name = format!("tx-{}", at / 2);
            let mut transactor = Transactor::new(id, name, nodes.clone(), &mut self.core);
            transactor.has_loose_offsets = self.shape.has_loose_offsets;
            self.transactors.insert(id, transactor);
        }
        for at in 0..self.shape.members {
            let (id, group) = (FIRST_MEMBER + at, format!("group-{}", at / 3));
            let mut member = Member::new(id, group, nodes.clone(), &mut self.core);
            member.is_restless = self.shape.has_restless_members;
            self.members.insert(id, member);
        }
        let max_bytes = self.shape.fetch_bytes;
        for at in 0..self.shape.copiers {
            let (id, pair) = (FIRST_COPIER + at, u8::try_from(at / 2).expect("a few"));
            let copier = Copier::new(id, pair, nodes.clone(), max_bytes, &mut self.core);
            self.copiers.insert(id, copier);
        }
        let reader = Reader::new(FIRST_READER, nodes, max_bytes, &mut self.core);
        self.readers = BTreeMap::from([(FIRST_READER, reader)]);
    }

    /// Whether a partition is for those who know nothing of coordinators.
    pub fn is_plain(&self, partition: TopicPartition) -> bool {
        let topic = self.ghost.metadata.image.topic_by_id(partition.topic_id);
        topic.is_none_or(|topic| is_plain(&topic.name))
    }

    /// Whether coordinators and their topics are there and led, and nothing of them was given up.
    pub fn can_coordinate(&self) -> bool {
        let image = &self.ghost.metadata.image;
        let served = liveness::served(self);
        let is_here = |name: &str| {
            let topic = image.topic(name)?;
            let count = served.iter().filter(|id| id.topic_id == topic.id).count();
            (count == topic.partitions.len() && !self.is_given_up(name)).then_some(())
        };
        let mut topics = self.shape.coordinated.iter();
        !self.shape.coordinated.is_empty() && topics.all(|topic| is_here(&topic.name).is_some())
    }

    /// Whether something that was committed in a topic is owed to nobody any more.
    fn is_given_up(&self, name: &str) -> bool {
        let Some(topic) = self.ghost.metadata.image.topic(name) else { return false };
        let mut partitions = (0..topic.partition_count())
            .map(|at| TopicPartition { topic_id: topic.id, partition: at });
        partitions.any(|partition| !self.is_owed(partition))
    }

    /// Whether what is committed in a partition is there to stay.
    fn is_owed(&self, partition: TopicPartition) -> bool {
        let ghost = &self.ghost;
        let is_given_up = ghost.truths.get(&partition).is_some_and(|truth| truth.given_up);
        !is_given_up && !ghost.is_beyond_promise(partition)
    }

    /// Whether something that coordinators have committed could not be read yet.
    fn is_behind(&self) -> bool {
        is_behind(&self.ghost)
    }

    /// Looks at what compaction has done to the logs of a node.
    fn compacted(&mut self, id: NodeId) -> Verdict {
        let Some(process) = self.nodes.get_mut(&id).and_then(Node::process_mut) else {
            return Ok(());
        };
        for step in process.take_compacted() {
            match step {
                Compacted::Rewritten(partition, end) => {
                    let known = self.ghost.compacted.entry(partition).or_insert(0);
                    *known = (*known).max(end);
                }
                Compacted::Installed(partition) => {
                    self.core.figures.happened("compactions");
                    self.compare_compacted(id, partition)?;
                }
                Compacted::Nothing => {}
            }
        }
        Ok(())
    }

    /// Compares what all replicas hold of the coordinators' logs with what was committed, if these are compacted.
    pub(super) fn compare_all_compacted(&mut self) -> Verdict {
        let partitions: Vec<_> = self.ghost.compacted.keys().copied().collect();
        for id in self.shape.nodes.clone() {
            for partition in partitions.clone() {
                self.compare_compacted(id, partition)?;
            }
        }
        Ok(())
    }

    /// Compares what a replica holds of a coordinator's log with what was committed, as far as both go.
    fn compare_compacted(&mut self, id: NodeId, partition: TopicPartition) -> Verdict {
        let Self { nodes, ghost, core, .. } = self;
        let Some(topic) = ghost.metadata.image.topic_by_id(partition.topic_id) else {
            return Ok(());
        };
        let keeps_us = keeps_removals_us(topic.config.delete_retention_ms);
        let (Some(end), Some(process)) =
            (ghost.scan.whole_end(partition), nodes.get(&id).and_then(Node::process))
        else {
            return Ok(());
        };
        let shadow = ghost.replicas.get(&(id, partition));
        // What replaces something is known only if as much was read as was compacted.
        let is_known = ghost.compacted.get(&partition).is_some_and(|compacted| *compacted <= end);
        let is_sound = is_known
            && !ghost.damaged.contains(&(id, partition))
            && !ghost.is_beyond_promise(partition)
            && shadow.is_some_and(|it| it.damaged == 0 && it.agrees_to >= end);
        if !is_sound {
            return Ok(());
        }
        core.figures.check("compacted logs");
        let bytes = process.broker.read_log(partition, 0, end);
        ghost.scan.compare_whole(partition, &bytes, keeps_us)
    }

    /// Reads what has been committed by a node's step: what coordinators say first.
    pub(super) fn scan(&mut self, id: NodeId) -> Verdict {
        let unscanned = std::mem::take(&mut self.unscanned);
        self.compacted(id)?;
        let is_off = self.is_given_up(TRANSACTIONS) || self.ghost.scan.is_blind;
        let is_groups_off = self.is_given_up(GROUPS);
        let coordinators = self.ghost.metadata.image.topic(TRANSACTIONS).map(|topic| topic.id);
        let is_first = |partition: &TopicPartition| Some(partition.topic_id) == coordinators;
        let (first, rest): (Vec<_>, Vec<_>) = unscanned.into_iter().partition(is_first);
        let mut needed = [TRANSACTIONS, GROUPS, LEDGER, COPIES].iter();
        let is_lost = needed.any(|name| self.is_given_up(name));
        let Self { nodes, ghost, core, .. } = self;
        let id_of = |name| ghost.metadata.image.topic(name).map(|topic| topic.id);
        ghost.scan.topics =
            Roles { groups: id_of(GROUPS), ledger: id_of(LEDGER), copies: id_of(COPIES) };
        ghost.scan.exactly_once.is_off |= is_lost;
        ghost.scan.now_us = core.now_us();
        let Some(process) = nodes.get_mut(&id).and_then(Node::process_mut) else { return Ok(()) };
        for partition in first.into_iter().chain(rest) {
            let (from, end) = (ghost.scan.end(partition), ghost.true_end(partition));
            if from >= end || is_off || ghost.is_beyond_promise(partition) {
                continue;
            }
            core.figures.check("commits read");
            let bytes = || process.broker.read_log(partition, from, end);
            if is_first(&partition) {
                let Ghost { metadata, truths, scan, .. } = &mut *ghost;
                let true_end = |id: TopicPartition| {
                    let truth = metadata.image.partition(id).map(|_| truths.get(&id));
                    truth.map(|truth| truth.map_or(0, Truth::end))
                };
                scan.take_coordinated(partition, &bytes(), end, true_end)?;
            } else if coordinators.is_none() || !is_behind(ghost) {
                ghost.scan.take(partition, &bytes(), end)?;
            } else {
                core.figures.check("commits read later");
            }
        }
        for (partition, last_stable_offset) in process.take_shown() {
            if !is_off && ghost.scan.end(partition) >= ghost.true_end(partition) {
                core.figures.check("last stable offsets");
                ghost.scan.shown(partition, last_stable_offset)?;
            }
        }
        for told in process.take_told_ended() {
            let leads = ghost.replicas.get(&(id, told.partition)).and_then(|it| it.led.as_ref());
            let newest = ghost.metadata.partition(told.partition).map(|it| it.leader_epoch);
            // Whoever leads no more, and does not know it, may know less.
            if !is_off && leads.is_some_and(|led| Some(led.epoch) == newest) {
                core.figures.check("ends that coordinators were told of");
                ghost.scan.told_ended(&told)?;
            }
        }
        for (key, start) in std::mem::take(&mut ghost.begun) {
            core.figures.check("log starts");
            retention::check(ghost, key, start)?;
        }
        match std::mem::take(&mut process.differences).first() {
            Some(difference) if !is_off && !is_groups_off => {
                Err(violation("S22", difference.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Looks at what a member of a group, or a copier for its group, was told.
    fn after_member(&mut self, client: u32) -> Verdict {
        let (group, name, events) = if let Some(member) = self.members.get_mut(&client) {
            (member.group.clone(), member.name(), std::mem::take(&mut member.events))
        } else if let Some(copier) = self.copiers.get_mut(&client) {
            let group = copier.group();
            (group.clone(), group, std::mem::take(&mut copier.events))
        } else {
            return Ok(());
        };
        let now_us = self.core.now_us();
        if events.is_empty() || self.is_given_up(GROUPS) {
            return Ok(());
        }
        for event in events {
            self.core.figures.check("what members were told");
            match event {
                GroupEvent::Claims { partition, until_us } => {
                    let of = (group.clone(), partition);
                    self.ghost.claims.claimed(&of, &name, now_us, until_us)?;
                }
                GroupEvent::Drops { partition } => {
                    // Whichever process of this member it was.
                    let prefix = format!("member-{client}-");
                    self.ghost.claims.dropped(&(group.clone(), partition), &prefix, now_us);
                }
                GroupEvent::Committed { partition, offset, sent_us, is_known } => {
                    let of = (group.clone(), partition);
                    if is_known {
                        self.ghost.claims.accepted(&of, &name, sent_us)?;
                    }
                    let acknowledged_us = is_known.then_some(now_us);
                    self.ghost.offsets.committed(of, offset, sent_us, acknowledged_us);
                }
                GroupEvent::Fetched { partition, offset, sent_us } => {
                    let mates = self.members.values().filter(|member| member.group == group);
                    let pairs = self.copiers.values().filter(|copier| copier.group() == group);
                    let pending: Vec<_> = mates
                        .flat_map(|member| member.pending(partition))
                        .chain(pairs.filter_map(|copier| copier.pending(partition)))
                        .collect();
                    let of = (group.clone(), partition);
                    self.ghost.offsets.fetched(&of, offset, sent_us, &pending)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at what a client was told.
    pub(super) fn after_client(&mut self, client: u32) -> Verdict {
        self.after_member(client)?;
        let (mut written, mut told, mut read) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(producer) = self.producers.get_mut(&client) {
            written.append(&mut producer.written);
        } else if let Some(transactor) = self.transactors.get_mut(&client) {
            written.append(&mut transactor.written);
            told.append(&mut transactor.told);
        } else if let Some(copier) = self.copiers.get_mut(&client) {
            written.append(&mut copier.written);
            told.append(&mut copier.told);
        } else if let Some(reader) = self.readers.get_mut(&client) {
            read.append(&mut reader.read);
        }
        for written in written {
            if !self.is_owed(written.partition) {
                continue;
            }
            self.core.figures.check("acknowledged numbers");
            self.ghost.scan.acknowledged(&written)?;
        }
        if self.is_given_up(TRANSACTIONS) || self.is_behind() {
            return Ok(());
        }
        for told in told {
            let producer = (told.producer.producer_id, told.producer.epoch);
            self.core.figures.check("ends of transactions");
            self.ghost.scan.told(producer, told.commit)?;
        }
        for (partition, header) in read {
            self.core.figures.check("decided batches read");
            self.ghost.scan.read(partition, &header)?;
        }
        Ok(())
    }
}

fn is_behind(ghost: &Ghost) -> bool {
    let Some(topic) = ghost.metadata.image.topic(TRANSACTIONS) else { return false };
    let topic_id = topic.id;
    let mut partitions =
        (0..topic.partition_count()).map(|partition| TopicPartition { topic_id, partition });
    partitions.any(|partition| ghost.scan.end(partition) < ghost.true_end(partition))
}
