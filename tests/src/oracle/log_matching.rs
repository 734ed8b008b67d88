//! S5, log matching: below its own watermark every replica holds what was committed. Since that is the same for all of
//! them, any two agree below the smaller of their watermarks. Together with S1: nothing committed is ever replaced.

use super::{Ghost, Observed, ReplicaKey, Verdict, require};

pub(super) fn check(ghost: &Ghost, key: ReplicaKey) -> Verdict {
    let (node, partition) = key;
    if ghost.is_beyond_promise(partition) {
        return Ok(());
    }
    let Some(shadow) = ghost.replicas.get(&key) else { return Ok(()) };
    let below = shadow.high_watermark.min(ghost.true_end(partition));
    let (agrees_to, watermark) = (shadow.agrees_to, shadow.high_watermark);
    require(agrees_to >= below, "S5", || {
        let truth = ghost.truths.get(&partition).and_then(|truth| truth.mark(agrees_to));
        format!(
            "node {node} has {:?} at {agrees_to} of {partition}, below its watermark {watermark}; {truth:?} was committed",
            shadow.mark(agrees_to)
        )
    })
}

/// Whether a replica may hold what was removed, because the mark of that is gone where it would have come from.
pub(super) fn misses_removals(ghost: &Ghost, key: ReplicaKey) -> bool {
    let end = ghost.replicas[&key].end();
    let others = ghost.replicas.iter().filter(|((_, partition), _)| *partition == key.1);
    others.map(|(_, shadow)| shadow.removals_end).max() > Some(end)
}

/// A replica takes back the end of its log. What was committed there must still be owed by nobody, or not by this replica:
/// one whose disk has rotted may throw everything away, as long as the controller would not elect it, and so may one that ends
/// before a removal the mark of which is gone somewhere.
pub(super) fn check_truncation(ghost: &Ghost, key: ReplicaKey, seen: &Observed) -> Verdict {
    let (node, partition) = key;
    let shadow = &ghost.replicas[&key];
    let is_led = shadow.led.as_ref().map(|led| led.epoch) == seen.led.as_ref().map(|led| led.epoch)
        && seen.led.is_some();
    require(!is_led, "S5", || format!("node {node} truncates {partition}, which it leads"))?;
    if ghost.is_beyond_promise(partition) {
        return Ok(());
    }
    let assigned = ghost.metadata.partition(partition);
    let is_electable = assigned.is_some_and(|it| it.isr.contains(&node) || it.elr.contains(&node));
    // What is missing in a log that nobody expected to be whole (`Ghost::padded`) is nothing that it takes back.
    let has_reason = ghost.damaged.contains(&key)
        || shadow.damaged > 0
        || seen.log_start_offset == seen.log_end_offset && misses_removals(ghost, key);
    if has_reason && !is_electable {
        return Ok(());
    }
    let committed = ghost.true_end(partition).min(shadow.agrees_to);
    require(seen.log_end_offset >= committed, "S5", || {
        format!(
            "node {node} truncates {partition} from {} to {}, although it agrees with what was committed up to {committed}",
            shadow.end(),
            seen.log_end_offset
        )
    })
}
