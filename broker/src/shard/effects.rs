//! What a replica asks for, done: a flat match, one arm per effect.

use tidemark_replication::Effect;

use super::{Hands, partition::Partition};

/// Carries out what the last step of `partition` left in `hands.effects`, in order.
pub(super) fn run(partition: &mut Partition, hands: &mut Hands) {
    let mut effects = std::mem::take(&mut hands.effects);
    for effect in effects.drain(..) {
        match effect {
            Effect::SetHighWatermark { offset } => partition.view.set_high_watermark(offset),
            Effect::Reply { token, outcome } => {
                // Every token comes from `produce`, and is answered once.
                if let Some(awaiting) = hands.awaiting.remove(&token) {
                    awaiting.answer(partition, outcome, hands);
                }
            }
            Effect::RequestFlush { end_offset } => {
                partition.flush_wanted = partition.flush_wanted.max(end_offset);
                hands.flush_soon.push(partition.view.id);
            }
            Effect::AssignEpoch { epoch, start_offset } => {
                partition.log.assign_epoch(epoch, start_offset);
            }
            other => unreachable!("there are no other replicas for {other:?}"),
        }
    }
    hands.effects = effects;
}
