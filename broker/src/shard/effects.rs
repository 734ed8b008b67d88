//! What a replica asks for, done: a flat match, one arm per effect.

use tidemark_replication::{Effect, Event};

use super::{Hands, partition::Partition};
use crate::replicas::Moved;

/// Carries out what the last step of `partition` left in `hands.effects`, in order. Returns the outcome that the replica
/// waits for, if there is one.
pub(super) fn run(partition: &mut Partition, hands: &mut Hands) -> Option<Event> {
    let mut effects = std::mem::take(&mut hands.effects);
    let mut outcome = None;
    let id = partition.view.id;
    for effect in effects.drain(..) {
        match effect {
            Effect::SetHighWatermark { offset } => {
                let last_stable = partition.producers.last_stable_offset(offset);
                partition.view.set_high_watermark(offset, last_stable);
            }
            Effect::Reply { token, outcome } => {
                // Every token comes from `produce`, and is answered once.
                if let Some(awaiting) = hands.awaiting.remove(&token) {
                    awaiting.answer(partition, outcome, hands);
                }
            }
            Effect::RequestFlush { end_offset } => {
                partition.flush_wanted = partition.flush_wanted.max(end_offset);
                hands.flush_soon.push(id);
            }
            Effect::AssignEpoch { epoch, start_offset } => {
                partition.log.assign_epoch(epoch, start_offset);
            }
            Effect::AlterIsr(change) => hands.port.alter_isr(id, change),
            Effect::Serve { to, offset } => hands.port.serve(id, to, offset),
            Effect::ShareWatermark { to, high_watermark, log_start_offset } => {
                hands.port.share_watermark(id, to, Moved { high_watermark, log_start_offset });
            }
            Effect::Refuse { to, refusal } => hands.port.refuse(id, to, refusal),
            Effect::Fetch { leader, position } => hands.port.position(leader, id, position),
            Effect::Append { leader_epoch, removals_end } => {
                outcome = Some(partition.append_incoming(leader_epoch, removals_end, hands));
            }
            Effect::Truncate { offset } => outcome = Some(partition.truncate(offset, hands)),
            Effect::StartAt { offset } => outcome = Some(partition.start_at(offset, hands)),
            Effect::SetLogStart { offset } => outcome = partition.follow_log_start(offset, hands),
        }
    }
    hands.effects = effects;
    outcome
}
