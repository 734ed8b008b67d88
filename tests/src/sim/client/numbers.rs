//! The numbers of a producer's batches, as the shipped client counts them: every partition by itself, in an epoch of its
//! own.

use std::collections::BTreeMap;

use tidemark_protocol::{Offset, TopicPartition, messages::ProducerIdentity};

/// The place of a batch among those of its producer in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    pub producer: ProducerIdentity,
    /// Of the first record.
    pub sequence: i32,
}

/// A batch that is written, as a broker says.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub partition: TopicPartition,
    pub number: Number,
    pub offset: Offset,
}

/// How far a producer has counted.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    identity: Option<ProducerIdentity>,
    next: BTreeMap<TopicPartition, Number>,
}

impl Numbers {
    pub(super) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    pub(super) fn identify(&mut self, identity: ProducerIdentity) {
        self.identity = Some(identity);
    }

    /// Everything is counted anew, as this producer.
    pub(super) fn begin_as(&mut self, identity: ProducerIdentity) {
        self.identity = Some(identity);
        self.next.clear();
    }

    /// The number of the next batch, which has so many records.
    pub(super) fn take(&mut self, partition: TopicPartition, records: u32) -> Option<Number> {
        let fresh = Number { producer: self.identity?, sequence: 0 };
        let next = self.next.entry(partition).or_insert(fresh);
        let number = *next;
        next.sequence += i32::try_from(records).expect("a few");
        Some(number)
    }

    /// A batch will not be sent again. What nobody has written leaves its number to the next; where nobody knows, its epoch
    /// is over: counting begins anew in the next, in which nothing sent before can be written.
    pub(super) fn give_up(&mut self, partition: TopicPartition, number: Number, is_over: bool) {
        let Some(next) = self.next.get_mut(&partition) else { return };
        if next.producer != number.producer {
            return;
        }
        *next = number;
        if is_over {
            let ProducerIdentity { producer_id, epoch } = number.producer;
            let producer = ProducerIdentity { producer_id, epoch: epoch + 1 };
            *next = Number { producer, sequence: 0 };
        }
    }
}
