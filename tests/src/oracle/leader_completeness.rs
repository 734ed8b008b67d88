//! S2, leader completeness: whoever leads in the newest epoch has everything that was committed.

use super::{Ghost, ReplicaKey, Verdict, require};

/// A leadership has begun.
pub(super) fn check(ghost: &mut Ghost, key: ReplicaKey) -> Verdict {
    let (node, partition) = key;
    if ghost.is_beyond_promise(partition) {
        return Ok(());
    }
    let epoch =
        ghost.replicas.get(&key).and_then(|shadow| shadow.led.as_ref()).map(|led| led.epoch);
    let newest = ghost.metadata.partition(partition).map(|assigned| assigned.leader_epoch);
    if epoch < newest {
        // It has not heard yet that it is over.
        return Ok(());
    }
    let complete = ghost.is_complete(key);
    require(complete, "S2", || {
        let shadow = &ghost.replicas[&key];
        format!(
            "node {node} leads {partition} in epoch {epoch:?} with a log that ends at {} and agrees with what was committed up to {}; {} are committed",
            shadow.end(),
            shadow.agrees_to,
            ghost.true_end(partition)
        )
    })
}
