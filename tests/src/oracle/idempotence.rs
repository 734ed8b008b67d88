//! S16, idempotence: in each partition the sequences that a producer has committed in one epoch follow each other, without a
//! gap and each once; and what a broker says is written is there, where it says.
//!
//! A producer that is not known in a partition may begin anywhere: where only the leader acknowledges, what it had before may
//! be lost with the leader. Where all do, it is there, and that is checked when it is acknowledged.

use tidemark_protocol::{TopicPartition, batch::BatchHeader};

use super::{
    Verdict, require,
    scan::{Committed, Scan},
};
use crate::sim::client::Written;

pub(super) fn check(
    committed: &Committed,
    partition: TopicPartition,
    header: &BatchHeader,
) -> Verdict {
    let known = committed.producers.get(&header.producer_id);
    let next = known.map_or(header.base_sequence, |producer| {
        let same_epoch = producer.epoch == header.producer_epoch;
        producer.next_sequence.filter(|_| same_epoch).unwrap_or(0)
    });
    require(header.base_sequence == next, "S16", || {
        format!(
            "{partition}: producer {} in epoch {} has sequence {} at {}, after which {next} was next",
            header.producer_id, header.producer_epoch, header.base_sequence, header.base_offset
        )
    })
}

pub(super) fn check_acknowledged(scan: &Scan, written: &Written) -> Verdict {
    let Written { partition, number, offset } = *written;
    let epoch = (number.producer.producer_id, number.producer.epoch);
    if scan.end(partition) <= offset {
        // Whoever leads could not read it to the end.
        return Ok(());
    }
    let committed = scan.partitions.get(&partition);
    let at = committed.and_then(|it| it.numbers.get(&(epoch, number.sequence)));
    require(at == Some(&offset), "S16", || {
        format!("{partition}: {number:?} is acknowledged at {offset}; it is committed at {at:?}")
    })
}
