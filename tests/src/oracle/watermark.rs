//! S9, watermark monotone: within one leadership the watermark never goes back, and readers are never shown one that is
//! beyond it. (That what was committed by anybody never shrinks is how the oracles write it down.)

use tidemark_protocol::Offset;

use super::{Observed, ReplicaKey, Verdict, ghost::Led, require};

pub(super) fn check(
    (node, partition): ReplicaKey,
    led_before: &Option<Led>,
    watermark_before: Offset,
    seen: &Observed,
) -> Verdict {
    let shown = seen.shown_watermark <= seen.high_watermark;
    require(shown, "S9", || {
        format!("node {node} shows more of {partition} than is committed: {seen:?}")
    })?;
    let epoch = |led: &Option<Led>| led.as_ref().map(|led| led.epoch);
    let is_same = seen.led.is_some() && epoch(led_before) == epoch(&seen.led);
    require(!is_same || seen.high_watermark >= watermark_before, "S9", || {
        format!(
            "node {node} leads {partition} and takes its watermark back from {watermark_before} to {}",
            seen.high_watermark
        )
    })
}
