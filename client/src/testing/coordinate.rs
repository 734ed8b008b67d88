//! What the fake broker does as the coordinator of groups and transactions: it takes everything it is asked to, remembers
//! transactional ids and the order in which offsets were committed, and checks nothing.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure, Offset, TopicId, TopicPartition,
    frame::Frame,
    message::Api,
    messages::{
        CommitTransactionalOffsetsRequest, CommitTransactionalOffsetsResponse,
        EndTransactionRequest, EndTransactionResponse, FindCoordinatorResponse,
        InitProducerIdRequest, InitProducerIdResponse, ListTransactionsResponse, ListedTransaction,
        ProducerIdentity, TransactionStatus, UnavailableTransactions,
    },
};

use super::{
    World, locked,
    serve::{decode, head},
};

/// What one broker coordinates.
#[derive(Debug, Default)]
pub(super) struct Coordinated {
    transactional_ids: BTreeMap<String, ProducerIdentity>,
    /// In the order in which they were carried out.
    pub(super) transactional_offsets: Vec<(ProducerIdentity, Offset)>,
}

impl World {
    /// The answer of a coordinator, whatever is asked for. `refused`: by the partition that it is, of those that lists are of.
    pub(super) fn coordinate(
        &self,
        api: Api,
        frame: &Frame,
        refused: Option<ErrorCode>,
    ) -> io::Result<Bytes> {
        let partition = TopicPartition { topic_id: TopicId([0; 16]), partition: 0 };
        match api {
            Api::FindCoordinator => {
                let found = FindCoordinatorResponse { broker: self.id, partition, leader_epoch: 0 };
                head(frame, &Ok(found))
            }
            Api::InitProducerId => {
                let request: InitProducerIdRequest = decode(frame)?;
                let producer_id = self.shared.next_producer_id();
                let producer = ProducerIdentity { producer_id, epoch: 0 };
                if let Some(transaction) = request.transaction {
                    let ids = &mut locked(&self.coordinated).transactional_ids;
                    ids.insert(transaction.transactional_id, producer);
                }
                head(frame, &Ok(InitProducerIdResponse { producer }))
            }
            Api::CommitTransactionalOffsets => {
                let request: CommitTransactionalOffsetsRequest = decode(frame)?;
                let offsets = request.offsets.iter().map(|one| (request.producer, one.offset));
                locked(&self.coordinated).transactional_offsets.extend(offsets);
                let partitions = request.offsets.iter().map(|_| Ok(())).collect();
                head(frame, &Ok(CommitTransactionalOffsetsResponse { partitions }))
            }
            Api::EndTransaction => {
                let request: EndTransactionRequest = decode(frame)?;
                let epoch = request.producer.epoch + 1;
                let producer = ProducerIdentity { epoch, ..request.producer };
                head(frame, &Ok(EndTransactionResponse { producer }))
            }
            Api::ListTransactions => {
                let coordinated = locked(&self.coordinated);
                let list = |(id, producer): (&String, &ProducerIdentity)| ListedTransaction {
                    transactional_id: id.clone(),
                    producer: *producer,
                    status: TransactionStatus::Empty,
                };
                let transactions = coordinated.transactional_ids.iter().map(list).collect();
                let failure = refused.map(|code| Failure::new(code, "injected"));
                let unavailable =
                    failure.map(|failure| UnavailableTransactions { partition, failure });
                let unavailable = unavailable.into_iter().collect();
                head(frame, &Ok(ListTransactionsResponse { transactions, unavailable }))
            }
            _ => head::<()>(frame, &Err(Failure::new(ErrorCode::UnsupportedApi, "not faked"))),
        }
    }
}
