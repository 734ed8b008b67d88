//! S5, log matching: below its own watermark every replica holds what was committed. Since that is the same for all of
//! them, any two agree below the smaller of their watermarks. Together with S1: nothing committed is ever replaced.

use std::collections::BTreeSet;

use tidemark_protocol::TopicPartition;

use super::{
    Ghost, Observed, ReplicaKey, Verdict,
    ghost::{Shadow, Truth},
    require,
};

pub(super) fn check(ghost: &Ghost, key: ReplicaKey) -> Verdict {
    let (node, partition) = key;
    if ghost.lossy.contains(&partition) {
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

/// A replica takes back the end of its log. What was committed there must still be owed by nobody.
pub(super) fn check_truncation(
    (node, partition): ReplicaKey,
    shadow: &Shadow,
    seen: &Observed,
    truth: Option<&Truth>,
    lossy: &BTreeSet<TopicPartition>,
) -> Verdict {
    let is_led = shadow.led.as_ref().map(|led| led.epoch) == seen.led.as_ref().map(|led| led.epoch)
        && seen.led.is_some();
    require(!is_led, "S5", || format!("node {node} truncates {partition}, which it leads"))?;
    if lossy.contains(&partition) {
        return Ok(());
    }
    let committed = truth.map_or(0, Truth::end).min(shadow.agrees_to);
    require(seen.log_end_offset >= committed, "S5", || {
        format!(
            "node {node} truncates {partition} from {} to {}, although it agrees with what was committed up to {committed}",
            shadow.end(),
            seen.log_end_offset
        )
    })
}
