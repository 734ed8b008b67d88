//! S12, minimum ISR gate: the watermark does not move while the committed in-sync set is below its minimum.

use tidemark_protocol::Offset;

use super::{Observed, ReplicaKey, Verdict, ghost::Led, require};

pub(super) fn check(
    (node, partition): ReplicaKey,
    led_before: &Option<Led>,
    watermark_before: Offset,
    seen: &Observed,
) -> Verdict {
    let (Some(before), Some(now)) = (led_before, &seen.led) else { return Ok(()) };
    if before.epoch != now.epoch || seen.high_watermark <= watermark_before {
        return Ok(());
    }
    // Before or after: within one step the set may have grown first, or the watermark may have moved first.
    let had_enough = |led: &Led| led.isr.len() >= led.min_insync_replicas;
    // Deletion moves it along: what is below the log start was committed.
    let by_deletion = seen.high_watermark == seen.log_start_offset;
    require(had_enough(before) || had_enough(now) || by_deletion, "S12", || {
        format!(
            "node {node} moves the watermark of {partition} from {watermark_before} to {} with {:?} in sync, of at least {}",
            seen.high_watermark, now.isr, now.min_insync_replicas
        )
    })
}
