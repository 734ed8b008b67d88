//! S4, quorum superset: whoever a leader waits for before it commits includes everybody whom the controller may elect:
//! the maximal in-sync set of a leader that is not stale holds the controller's in-sync and eligible replicas, as long as
//! it is large enough to commit anything.

use super::{Ghost, ReplicaKey, Verdict, ghost::Led, require};

pub(super) fn check(ghost: &Ghost, key: ReplicaKey, led: &Led) -> Verdict {
    let (node, partition) = key;
    let Some(assigned) = ghost.metadata.partition(partition) else { return Ok(()) };
    if assigned.leader_epoch != led.epoch || led.isr.len() < led.min_insync_replicas {
        return Ok(());
    }
    let missing = assigned.isr.iter().chain(&assigned.elr).find(|id| !led.maximal_isr.contains(id));
    require(missing.is_none(), "S4", || {
        format!(
            "node {node} leads {partition} and waits for {:?}; the controller may elect {:?} and {:?}",
            led.maximal_isr, assigned.isr, assigned.elr
        )
    })
}
