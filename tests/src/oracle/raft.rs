//! S15, the quorum: one leader per term, whose log holds everything that was committed; terms and commits of a process
//! never go back; what is committed is on a majority of the voters.
//!
//! (That all deliver the same entries is S14.)

use std::collections::BTreeMap;

use tidemark_controller::QuorumStatus;
use tidemark_protocol::NodeId;

use super::{Ghost, Verdict, require};

/// What was seen of the quorum.
#[derive(Debug, Default)]
pub struct Raft {
    leaders: BTreeMap<u64, NodeId>,
    /// Life, term and commit of each node's process.
    seen: BTreeMap<NodeId, (u64, u64, u64)>,
}

impl Ghost {
    /// A node believes that it leads the quorum in this term.
    fn quorum_led(&mut self, node: NodeId, term: u64) -> Verdict {
        let leader = *self.raft.leaders.entry(term).or_insert(node);
        require(leader == node, "S15", || {
            format!("nodes {leader} and {node} both lead term {term}")
        })
    }

    /// What a node's quorum says of itself after a step.
    pub fn quorum_seen(&mut self, node: NodeId, life: u64, status: &QuorumStatus) -> Verdict {
        let now = (life, status.term, status.committed_index);
        if let Some(before) = self.raft.seen.insert(node, now)
            && before.0 == life
        {
            require(before.1 <= now.1 && before.2 <= now.2, "S15", || {
                format!("the quorum of node {node} goes from {before:?} to {now:?}")
            })?;
        }
        if status.is_leader {
            self.quorum_led(node, status.term)?;
        }
        let newest = self.raft.leaders.last_key_value().map(|(term, _)| *term);
        if status.is_leader && Some(status.term) == newest {
            let end = self.metadata.end();
            require(status.log_end_index >= end, "S15", || {
                format!(
                    "node {node} leads term {} with a log that ends at {}; {end} are committed",
                    status.term, status.log_end_index
                )
            })?;
        }
        Ok(())
    }
}
