//! S20, last stable offset: it is at most the first offset of a transaction whose end is not committed; and a reader of what
//! is decided is given nothing of a transaction that was aborted, or is not decided.

use tidemark_protocol::{Offset, TopicPartition, batch::BatchHeader};

use super::{
    Verdict, require,
    scan::{Coordinated, Scan},
};

pub(super) fn check(scan: &Scan, partition: TopicPartition, shown: Offset) -> Verdict {
    let Some(committed) = scan.partitions.get(&partition) else { return Ok(()) };
    let stable = committed.last_stable_offset();
    require(shown <= stable, "S20", || {
        format!("{partition}: readers are shown {shown}, decided is up to {stable}")
    })
}

pub(super) fn check_read(
    coordinated: &Coordinated,
    partition: TopicPartition,
    header: &BatchHeader,
) -> Verdict {
    if !header.is_transactional() {
        return Ok(());
    }
    let decision = coordinated.decisions.get(&(header.producer_id, header.producer_epoch + 1));
    require(decision.is_some_and(|decision| decision.commit), "S20", || {
        format!(
            "{partition}: a reader was given {} of producer {} in epoch {}; decided was {decision:?}",
            header.base_offset, header.producer_id, header.producer_epoch
        )
    })
}
