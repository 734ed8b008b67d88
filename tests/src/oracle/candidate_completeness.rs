//! S3, candidate completeness: whoever may be elected without losing anything, that is every member of the controller's
//! in-sync and eligible replicas that runs and is not fenced, has everything that was committed.

use tidemark_protocol::TopicPartition;

use super::{Ghost, Verdict, require};

/// Something was committed, or the controller's sets have changed.
pub(super) fn check_partition(ghost: &mut Ghost, partition: TopicPartition) -> Verdict {
    if ghost.is_beyond_promise(partition) {
        return Ok(());
    }
    let Some(assigned) = ghost.metadata.partition(partition) else { return Ok(()) };
    let candidates: Vec<_> = assigned.isr.iter().chain(&assigned.elr).copied().collect();
    for node in candidates {
        let key = (node, partition);
        // One that has not opened its log yet will be looked at when it has.
        let is_running = ghost.replicas.get(&key).is_some_and(|shadow| shadow.is_running);
        if !is_running || !ghost.metadata.is_live(node) || ghost.loss.is_unheard(node) {
            continue;
        }
        let complete = ghost.is_complete(key);
        require(complete, "S3", || {
            let shadow = &ghost.replicas[&key];
            format!(
                "node {node} is in sync or eligible for {partition}, and agrees with what was committed only up to {} of {}; its log ends at {}",
                shadow.agrees_to,
                ghost.true_end(partition),
                shadow.end()
            )
        })?;
    }
    Ok(())
}
