//! Replication as a shard sees it: roles from the metadata, positions of followers, answers of leaders. What any of it
//! means, the replica decides; here logs are asked, appended to and cut.

use bytes::Bytes;
use tidemark_controller::TopicConfig;
use tidemark_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, TopicPartition,
    batch::{Batch, batches},
    bug,
    messages::{Position, ReplicaPush, ReplicaRefusal},
};
use tidemark_replication::{
    Answer, AnswerTo, Assignment, EpochEnd, Event, Fetched, FollowerFetch, LogState, Replica,
    ReplicaId, Settings,
};
use tidemark_storage::{AppendError, StorageError};

use super::{
    Hands, Shard,
    partition::{Partition, log_config, replica_settings},
};
use crate::disk_watch::DiskState;

/// What the metadata says of one replica, all of the same image.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) config: TopicConfig,
    pub(crate) assignment: Assignment,
}

/// What a follower says of one partition, and who it said it was on its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FollowerPosition {
    pub(crate) partition: TopicPartition,
    pub(crate) follower: ReplicaId,
    pub(crate) position: Position,
}

/// What a leader says of one partition.
#[derive(Debug)]
pub(crate) struct LeaderAnswer {
    leader: BrokerId,
    push: ReplicaPush,
    /// Whole and with good checksums, or what is wrong with the first that is not.
    batches: Result<Vec<Batch>, String>,
}

impl LeaderAnswer {
    /// Cuts and checks the partition's share of the payload, which costs time: not for the shard's thread.
    pub(crate) fn new(leader: BrokerId, push: ReplicaPush, payload: Bytes) -> Self {
        let checked = batches(payload).map(|batch| {
            let batch = batch?;
            if !bug::is_put_back("no-batch-validation") {
                batch.verify_crc()?;
            }
            Ok(batch)
        });
        let checked: Result<_, tidemark_protocol::batch::BatchError> = checked.collect();
        Self { leader, push, batches: checked.map_err(|error| error.to_string()) }
    }

    pub(crate) fn partition(&self) -> TopicPartition {
        self.push.partition
    }
}

/// Batches on their way from an answer to the log.
pub(super) type Incoming = Option<Result<Vec<Batch>, String>>;

impl Shard {
    pub(super) fn assign(&mut self, id: TopicPartition, assigned: Assigned) {
        let Assigned { config, assignment } = assigned;
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.log.set_config(log_config(&config));
            partition.assign(assignment, replica_settings(&config), &mut self.hands);
        }
    }

    pub(super) fn follower_position(&mut self, said: FollowerPosition) {
        let FollowerPosition { partition: id, follower, position } = said;
        let Some(partition) = self.partitions.get_mut(&id) else {
            // Deleted, or not opened yet: the follower asks again, or hears from the controller.
            let refusal = ReplicaRefusal::Error { code: ErrorCode::UnknownTopicOrPartition };
            self.hands.port.refuse(id, AnswerTo::position(follower, &position), refusal);
            return;
        };
        let last = position.last_fetched_epoch;
        let epoch_end = last.and_then(|epoch| partition.epoch_end(epoch));
        let fetch = FollowerFetch { follower, position, epoch_end };
        partition.step(Event::FollowerFetched(fetch), &mut self.hands);
        partition.publish_followers();
    }

    pub(super) fn leader_answer(&mut self, answer: LeaderAnswer) {
        if let Some(partition) = self.partitions.get_mut(&answer.partition()) {
            partition.leader_answer(answer, &mut self.hands);
        }
    }

    /// Tells every partition that follows this leader. They are few, or the stream is worth the while.
    pub(super) fn leader_connected(&mut self, leader: BrokerId) {
        for partition in self.partitions.values_mut() {
            partition.step(Event::LeaderConnected { leader }, &mut self.hands);
        }
    }

    pub(super) fn step_one(&mut self, id: TopicPartition, event: Event) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.step(event, &mut self.hands);
            partition.publish_followers();
        }
    }
}

impl Partition {
    pub(super) fn assign(&mut self, assignment: Assignment, settings: Settings, hands: &mut Hands) {
        let is_to_lead = assignment.leader == Some(self.replica.config().broker_id);
        if !is_to_lead {
            // Before anything changes that only a leader may show.
            self.view.set_leader_epoch(None);
        }
        let log = self.log_state();
        let role = |replica: &Replica| (replica.leader_epoch(), replica.following());
        let before = role(&self.replica);
        self.step(Event::Assigned { assignment, settings, log }, hands);
        if role(&self.replica) != before
            && let Err(error) = self.log.forget_removals_ahead()
        {
            // Before anybody is told of it; what stays on the disk is compared with the log's end at the next start.
            drop(self.storage_failure("forgetting removals ahead of the log", &error, hands));
        }
        self.view.set_in_sync(self.replica.in_sync());
        // A log that failed can still be read, as long as nobody else leads.
        if !(is_to_lead && self.replica.has_ended()) {
            self.view.set_leader_epoch(self.replica.leader_epoch());
        }
        self.publish_followers();
    }

    pub(super) fn publish_followers(&self) {
        self.view.set_followers(self.replica.followers());
    }

    fn log_state(&self) -> LogState {
        LogState {
            log_start_offset: self.log.log_start_offset(),
            log_end_offset: self.log.log_end_offset(),
            flushed_offset: self.log.flushed_offset(),
            last_epoch: self.log.epochs().latest(),
            damaged_from: self.log.damaged_from(),
        }
    }

    fn epoch_end(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let end = self.log.end_offset_for_epoch(epoch)?;
        Some(EpochEnd { epoch: end.epoch, end_offset: end.end_offset })
    }

    fn leader_answer(&mut self, answer: LeaderAnswer, hands: &mut Hands) {
        let LeaderAnswer { leader, push, batches } = answer;
        if self.replica.following().is_none_or(|(followed, _)| followed != leader) {
            return;
        }
        let answer = match push.refusal {
            _ if !is_possible(&push) => {
                tracing::warn!(topic = %self.view.topic, partition = self.view.id.partition, leader, ?push, "the leader speaks of offsets that no log has");
                Answer::Error { code: ErrorCode::InvalidRequest }
            }
            Some(ReplicaRefusal::Diverging { epoch, end_offset }) => Answer::Diverging {
                leader: EpochEnd { epoch, end_offset },
                own: self.epoch_end(epoch),
            },
            Some(ReplicaRefusal::OutOfRange { log_start_offset, log_end_offset }) => {
                Answer::OutOfRange { log_start_offset, log_end_offset }
            }
            Some(ReplicaRefusal::Error { code }) => {
                tracing::debug!(topic = %self.view.topic, partition = self.view.id.partition, leader, code = code.name(), "the leader has nothing for this replica");
                Answer::Error { code }
            }
            None if push.batch_bytes > 0 => Answer::Batches,
            None => Answer::Watermark,
        };
        let fetched = Fetched {
            leader_epoch: push.leader_epoch,
            round: push.round,
            high_watermark: push.high_watermark,
            log_start_offset: push.log_start_offset,
            removals_end: push.removals_end,
            answer,
        };
        hands.incoming = Some(batches);
        self.step(Event::Fetched(fetched), hands);
        hands.incoming = None;
    }

    /// Appends what came with the leader's answer. Returns how that went.
    pub(super) fn append_incoming(
        &mut self,
        leader_epoch: LeaderEpoch,
        removals_end: Offset,
        hands: &mut Hands,
    ) -> Event {
        match hands.disk_watch.state() {
            DiskState::Ok => {}
            DiskState::Full => return Event::EffectRefused,
            DiskState::Failed => return Event::StorageFailed,
        }
        let incoming = hands.incoming.take().expect("batches are appended when they come");
        let batches = match incoming.and_then(|batches| check_epochs(batches, leader_epoch)) {
            Ok(batches) => batches,
            Err(problem) => {
                hands.metrics.disk().checksum_failed();
                return self.refuse_batches(&problem);
            }
        };
        if let Err(error) = self.log.note_removals(removals_end) {
            let attempt = "taking note of what compaction has dropped";
            return self.cannot(attempt, &error, hands).unwrap_or(Event::EffectRefused);
        }
        match self.log.append_as_follower(&batches, hands.wall_ms) {
            Ok(appended) => {
                self.producers_wrote(|producers| producers.followed(&batches));
                self.dirtied(hands);
                Event::Appended {
                    end_offset: appended.next_offset,
                    last_epoch: appended.leader_epoch,
                }
            }
            Err(AppendError::Full(_)) => {
                hands.disk_watch.fill();
                Event::EffectRefused
            }
            Err(error @ (AppendError::Fenced | AppendError::Disk(_))) => {
                hands.disk_watch.fail(&format!("append to {}: {error}", self.view.topic));
                Event::StorageFailed
            }
            Err(error) => self.refuse_batches(&error.to_string()),
        }
    }

    /// Nothing was appended; the leader is asked again.
    fn refuse_batches(&self, problem: &str) -> Event {
        tracing::warn!(
            topic = %self.view.topic, partition = self.view.id.partition, problem,
            "what the leader sent is not appended"
        );
        Event::EffectRefused
    }

    /// Takes back everything from `offset` on. Readers have been held off.
    pub(super) fn truncate(&mut self, offset: Offset, hands: &mut Hands) -> Event {
        let end = self.log.log_end_offset();
        tracing::info!(
            topic = %self.view.topic, partition = self.view.id.partition, from = end, to = offset,
            "truncating: the leader's log differs"
        );
        let cut = self.log.truncate(offset);
        self.cut("truncation", cut, hands)
    }

    /// Drops everything and goes on at `offset`.
    pub(super) fn start_at(&mut self, offset: Offset, hands: &mut Hands) -> Event {
        let end = self.log.log_end_offset();
        tracing::warn!(
            topic = %self.view.topic, partition = self.view.id.partition, end, offset,
            "starting over: the leader does not have any more what this replica would need to go on"
        );
        let cut = self.log.restart_at(offset);
        self.cut("starting over", cut, hands)
    }

    fn cut(&mut self, attempt: &str, cut: Result<(), StorageError>, hands: &mut Hands) -> Event {
        match cut {
            Ok(()) => {
                if let Err(error) = self.producers.reload(&self.log) {
                    let topic = &self.view.topic;
                    hands.disk_watch.fail(&format!("reading {topic} after {attempt}: {error}"));
                    return Event::StorageFailed;
                }
                self.view.set_aborted(self.producers.aborted());
                self.flush_wanted = self.flush_wanted.min(self.log.log_end_offset());
                Event::Truncated { log: self.log_state() }
            }
            Err(error) => self.cannot(attempt, &error, hands).unwrap_or(Event::EffectRefused),
        }
    }

    /// Gives up what the leader has given up.
    pub(super) fn follow_log_start(&mut self, offset: Offset, hands: &mut Hands) -> Option<Event> {
        match self.log.trim(offset) {
            Ok(offset) => Some(Event::LogStartMoved { offset }),
            Err(error) => self.cannot("deleting records", &error, hands),
        }
    }

    /// Says why something was not done. An event, if that was the end of the log.
    fn cannot(&self, attempt: &str, error: &StorageError, hands: &Hands) -> Option<Event> {
        let id = self.view.id.partition;
        if matches!(error, StorageError::Disk(error) if error.is_full()) {
            hands.disk_watch.fill();
            return None;
        }
        tracing::error!(topic = %self.view.topic, partition = id, %error, "{attempt} failed");
        self.log.is_fenced().then(|| {
            hands.disk_watch.fail(&format!("{attempt} of {}: {error}", self.view.topic));
            Event::StorageFailed
        })
    }
}

/// Whether all offsets are such that a log can have: they are signed in batches.
fn is_possible(push: &ReplicaPush) -> bool {
    let refused = match push.refusal {
        Some(ReplicaRefusal::Diverging { end_offset, .. }) => end_offset,
        Some(ReplicaRefusal::OutOfRange { log_start_offset, log_end_offset }) => {
            log_start_offset.max(log_end_offset)
        }
        Some(ReplicaRefusal::Error { .. }) | None => 0,
    };
    let said = [push.high_watermark, push.log_start_offset, push.removals_end, refused];
    said.iter().all(|offset| *offset <= i64::MAX.cast_unsigned())
}

/// Whether a leader in `leader_epoch` can have sent these.
fn check_epochs(batches: Vec<Batch>, leader_epoch: LeaderEpoch) -> Result<Vec<Batch>, String> {
    let newer = batches.iter().find(|batch| batch.header.leader_epoch > leader_epoch);
    match newer {
        Some(batch) if !bug::is_put_back("no-batch-validation") => Err(format!(
            "the batch at {} is of leader epoch {}, after epoch {leader_epoch} of the leader",
            batch.header.base_offset, batch.header.leader_epoch
        )),
        _ => Ok(batches),
    }
}
