//! From what the library wants done to what was done: durable first, then said, then delivered.

use raft::{
    INVALID_ID, Ready, SnapshotStatus,
    eraftpb::{Entry, Message, MessageType},
};
use tidemark_protocol::bug;
use tidemark_storage::Disk;

use super::{Content, Failed, Latest, RaftQuorum, committed, entry, may_use_it};
use crate::quorum::{QuorumAction, members::Change, vote_file::Vote, wal::WalError, wire};

impl<D: Disk> RaftQuorum<D> {
    /// Carries out everything the library has to ask for.
    pub(super) fn drive(&mut self, actions: &mut Vec<QuorumAction>) {
        self.elections.settle(&mut self.node);
        while matches!(self.failed, Failed::No) && self.node.has_ready() {
            match self.drive_once(actions) {
                Ok(()) => self.elections.settle(&mut self.node),
                Err(WalError::Full) => return self.forget_what_is_not_durable(actions),
                Err(WalError::Failed(error)) => {
                    return self.fail("persisting the metadata log", error);
                }
            }
        }
        self.announce_role(actions);
    }

    fn drive_once(&mut self, actions: &mut Vec<QuorumAction>) -> Result<(), WalError> {
        let mut ready = self.node.ready();
        let mut messages = ready.take_messages();
        messages.extend(ready.take_persisted_messages());
        let mut entries = ready.take_committed_entries();
        self.persist(&ready)?;
        if !ready.snapshot().is_empty() {
            self.adopt_snapshot(actions);
        }
        self.node.mut_store().append(ready.entries());
        let mut light = self.node.advance_append(ready);
        messages.extend(light.take_messages());
        entries.extend(light.take_committed_entries());
        self.note_hard_state()?;
        self.send(messages, actions);
        self.announce_role(actions);
        self.deliver(&entries, actions)?;
        self.node.advance_apply_to(self.applied);
        Ok(())
    }

    /// Makes durable what must be before anybody hears of it.
    fn persist(&mut self, ready: &Ready) -> Result<(), WalError> {
        if !ready.snapshot().is_empty() {
            self.install_snapshot()?;
        }
        let entries = ready.entries();
        let is_urgent = self.is_leader() || entries.iter().any(is_urgent);
        self.disk.write(entries, self.now_ms, is_urgent)?;
        if !self.disk.wal.is_durable() && !self.puts_the_flush_off() {
            self.disk.flush()?;
            // What was written may have taken what is kept for a full disk.
            self.disk.reserve.keep();
        }
        let Some(hard_state) = ready.hs() else { return Ok(()) };
        let vote = Vote { term: hard_state.term, for_id: hard_state.vote };
        if u32::try_from(vote.term).is_err() {
            return Err(WalError::Failed("there are no more terms".into()));
        }
        if vote != self.disk.votes.vote() {
            self.disk.votes.store(vote)?;
        }
        Ok(())
    }

    /// Only with a bug put back: then what is not durable leaves, or counts.
    fn puts_the_flush_off(&self) -> bool {
        bug::is_put_back("raft-send-before-flush") && !self.is_only_voter()
            || bug::is_put_back("raft-apply-before-flush-single-voter") && self.is_only_voter()
    }

    /// Writes down how far the log is committed, and keeps what the library would be made anew from.
    fn note_hard_state(&mut self) -> Result<(), WalError> {
        let mut hard_state = self.node.raft.hard_state();
        let store = self.node.mut_store();
        hard_state.commit = hard_state.commit.min(store.last());
        self.disk.votes.note_commit(hard_state.commit)?;
        store.hard_state = hard_state;
        Ok(())
    }

    /// A leader's snapshot takes the place of the log. What a crash interrupts here, the next start completes.
    fn install_snapshot(&mut self) -> Result<(), WalError> {
        let snapshot = self.arrived.as_ref().expect("the library restores what was checked");
        match self.disk.snapshots.store_arrived(snapshot) {
            Err(error) if error.is_full() && self.disk.reserve.release() => {
                self.disk.snapshots.store_arrived(snapshot)?;
            }
            other => other?,
        }
        match self.disk.wal.restart(snapshot.end) {
            Ok(()) => Ok(self.disk.snapshots.settle(snapshot.end)?),
            Err(WalError::Full) => {
                // The log goes on, and must not be replaced when it has got further.
                self.disk.snapshots.withdraw(snapshot.end)?;
                Err(WalError::Full)
            }
            Err(error) => Err(error),
        }
    }

    fn adopt_snapshot(&mut self, actions: &mut Vec<QuorumAction>) {
        let snapshot = self.arrived.take().expect("it was installed");
        let latest = Latest::of(&snapshot);
        self.node.mut_store().restart(latest.mark.clone());
        self.latest = Some(latest);
        self.members = snapshot.members;
        self.applied = snapshot.end;
        actions.push(QuorumAction::Restored { image: snapshot.image });
    }

    fn deliver(
        &mut self,
        entries: &[Entry],
        actions: &mut Vec<QuorumAction>,
    ) -> Result<(), WalError> {
        for entry in entries {
            assert!(entry.index == self.applied + 1, "entries are committed in order");
            let content = entry::content(entry)?;
            if let Content::Change(change) = &content {
                // Who votes is what was committed: a node that forgets that this was would count votes that nobody has any
                // more, once it starts again.
                self.disk.votes.sync_commit()?;
                self.apply_change(change)?;
            }
            self.applied = entry.index;
            actions.push(QuorumAction::Committed(committed(entry, content)));
        }
        Ok(())
    }

    fn apply_change(&mut self, change: &Change) -> Result<(), WalError> {
        for step in change.steps() {
            self.node.apply_conf_change(&step)?;
        }
        self.members.apply(change);
        self.node.mut_store().conf = self.members.conf_state();
        tracing::info!(?change, "the voters of the metadata quorum have changed");
        if self.is_leader() && !self.members.is_voter(self.my_id) {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, INVALID_ID);
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>, actions: &mut Vec<QuorumAction>) {
        for message in messages {
            let Some(to) = self.name(message.to) else { continue };
            if message.get_msg_type() != MessageType::MsgSnapshot {
                let encoded = wire::encode(&message).into_iter();
                actions.extend(encoded.map(|message| QuorumAction::Send { to, message }));
                continue;
            }
            let index = message.get_snapshot().get_metadata().index;
            match &self.latest {
                Some(latest) if latest.mark.raft_index == index => {
                    let part = self.outgoing.begin(message.to, index, latest.file.clone());
                    let message = wire::encode_part(message.to, message.term, part);
                    actions.push(QuorumAction::Send { to, message });
                }
                _ => self.node.report_snapshot(message.to, SnapshotStatus::Failure),
            }
        }
    }

    pub(super) fn announce_role(&mut self, actions: &mut Vec<QuorumAction>) {
        let (term, is_leader) = (self.node.raft.term, self.is_leader());
        let leader = self.name(self.node.raft.leader_id);
        let role = (term, leader, is_leader);
        if self.role != Some(role) {
            self.role = Some(role);
            let leader = leader.map(|leader| leader.node);
            actions.push(QuorumAction::Role { term, leader, is_leader });
        }
    }

    /// Goes on as after a crash in this moment: nobody has been told of what is not durable.
    fn forget_what_is_not_durable(&mut self, actions: &mut Vec<QuorumAction>) {
        tracing::warn!("the disk is full: the metadata log takes no entries");
        let last = self.node.store().last();
        match self.disk.with_reserve(true, |wal| wal.truncate(last)) {
            Ok(()) => {}
            // They stay for now, as after a crash that came a little later.
            Err(WalError::Full) => tracing::warn!("nor is there space to take the last ones back"),
            Err(WalError::Failed(error)) => {
                return self.fail("taking back what could not be made durable", error);
            }
        }
        self.outgoing.clear();
        self.arrived = None;
        let store = std::mem::take(self.node.mut_store());
        match super::open::new_node(&self.config, self.my_id, store, self.applied) {
            Ok(node) => self.node = node,
            Err(error) => return self.fail("beginning again without what was lost", error),
        }
        self.elections.settle(&mut self.node);
        self.announce_role(actions);
    }
}

/// Whether a full disk must not keep an entry out.
fn is_urgent(entry: &Entry) -> bool {
    match entry::content(entry) {
        Ok(Content::Records(records)) => records.is_empty() || may_use_it(&records),
        Ok(Content::Change(_)) => true,
        Err(_) => false,
    }
}
