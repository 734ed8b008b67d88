//! S11, bounds: log start ≤ high watermark ≤ log end, and flushed ≤ log end, on every replica that has a role. Before the
//! metadata of this run has given it one, a log has no watermark yet, and may begin anywhere; one whose disk has failed when it
//! had begun to start over has none any more.

use tidemark_protocol::NodeId;

use super::{Observed, Verdict, require};

pub(super) fn check(node: NodeId, seen: &Observed) -> Verdict {
    let Observed { log_start_offset, log_end_offset, flushed_offset, high_watermark, .. } = *seen;
    let has_role = seen.led.is_some() || seen.followed.is_some();
    let in_order = (log_start_offset <= high_watermark || !has_role)
        && high_watermark <= log_end_offset
        && log_start_offset <= flushed_offset
        && flushed_offset <= log_end_offset
        && seen.shown_watermark <= log_end_offset;
    require(in_order, "S11", || format!("node {node}: {seen:?}"))
}
