//! S24, retention: no replica gives up the beginning of its log beyond what is committed, nor beyond the first record of a
//! transaction that has not ended: somebody may have yet to read it, and must learn how it was decided.
//!
//! Looked at whenever a log begins later than before, on leaders, on their followers, and after restarts.

use tidemark_protocol::Offset;

use super::{Ghost, ReplicaKey, Verdict, require};

pub fn check(ghost: &Ghost, (node, partition): ReplicaKey, start: Offset) -> Verdict {
    if ghost.is_beyond_promise(partition) {
        return Ok(());
    }
    let committed = ghost.true_end(partition);
    require(start <= committed, "S24", || {
        format!("node {node} begins {partition} at {start}; {committed} are committed")
    })?;
    if ghost.scan.end(partition) < committed {
        // What could not be read yet may have ended what was open.
        return Ok(());
    }
    let decided = ghost.scan.decided_end(partition);
    require(decided.is_none_or(|decided| start <= decided), "S24", || {
        format!("node {node} begins {partition} at {start}; {decided:?} are decided")
    })
}
