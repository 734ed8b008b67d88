//! Who votes, who is catching up in order to vote, and the numbers that the Raft library knows them by.
//!
//! The configuration changes by one controller at a time, with entries of the log. What is here is the
//! configuration at one index; who may propose a change, and when, is decided elsewhere.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    bug,
    messagepack::{self, MessageError},
    messages::VoterId,
};

use super::config::mix;

/// Most controllers that vote or are about to.
pub const CONTROLLERS_MAX: usize = 16;

/// Version byte in front of every change.
const CHANGE_VERSION: u8 = 1;

/// One change of the configuration, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// The first entry of a cluster: these vote.
    Begin(Vec<VoterId>),
    AddLearner(VoterId),
    /// A learner that has caught up votes.
    Promote(VoterId),
    Remove(VoterId),
}

/// An entry of the log that should be a change of voters, and is not.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    #[error("the change of voters has version {found}; this build reads {CHANGE_VERSION}")]
    Version { found: u8 },
    #[error("the change of voters is empty")]
    Empty,
    #[error("the change of voters cannot be decoded: {0}")]
    Decode(#[from] MessageError),
}

impl Change {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![CHANGE_VERSION];
        messagepack::encode(self, &mut bytes).expect("plain data encodes into a vector");
        bytes
    }

    /// Reads what [`Change::encode`] wrote. The bytes may be anything.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        match bytes.split_first() {
            None => Err(ChangeError::Empty),
            Some((&CHANGE_VERSION, body)) => Ok(messagepack::decode(body, CONTROLLERS_MAX)?),
            Some((&found, _)) => Err(ChangeError::Version { found }),
        }
    }

    /// The steps in which the library takes it: each changes one controller, so that old and new majorities
    /// always overlap (those of the first entry change nobody's: there is nothing before it).
    pub(super) fn steps(&self) -> Vec<ConfChangeV2> {
        let single = |kind: ConfChangeType, voter: &VoterId| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = raft_id(voter);
            let mut change = ConfChangeV2::default();
            change.set_changes(vec![single].into());
            change
        };
        match self {
            Self::Begin(voters) => {
                voters.iter().map(|voter| single(ConfChangeType::AddNode, voter)).collect()
            }
            Self::AddLearner(voter) => vec![single(ConfChangeType::AddLearnerNode, voter)],
            Self::Promote(voter) => vec![single(ConfChangeType::AddNode, voter)],
            Self::Remove(voter) => vec![single(ConfChangeType::RemoveNode, voter)],
        }
    }
}

/// The number that stands for a controller in the library; never 0. It is made of node id and directory id: a
/// node that lost its disk comes back under another number, so that it cannot vote a second time in a term in
/// which it has forgotten its first vote.
pub(super) fn raft_id(voter: &VoterId) -> u64 {
    let node = mix(u64::from(voter.node) + 1);
    if bug::is_put_back("wiped-disk-keeps-its-vote") {
        return node.max(1);
    }
    let (high, low) = voter.directory.0.split_at(8);
    let word = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("halves of 16 bytes"));
    mix(node ^ mix(word(high) ^ mix(word(low)))).max(1)
}

/// The configuration at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    voters: BTreeMap<u64, VoterId>,
    learners: BTreeMap<u64, VoterId>,
}

impl Members {
    /// A configuration as a snapshot has it; `None` if it is not one.
    pub(super) fn new(voters: &[VoterId], learners: &[VoterId]) -> Option<Self> {
        let table = |list: &[VoterId]| -> BTreeMap<u64, VoterId> {
            list.iter().map(|voter| (raft_id(voter), *voter)).collect()
        };
        let (count, members) = (
            voters.len() + learners.len(),
            Self { voters: table(voters), learners: table(learners) },
        );
        let is_sound = count <= CONTROLLERS_MAX
            && members.len() == count
            && !members.voters.keys().any(|id| members.learners.contains_key(id));
        is_sound.then_some(members)
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Begin(voters) => {
                *self = Self::default();
                self.voters.extend(voters.iter().map(|voter| (raft_id(voter), *voter)));
            }
            Change::AddLearner(voter) => {
                self.learners.insert(raft_id(voter), *voter);
            }
            Change::Promote(voter) => {
                self.learners.remove(&raft_id(voter));
                self.voters.insert(raft_id(voter), *voter);
            }
            Change::Remove(voter) => {
                self.voters.remove(&raft_id(voter));
                self.learners.remove(&raft_id(voter));
            }
        }
    }

    pub(super) fn conf_state(&self) -> ConfState {
        let mut state = ConfState::default();
        state.set_voters(self.voters.keys().copied().collect());
        state.set_learners(self.learners.keys().copied().collect());
        state
    }

    pub(super) fn len(&self) -> usize {
        self.voters.len() + self.learners.len()
    }

    pub(super) fn get(&self, id: u64) -> Option<VoterId> {
        self.voters.get(&id).or_else(|| self.learners.get(&id)).copied()
    }

    pub(super) fn is_voter(&self, id: u64) -> bool {
        self.voters.contains_key(&id)
    }

    pub(super) fn voters(&self) -> impl ExactSizeIterator<Item = (u64, VoterId)> {
        self.voters.iter().map(|(id, voter)| (*id, *voter))
    }

    pub(super) fn learners(&self) -> impl ExactSizeIterator<Item = (u64, VoterId)> {
        self.learners.iter().map(|(id, voter)| (*id, *voter))
    }
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::DirectoryId;

    use super::*;

    fn voter(node: u32, directory: u8) -> VoterId {
        VoterId { node, directory: DirectoryId([directory; 16]) }
    }

    #[test]
    fn the_number_of_a_controller_never_changes_and_is_nobody_elses() {
        // They are in files and on the wire.
        assert_eq!(raft_id(&voter(1, 1)), 2_299_724_148_097_366_219);
        assert_eq!(raft_id(&voter(2, 255)), 1_842_100_404_729_238_541);
        let numbers = (0..50).flat_map(|node| (0..=255).map(move |dir| raft_id(&voter(node, dir))));
        let count = numbers.collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(count, 50 * 256);
    }

    #[test]
    fn a_change_is_read_as_it_was_written_and_nothing_else_is() {
        let all = Change::Begin(vec![voter(1, 1), voter(2, 2)]);
        for change in [all, Change::AddLearner(voter(3, 3)), Change::Remove(voter(1, 1))] {
            let bytes = change.encode();
            assert_eq!(Change::decode(&bytes).unwrap(), change);
            for end in 0..bytes.len() {
                assert!(Change::decode(&bytes[..end]).is_err());
            }
        }
        let too_many = Change::Begin((0..17).map(|node| voter(node, 1)).collect());
        assert!(Change::decode(&too_many.encode()).is_err());
    }

    #[test]
    fn nobody_is_a_member_twice() {
        assert!(Members::new(&[voter(1, 1), voter(1, 1)], &[]).is_none());
        assert!(Members::new(&[voter(1, 1)], &[voter(1, 1)]).is_none());
        assert!(Members::new(&[voter(1, 1)], &[voter(1, 2)]).is_some(), "another disk");
    }
}
