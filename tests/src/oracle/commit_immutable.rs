//! S1, commit immutable: what some leader has once let its watermark pass stays what it is, whoever leads.

use super::{Ghost, Observed, ReplicaKey, Verdict, violation};

/// A leader's watermark has passed what nobody had committed before: now that is what is committed.
pub(super) fn advance(ghost: &mut Ghost, key: ReplicaKey, seen: &Observed) -> Verdict {
    let (node, partition) = key;
    let shadow = &ghost.replicas[&key];
    let truth = ghost.truths.entry(partition).or_default();
    while truth.end() < seen.high_watermark {
        let at = truth.end();
        if at >= shadow.end() {
            let text = format!(
                "node {node} commits {partition} to {} and has no {at}",
                seen.high_watermark
            );
            return Err(violation("S1", text));
        }
        truth.push(shadow.mark(at));
    }
    Ok(())
}
