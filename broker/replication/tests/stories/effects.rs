//! Effects and what a leader knows of its followers, as a story tells them.

use tidemark_protocol::messages::ReplicaRefusal;
use tidemark_replication::{AnswerTo, Effect, FollowerStatus, Receipt, ReplicaId};

pub(crate) fn describe(effect: &Effect) -> String {
    match effect {
        Effect::SetHighWatermark { offset } => format!("high watermark {offset}"),
        Effect::RequestFlush { end_offset } => format!("flush up to {end_offset}"),
        Effect::Reply { token, outcome: Err(code) } => format!("reply {token}: {}", code.name()),
        Effect::Reply { token, outcome: Ok(receipt) } => {
            format!("reply {token}: {}", told(receipt))
        }
        Effect::AssignEpoch { epoch, start_offset } => format!("epoch {epoch} from {start_offset}"),
        Effect::AlterIsr(change) => {
            let isr: Vec<_> = change.isr.iter().map(replica).collect();
            format!("ask for isr {} on {}", isr.join(","), change.partition_epoch)
        }
        Effect::Serve { to, offset } => format!("serve {} from {offset}", answer_to(to)),
        Effect::ShareWatermark { to, high_watermark, log_start_offset } => {
            format!("tell {} watermark {high_watermark}, start {log_start_offset}", answer_to(to))
        }
        Effect::Refuse { to, refusal } => format!("refuse {}: {}", answer_to(to), refused(refusal)),
        Effect::Fetch { leader, position } => format!(
            "to {leader}, round {} in {}: at {}, flushed {}, last {}",
            position.round,
            position.leader_epoch,
            position.fetch_offset,
            position.flushed_offset,
            position.last_fetched_epoch.map_or("none".to_owned(), |epoch| epoch.to_string()),
        ),
        Effect::Append { leader_epoch, removals_end: 0 } => {
            format!("append, epochs up to {leader_epoch}")
        }
        Effect::Append { leader_epoch, removals_end } => format!(
            "append, epochs up to {leader_epoch}, removals up to {removals_end} may be missing"
        ),
        Effect::Truncate { offset } => format!("truncate to {offset}"),
        Effect::StartAt { offset } => format!("start over at {offset}"),
        Effect::SetLogStart { offset } => format!("trim to {offset}"),
    }
}

pub(crate) fn status(follower: FollowerStatus) -> String {
    let FollowerStatus { id, log_end_offset, flushed_offset, .. } = follower;
    format!(
        "{id}: {}, {}, at {log_end_offset}, flushed {flushed_offset}, caught up at {}",
        if follower.is_in_sync { "in sync" } else { "out of sync" },
        if follower.is_known { "known" } else { "unknown" },
        follower.caught_up_ms.map_or("?".to_owned(), |ms| format!("{ms}ms")),
    )
}

fn told(receipt: &Receipt) -> String {
    let Receipt { base_offset, end_offset, leader_epoch, durability, .. } = receipt;
    format!(
        "{base_offset}..{end_offset} in epoch {leader_epoch}, {durability:?}, memory on {}, disk on {}",
        receipt.replicas_memory, receipt.replicas_durable,
    )
}

fn refused(refusal: &ReplicaRefusal) -> String {
    match refusal {
        ReplicaRefusal::Diverging { epoch, end_offset } => {
            format!("diverging, epoch {epoch} ends at {end_offset}")
        }
        ReplicaRefusal::OutOfRange { log_start_offset, log_end_offset } => {
            format!("out of range, the log is {log_start_offset}..{log_end_offset}")
        }
        ReplicaRefusal::Error { code } => code.name().to_owned(),
    }
}

fn answer_to(to: &AnswerTo) -> String {
    format!("{} round {} in {}", replica(&to.follower), to.round, to.leader_epoch)
}

fn replica(replica: &ReplicaId) -> String {
    let ReplicaId { broker_id, broker_epoch } = replica;
    if *broker_epoch == 1 { broker_id.to_string() } else { format!("{broker_id}@{broker_epoch}") }
}
