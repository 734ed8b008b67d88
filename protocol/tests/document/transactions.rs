//! Samples of what producers with an identity ask, and what their transactions need between nodes.

use tidemark_protocol::messages::*;

use crate::samples::{PARTITION, Sample, api, failure, part};

const PRODUCER: ProducerIdentity = ProducerIdentity { producer_id: 1 << 40, epoch: 3 };
const ID: &str = "bank-1";

/// What clients may ask.
pub(crate) fn clients(all: &mut Vec<Sample>) {
    part(all, &PRODUCER);
    let transaction = TransactionalProducer {
        transactional_id: ID.to_owned(),
        transaction_timeout_ms: 60_000,
        expected: Some(PRODUCER),
    };
    part(all, &transaction);
    let init = InitProducerIdRequest { timeout_ms: 30_000, transaction: Some(transaction) };
    api(all, &init, InitProducerIdResponse { producer: PRODUCER });
    let end = EndTransactionRequest {
        transactional_id: ID.to_owned(),
        producer: PRODUCER,
        commit: true,
        timeout_ms: 30_000,
    };
    api(all, &end, EndTransactionResponse { producer: PRODUCER });
    let offset = OffsetToCommit {
        partition: PARTITION,
        offset: 9,
        leader_epoch: Some(3),
        metadata: String::new(),
    };
    let commit = CommitTransactionalOffsetsRequest {
        transactional_id: ID.to_owned(),
        producer: PRODUCER,
        group: "billing".to_owned(),
        member: None,
        offsets: vec![offset],
        timeout_ms: 30_000,
    };
    let partitions = vec![Ok(()), Err(failure())];
    api(all, &commit, CommitTransactionalOffsetsResponse { partitions });
    let listed = ListedTransaction {
        transactional_id: ID.to_owned(),
        producer: PRODUCER,
        status: TransactionStatus::Ongoing,
    };
    part(all, &listed);
    let unavailable = UnavailableTransactions { partition: PARTITION, failure: failure() };
    part(all, &unavailable);
    let list =
        ListTransactionsResponse { transactions: vec![listed], unavailable: vec![unavailable] };
    api(all, &ListTransactionsRequest {}, list);
    let described = DescribeTransactionResponse {
        producer: PRODUCER,
        status: TransactionStatus::Ongoing,
        transaction_timeout_ms: 60_000,
        started_ms: 1_700_000_000_000,
        updated_ms: 1_700_000_000_001,
        partitions: vec![PARTITION],
    };
    let describe = DescribeTransactionRequest { transactional_id: ID.to_owned() };
    api(all, &describe, described);
    let abort = AbortTransactionRequest { transactional_id: ID.to_owned(), timeout_ms: 30_000 };
    api(all, &abort, AbortTransactionResponse {});
}

pub(crate) fn nodes(all: &mut Vec<Sample>) {
    let join = JoinTransactionRequest {
        transactional_id: ID.to_owned(),
        producer: PRODUCER,
        partitions: vec![PARTITION],
        metadata_index: 40,
        timeout_ms: 2000,
    };
    api(all, &join, JoinTransactionResponse {});
    let markers = WriteMarkersRequest {
        producer: PRODUCER,
        coordinator_epoch: 2,
        commit: false,
        partitions: vec![PARTITION],
        timeout_ms: 10_000,
    };
    let partitions = vec![Ok(()), Err(failure())];
    api(all, &markers, WriteMarkersResponse { partitions });
}

/// What comes with batches for `ReadCommitted` readers.
pub(crate) fn stable(all: &mut Vec<Sample>) -> StablePart {
    let aborted = AbortedRecords { producer_id: 1 << 40, first_offset: 4, last_offset: 8 };
    part(all, &aborted);
    let stable = StablePart { last_stable_offset: 9, aborted: vec![aborted] };
    part(all, &stable);
    stable
}
