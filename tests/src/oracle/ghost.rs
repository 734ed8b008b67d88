//! What the oracles know: the content of every replica as it was appended, everything that was ever committed, and the
//! metadata as it was agreed on. Fed with what each step has changed; the properties are in the files beside this one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use bytes::Bytes;
use tidemark_broker::steered::SeenReplica;
use tidemark_protocol::{BrokerId, LeaderEpoch, NodeId, Offset, TopicPartition};
use tidemark_replication::FollowerStatus;

use super::{
    Claims, CommittedOffsets, Verdict, bounds, candidate_completeness, commit_immutable, epochs,
    leader_completeness, log_matching, marks::Held, metadata::Metadata, min_isr_gate,
    no_loss::Acknowledged, quorum_superset, raft::Raft, recovery, require, scan::Scan,
    single_leader, unclean_exclusion::Loss, watermark,
};
use crate::sim::figures::Figures;

/// A replica of a partition.
pub type ReplicaKey = (NodeId, TopicPartition);

/// One record, as far as the oracles tell records apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub epoch: LeaderEpoch,
    /// Of the batch's content, and the record's place in it.
    pub hash: u64,
}

/// A replica as it is after a step.
#[derive(Clone, Debug)]
pub struct Observed {
    pub partition: TopicPartition,
    pub log_start_offset: Offset,
    pub log_end_offset: Offset,
    pub flushed_offset: Offset,
    /// Behind every tombstone that compaction has dropped.
    pub removals_end: Offset,
    pub high_watermark: Offset,
    /// What readers are given.
    pub shown_watermark: Offset,
    pub led: Option<Led>,
    pub followed: Option<(BrokerId, LeaderEpoch)>,
}

/// What a leader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Led {
    pub epoch: LeaderEpoch,
    pub isr: Vec<BrokerId>,
    /// With those it has proposed.
    pub maximal_isr: Vec<BrokerId>,
    pub min_insync_replicas: usize,
    pub is_watermark_known: bool,
}

impl fmt::Display for Observed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, log_start_offset: start, log_end_offset: end, .. } = self;
        let topic = &partition.topic_id.to_string()[..8];
        write!(out, "{topic}/{} {start}..{end}", partition.partition)?;
        write!(out, " flushed {} watermark {}", self.flushed_offset, self.high_watermark)?;
        match (&self.led, self.followed) {
            (Some(led), _) => write!(
                out,
                " leads {} isr {:?} maximal {:?} min {}",
                led.epoch, led.isr, led.maximal_isr, led.min_insync_replicas
            ),
            (None, Some((leader, epoch))) => write!(out, " follows {leader} in {epoch}"),
            (None, None) => Ok(()),
        }
    }
}

impl Observed {
    /// Somebody whom this leader has proposed to let in.
    pub fn newcomer(&self) -> Option<BrokerId> {
        let led = self.led.as_ref()?;
        led.maximal_isr.iter().find(|id| !led.isr.contains(id)).copied()
    }

    /// From what a broker shows of it.
    pub fn of(node: NodeId, replica: &SeenReplica, followers: &[FollowerStatus]) -> Self {
        let members = |is_in: fn(&FollowerStatus) -> bool| {
            let others = followers.iter().filter(|follower| is_in(follower)).map(|it| it.id);
            std::iter::once(node).chain(others).collect::<Vec<_>>()
        };
        let led = replica.led.map(|epoch| Led {
            epoch,
            isr: members(|follower| follower.is_in_sync),
            maximal_isr: members(|follower| follower.is_in_sync || follower.is_proposed),
            min_insync_replicas: usize::from(replica.min_insync_replicas).min(followers.len() + 1),
            is_watermark_known: replica.is_watermark_known,
        });
        Self {
            partition: replica.partition,
            log_start_offset: replica.log_start_offset,
            log_end_offset: replica.log_end_offset,
            flushed_offset: replica.flushed_offset,
            removals_end: replica.removals_end,
            high_watermark: replica.high_watermark,
            shown_watermark: replica.shown_watermark,
            led,
            followed: replica.followed,
        }
    }
}

/// A replica as the oracles remember it.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    /// Of the process it was seen in.
    pub life: u64,
    pub is_running: bool,
    pub start: Offset,
    /// `None`: damaged, nobody can tell any more.
    pub marks: VecDeque<Option<Mark>>,
    pub flushed: Offset,
    pub removals_end: Offset,
    pub high_watermark: Offset,
    pub led: Option<Led>,
    /// Everything below agrees with what was committed.
    pub agrees_to: Offset,
    /// How many of the marks are missing, at least: none are, if it is 0.
    pub damaged: usize,
    /// Its node was no replica for a while: its process deletes the log whenever it hears of that, even if it is a replica
    /// again by then, and may be killed in the middle of it. Until it is in sync again.
    pub may_be_gone: bool,
    /// Its process ended in the middle of a truncation to here, which the next one completes.
    pub cut: Option<Offset>,
}

impl Shadow {
    pub fn end(&self) -> Offset {
        self.start + self.marks.len() as u64
    }

    pub fn mark(&self, offset: Offset) -> Option<Mark> {
        let at = offset.checked_sub(self.start)?;
        self.marks.get(usize::try_from(at).ok()?).copied().flatten()
    }

    fn is_damaged(&self, offset: Offset) -> bool {
        let at = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        at.is_some_and(|at| self.marks.get(at) == Some(&None))
    }

    fn truncate(&mut self, end: Offset) {
        let keep = end.saturating_sub(self.start);
        self.marks.truncate(usize::try_from(keep).expect("a log in memory"));
        self.agrees_to = self.agrees_to.min(end);
    }

    fn begin_at(&mut self, start: Offset) {
        let gone = start.saturating_sub(self.start);
        let gone = usize::try_from(gone).expect("a log in memory").min(self.marks.len());
        self.marks.drain(..gone);
        self.start = start;
        self.agrees_to = self.agrees_to.max(start);
    }
}

/// What was committed of one partition, written once.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// `None`: whoever committed it could not tell any more what it was.
    marks: Vec<Option<Mark>>,
    /// Records that an election without a clean candidate has given up are no longer owed to anybody.
    pub given_up: bool,
}

impl Truth {
    /// The true high watermark: exclusive end of what some leader has committed.
    pub fn end(&self) -> Offset {
        self.marks.len() as u64
    }

    pub fn mark(&self, offset: Offset) -> Option<Mark> {
        self.marks.get(usize::try_from(offset).ok()?).copied().flatten()
    }

    pub(super) fn push(&mut self, mark: Option<Mark>) {
        self.marks.push(mark);
    }
}

/// Everything the oracles know.
#[derive(Debug, Default)]
pub struct Ghost {
    pub replicas: BTreeMap<ReplicaKey, Shadow>,
    pub truths: BTreeMap<TopicPartition, Truth>,
    pub metadata: Metadata,
    pub raft: Raft,
    pub loss: Loss,
    pub acknowledged: Acknowledged,
    pub(super) leaders: single_leader::Leaders,
    pub(super) observers: epochs::Observers,
    /// Partitions whose loss of data is in order: of topics that are durable in memory only, beyond what they promise.
    pub lossy: BTreeSet<TopicPartition>,
    /// Partitions of which the last replica that had everything lost its disk.
    pub lost: BTreeSet<TopicPartition>,
    /// Partitions of which some disk was replaced.
    pub wiped: BTreeSet<TopicPartition>,
    /// Nodes whose disk was replaced without the controller having heard of it.
    pub replaced: BTreeSet<NodeId>,
    /// Nodes of which a flush has failed since their process started.
    pub unsynced: BTreeSet<NodeId>,
    /// Replicas on whose disk something has rotted.
    pub damaged: BTreeSet<ReplicaKey>,
    /// What is committed, read.
    pub scan: Scan,
    /// Up to where some replica of a partition has been compacted, or is about to be: below, a log need not hold what was
    /// appended (S24 says what it has to hold), and others may have been sent what is left.
    pub compacted: BTreeMap<TopicPartition, Offset>,
    /// Logs that begin later than before, to be looked at when what is committed was read.
    pub begun: Vec<(ReplicaKey, Offset)>,
    pub claims: Claims,
    pub offsets: CommittedOffsets,
}

impl Ghost {
    /// A replica as a step has left it. `read` gives the batches from one offset to another.
    pub fn observe(
        &mut self,
        node: NodeId,
        life: u64,
        seen: &Observed,
        read: impl FnOnce(Offset, Offset) -> Bytes,
        figures: &mut Figures,
    ) -> Verdict {
        let partition = seen.partition;
        let key = (node, partition);
        figures.check("states of replicas");
        bounds::check(node, seen)?;
        self.agree(key);
        let shadow = self.replicas.entry(key).or_default();
        if seen.log_start_offset > shadow.start {
            self.begun.push((key, seen.log_start_offset));
        }
        let reopened = shadow.life != life || !shadow.is_running;
        if reopened {
            // Everything is read again: what a restart makes of a log is for the oracle of recoveries.
            let readable = read(seen.log_start_offset, seen.log_end_offset);
            self.opened(key, life, seen, readable, figures)?;
        } else {
            self.went_on(key, seen, read, figures)?;
        }
        let shadow = self.replicas.get_mut(&key).expect("it was just looked at");
        let led_before = std::mem::replace(&mut shadow.led, seen.led.clone());
        let watermark_before = std::mem::replace(&mut shadow.high_watermark, seen.high_watermark);
        shadow.flushed = seen.flushed_offset;
        shadow.removals_end = seen.removals_end;
        if !reopened {
            watermark::check(key, &led_before, watermark_before, seen)?;
            min_isr_gate::check(key, &led_before, watermark_before, seen)?;
        }
        self.after(key, led_before.as_ref(), seen, figures)
    }

    /// A log was opened again by another process.
    fn opened(
        &mut self,
        key: ReplicaKey,
        life: u64,
        seen: &Observed,
        readable: Bytes,
        figures: &mut Figures,
    ) -> Verdict {
        let (node, partition) = key;
        let start = seen.log_start_offset;
        let mut held = Held::read(readable, (start, seen.log_end_offset));
        self.trust(partition, start, &mut held);
        let shadow = &self.replicas[&key];
        if self.is_owed(key) {
            recovery::check(&self.leaders, key, shadow, seen, &held.marks)?;
            let is_whole = recovery::is_whole(shadow, seen, self.true_end(partition));
            require(is_whole || self.damaged.contains(&key), "S26", || {
                format!("node {node} had {partition} flushed to {}: {seen}", shadow.flushed)
            })?;
            if shadow.cut.is_some() && seen.log_end_offset < shadow.end() {
                log_matching::check_truncation(self, key, seen)?;
            }
        }
        self.check_readable(key, start, &held)?;
        let marks = held.marks;
        let damaged = marks.iter().filter(|mark| mark.is_none()).count();
        if damaged > 0 {
            figures.happened("damaged replicas found");
        }
        let may_be_gone = self.replicas[&key].may_be_gone;
        let opened = Shadow { life, is_running: true, start, marks, damaged, ..Shadow::default() };
        self.replicas.insert(key, Shadow { agrees_to: start, may_be_gone, ..opened });
        Ok(())
    }

    /// A log that was open has perhaps been cut, started over, appended to, or trimmed, in this order.
    fn went_on(
        &mut self,
        key: ReplicaKey,
        seen: &Observed,
        read: impl FnOnce(Offset, Offset) -> Bytes,
        figures: &mut Figures,
    ) -> Verdict {
        let shadow = &self.replicas[&key];
        if seen.log_end_offset < shadow.end() {
            figures.happened("truncations");
            if log_matching::misses_removals(self, key) {
                figures.happened("started over behind removals");
            }
            if shadow.damaged > 0 || self.damaged.contains(&key) {
                figures.happened("truncations of damaged replicas");
            }
            log_matching::check_truncation(self, key, seen)?;
        }
        let shadow = self.replicas.get_mut(&key).expect("it was just looked at");
        if seen.log_end_offset < shadow.end() {
            shadow.truncate(seen.log_end_offset);
        }
        if seen.log_start_offset > shadow.end() {
            figures.happened("started over");
            shadow.marks.clear();
            shadow.start = seen.log_start_offset;
            shadow.agrees_to = seen.log_start_offset;
        }
        let from = shadow.end();
        if seen.log_end_offset > from {
            let end = seen.log_end_offset;
            let mut held = Held::read(read(from, end), (from, end));
            self.trust(key.1, from, &mut held);
            let shadow = &self.replicas[&key];
            epochs::check_appended(key, shadow, &held.marks)?;
            single_leader::check(&mut self.leaders, key, seen, from, &held.marks)?;
            self.check_readable(key, from, &held)?;
            let marks = held.marks;
            let shadow = self.replicas.get_mut(&key).expect("it was just looked at");
            shadow.damaged += marks.iter().filter(|mark| mark.is_none()).count();
            shadow.marks.extend(marks);
        }
        let shadow = self.replicas.get_mut(&key).expect("it was just looked at");
        shadow.begin_at(seen.log_start_offset);
        Ok(())
    }

    /// What compaction may have left out or written anew counts as what was committed there.
    fn trust(&self, partition: TopicPartition, from: Offset, held: &mut Held) {
        let Some(truth) = self.truths.get(&partition) else { return };
        let Some(until) = self.compacted.get(&partition) else { return };
        held.trust(
            from,
            truth.marks.iter().copied().take(usize::try_from(*until).expect("a log in memory")),
        );
    }

    /// Whether a replica has to be there. A process that is started on older metadata looks for what a later one has deleted,
    /// and what was deleted last time was forgotten here.
    fn is_owed(&self, key: ReplicaKey) -> bool {
        let (node, partition) = key;
        let assigned = self.metadata.partition(partition);
        let is_replica = assigned.is_some_and(|it| it.replicas.contains(&node));
        let is_known = |shadow: &Shadow| shadow.life > 0 && !shadow.may_be_gone;
        is_replica && self.replicas.get(&key).is_some_and(is_known)
    }

    /// Whether a replica may have such holes: a damaged disk excuses them, and where a flush has failed in this life, they may
    /// be behind what was durable before.
    fn check_readable(&self, key: ReplicaKey, from: Offset, held: &Held) -> Verdict {
        let Some(fault) = &held.fault else { return Ok(()) };
        let (node, partition) = key;
        let durable = self.replicas.get(&key).map_or(0, |shadow| shadow.flushed);
        let is_unflushed = self.unsynced.contains(&node) && from + held.readable() >= durable;
        let is_excused = !self.is_owed(key) || self.damaged.contains(&key) || is_unflushed;
        require(is_excused, "S26", || format!("node {node} does not hold {partition}: {fault}"))
    }

    /// What follows from a replica's new state for everybody else.
    fn after(
        &mut self,
        key: ReplicaKey,
        led_before: Option<&Led>,
        seen: &Observed,
        figures: &mut Figures,
    ) -> Verdict {
        let (_, partition) = key;
        let truth_before = self.true_end(partition);
        if seen.led.is_some() {
            commit_immutable::advance(self, key, seen)?;
        }
        self.agree(key);
        log_matching::check(self, key)?;
        if let Some(led) = &seen.led {
            if led_before.map(|led| led.epoch) != Some(led.epoch) {
                figures.happened("leaderships begun");
                leader_completeness::check(self, key)?;
            }
            quorum_superset::check(self, key, led)?;
        }
        if self.true_end(partition) > truth_before {
            figures.check("commits");
            candidate_completeness::check_partition(self, partition)?;
        }
        Ok(())
    }

    /// A process was killed in the middle of a step. What it had let its watermark pass before counts: others may have been
    /// told of it. What it appended in that step nobody has seen.
    pub fn died(&mut self, node: NodeId, seen: &Observed) -> Verdict {
        let key = (node, seen.partition);
        let Some(shadow) = self.replicas.get(&key) else { return Ok(()) };
        let epoch = |led: &Option<Led>| led.as_ref().map(|led| led.epoch);
        if seen.led.is_none() || epoch(&shadow.led) != epoch(&seen.led) {
            return Ok(());
        }
        let high_watermark = seen.high_watermark.min(shadow.end());
        commit_immutable::advance(self, key, &Observed { high_watermark, ..seen.clone() })
    }

    /// The process is gone; what it wrote stays as it is remembered, until it is opened again.
    pub fn ended(&mut self, node: NodeId) {
        for (_, shadow) in self.replicas.range_mut((node, first())..=(node, last())) {
            shadow.is_running = false;
            shadow.led = None;
        }
    }

    /// What the disk of a node that is down says of a log: a truncation to `cut` is not complete.
    pub fn is_being_cut(&mut self, key: ReplicaKey, cut: Offset) {
        if let Some(shadow) = self.replicas.get_mut(&key) {
            shadow.cut = Some(shadow.cut.map_or(cut, |before| before.min(cut)));
        }
    }

    /// The log was deleted: what comes under this name is another one.
    pub fn removed(&mut self, key: ReplicaKey) {
        self.replicas.remove(&key);
        self.damaged.remove(&key);
    }

    /// Replicas on the disk of a node, whether it runs or not.
    pub fn kept_by(&self, node: NodeId) -> Vec<TopicPartition> {
        self.replicas.range((node, first())..=(node, last())).map(|((_, id), _)| *id).collect()
    }

    /// Replicas of a node that are known.
    pub fn held_by(&self, node: NodeId) -> Vec<TopicPartition> {
        let held = self.replicas.range((node, first())..=(node, last()));
        held.filter(|(_, shadow)| shadow.is_running).map(|((_, id), _)| *id).collect()
    }

    /// Whether what was committed may be gone: more has happened to it than anybody has promised to survive.
    pub fn is_beyond_promise(&self, partition: TopicPartition) -> bool {
        self.lossy.contains(&partition) || self.lost.contains(&partition)
    }

    pub fn true_end(&self, partition: TopicPartition) -> Offset {
        self.truths.get(&partition).map_or(0, Truth::end)
    }

    /// Compares a replica with what was committed, as far as that is new.
    pub(super) fn agree(&mut self, key: ReplicaKey) {
        let Some(truth) = self.truths.get(&key.1) else { return };
        let Some(shadow) = self.replicas.get_mut(&key) else { return };
        let until = truth.end().min(shadow.end());
        while shadow.agrees_to < until {
            let at = shadow.agrees_to;
            let is_known = at >= shadow.start && !shadow.is_damaged(at) && truth.mark(at).is_some();
            if is_known && shadow.mark(at) != truth.mark(at) {
                break;
            }
            shadow.agrees_to += 1;
        }
    }

    /// Whether a replica has everything that was committed.
    pub fn is_complete(&mut self, key: ReplicaKey) -> bool {
        self.agree(key);
        let end = self.true_end(key.1);
        self.replicas.get(&key).is_some_and(|shadow| shadow.agrees_to >= end)
    }
}

fn first() -> TopicPartition {
    TopicPartition { topic_id: tidemark_protocol::TopicId([0; 16]), partition: 0 }
}

fn last() -> TopicPartition {
    TopicPartition { topic_id: tidemark_protocol::TopicId([0xff; 16]), partition: u32::MAX }
}
