//! Bad input to the transactional path: refused with a code that says why, and the transaction goes on as if it had not come.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tidemark_client::ErrorCode;
use tidemark_protocol::{
    Failure, TopicPartition,
    batch::{BatchBuilder, Compression},
    message::Request,
    messages::{
        Acks, CommitTransactionalOffsetsRequest, CoordinatorKind, DescribeTransactionRequest,
        Durability, EndTransactionRequest, FetchOffsetsRequest, FindCoordinatorRequest,
        GroupMember, InitProducerIdRequest, OffsetToCommit, ProducePartition, ProduceRequest,
        ProducerIdentity, TransactionalProducer,
    },
};
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, PATIENCE},
    raw::{Raw, TIMESTAMP_MS},
};

const ID: &str = "bank";
const GROUP: &str = "tellers";
const TIMEOUT_MS: u32 = 15_000;
/// Between two looks at what nobody tells.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

struct Rig {
    raw: Raw,
    partition: TopicPartition,
}

impl Rig {
    /// A connection to the one broker, a topic with two partitions, and both coordinators found.
    fn new(cluster: &Cluster) -> Result<Self> {
        let mut raw = Raw::open(cluster.broker(1)?)?;
        let partition = raw.create_topic("accounts", 2, &[])?[0];
        let mut rig = Self { raw, partition };
        for (kind, key) in [(CoordinatorKind::Transaction, ID), (CoordinatorKind::Group, GROUP)] {
            let key = key.to_owned();
            rig.ask(&FindCoordinatorRequest { kind, key, timeout_ms: TIMEOUT_MS })??;
        }
        Ok(rig)
    }

    fn ask<R: Request>(&mut self, request: &R) -> Result<Result<R::Response, Failure>> {
        Ok(self.raw.call(request, &[])?.0)
    }

    /// Asks until the answer is none that another moment would change: the coordinator has read its log, has producer ids, and
    /// what was decided before has reached everybody.
    fn ask_until<R: Request>(&mut self, request: &R) -> Result<Result<R::Response, Failure>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask(request)? {
                Err(failure) if failure.code.is_retriable() => {
                    ensure!(Instant::now() < deadline, "{failure}");
                    thread::sleep(AGAIN_AFTER);
                }
                settled => return Ok(settled),
            }
        }
    }

    fn refused<R: Request>(&mut self, request: &R, code: ErrorCode) -> Result<()>
    where
        R::Response: std::fmt::Debug,
    {
        match self.ask_until(request)? {
            Err(failure) if failure.code == code => Ok(()),
            other => bail!("not {code:?}: {other:?}"),
        }
    }

    /// Sends one record under this sequence, and says what became of it.
    fn write(
        &mut self,
        id: Option<&str>,
        producer: ProducerIdentity,
        sequence: i32,
    ) -> Result<Option<ErrorCode>> {
        let batch = batch(producer, sequence);
        let batch_bytes = u32::try_from(batch.len())?;
        let partition = self.partition;
        let request = ProduceRequest {
            acks: Acks::All,
            durability: Durability::Topic,
            timeout_ms: TIMEOUT_MS,
            partitions: vec![ProducePartition { partition, leader_epoch: None, batch_bytes }],
            transactional_id: id.map(str::to_owned),
        };
        let answer = self.raw.call(&request, &batch)?.0?;
        let outcome = answer.partitions.into_iter().next().context("an outcome")?;
        Ok(outcome.err().map(|failure| failure.code))
    }

    fn offsets(&self, producer: ProducerIdentity) -> CommitTransactionalOffsetsRequest {
        let offset = OffsetToCommit {
            partition: self.partition,
            offset: 1,
            leader_epoch: None,
            metadata: String::new(),
        };
        CommitTransactionalOffsetsRequest {
            transactional_id: ID.to_owned(),
            producer,
            group: GROUP.to_owned(),
            member: None,
            offsets: vec![offset],
            timeout_ms: TIMEOUT_MS,
        }
    }

    /// The code for the only partition of a commit.
    fn commit_code(
        &mut self,
        request: &CommitTransactionalOffsetsRequest,
    ) -> Result<Option<ErrorCode>> {
        let answer = self.ask(request)??;
        Ok(answer.partitions[0].as_ref().err().map(|failure| failure.code))
    }
}

fn batch(producer: ProducerIdentity, sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(producer.producer_id, producer.epoch, sequence);
    builder.set_transactional();
    builder.push(TIMESTAMP_MS, None, Some(b"v"), &[]);
    builder.build().expect("it is small")
}

fn init(id: &str, transaction_timeout_ms: u32) -> InitProducerIdRequest {
    let transactional_id = id.to_owned();
    let transaction =
        TransactionalProducer { transactional_id, transaction_timeout_ms, expected: None };
    InitProducerIdRequest { timeout_ms: TIMEOUT_MS, transaction: Some(transaction) }
}

fn end(producer: ProducerIdentity, commit: bool) -> EndTransactionRequest {
    EndTransactionRequest {
        transactional_id: ID.to_owned(),
        producer,
        commit,
        timeout_ms: TIMEOUT_MS,
    }
}

/// The same producer, so many epochs later.
fn later(producer: ProducerIdentity, epochs: i16) -> ProducerIdentity {
    ProducerIdentity { epoch: producer.epoch + epochs, ..producer }
}

#[test]
fn a_coordinator_refuses_what_it_has_not_given() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        rig.refused(&init(ID, 0), ErrorCode::InvalidTransactionTimeout)?;
        rig.refused(&init(ID, u32::MAX), ErrorCode::InvalidTransactionTimeout)?;
        let me = rig.ask_until(&init(ID, 60_000))??.producer;
        rig.refused(&init("", 60_000), ErrorCode::InvalidRequest)?;
        rig.refused(&init(&"x".repeat(300), 60_000), ErrorCode::InvalidRequest)?;
        let describe = DescribeTransactionRequest { transactional_id: "nobody".to_owned() };
        rig.refused(&describe, ErrorCode::UnknownTransaction)?;
        let stranger =
            EndTransactionRequest { transactional_id: "nobody".to_owned(), ..end(me, true) };
        rig.refused(&stranger, ErrorCode::InvalidProducerId)?;
        rig.refused(&end(me, true), ErrorCode::InvalidTransactionState)?;
        ensure!(rig.write(Some(ID), me, 0)?.is_none(), "the owner writes");
        rig.refused(&end(later(me, 1), true), ErrorCode::InvalidProducerEpoch)?;
        let other = ProducerIdentity { producer_id: me.producer_id + 1, ..me };
        rig.refused(&end(other, true), ErrorCode::InvalidProducerId)?;
        let next = rig.ask_until(&end(me, true))??.producer;
        ensure!(next == later(me, 1), "{next:?} after {me:?}");
        // The same once more is the same; the opposite is refused, whenever it comes.
        ensure!(rig.ask_until(&end(me, true))??.producer == next);
        rig.refused(&end(me, false), ErrorCode::InvalidTransactionState)?;
        let owner = rig.ask_until(&init(ID, 60_000))??.producer;
        rig.refused(&end(next, true), ErrorCode::ProducerFenced)?;
        ensure!(owner == later(next, 1), "{owner:?} after {next:?}");
        Ok(())
    })
}

#[test]
fn a_partition_refuses_what_is_out_of_turn() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        let me = rig.ask_until(&init(ID, 60_000))??.producer;
        let refused = |outcome: Option<ErrorCode>, code: ErrorCode| {
            ensure!(outcome == Some(code), "not {code:?}: {outcome:?}");
            Ok(())
        };
        refused(rig.write(None, me, 0)?, ErrorCode::InvalidRequest)?;
        refused(rig.write(Some("nobody"), me, 0)?, ErrorCode::InvalidProducerId)?;
        refused(rig.write(Some(ID), later(me, 1), 0)?, ErrorCode::InvalidProducerEpoch)?;
        let owners = rig.write(Some(ID), me, 0)?;
        ensure!(owners.is_none(), "the owner writes: {owners:?}");
        ensure!(rig.write(Some(ID), me, 0)?.is_none(), "and may repeat it");
        refused(rig.write(Some(ID), me, 2)?, ErrorCode::OutOfOrderSequence)?;
        let next = rig.ask_until(&end(me, true))??.producer;
        // Late, and under the epoch that was committed.
        refused(rig.write(Some(ID), me, 1)?, ErrorCode::ProducerFenced)?;
        refused(rig.write(Some(ID), next, 1)?, ErrorCode::OutOfOrderSequence)?;
        ensure!(rig.write(Some(ID), next, 0)?.is_none(), "the next transaction begins at 0");
        Ok(())
    })
}

#[test]
fn a_group_refuses_offsets_of_whoever_may_not_commit_them() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        let me = rig.ask_until(&init(ID, 60_000))??.producer;
        let good = rig.offsets(me);
        let stranger = CommitTransactionalOffsetsRequest {
            transactional_id: "nobody".to_owned(),
            ..good.clone()
        };
        rig.refused(&stranger, ErrorCode::InvalidProducerId)?;
        let ahead = rig.offsets(later(me, 1));
        rig.refused(&ahead, ErrorCode::InvalidProducerEpoch)?;
        let member = GroupMember { member: "a".to_owned(), epoch: 1, instance: None };
        let unknown = CommitTransactionalOffsetsRequest { member: Some(member), ..good.clone() };
        rig.refused(&unknown, ErrorCode::UnknownMember)?;
        let mut oversized = good.clone();
        oversized.offsets[0].metadata = "m".repeat(5_000);
        let code = rig.commit_code(&oversized)?;
        ensure!(code == Some(ErrorCode::OffsetMetadataTooLarge), "{code:?}");
        let mut elsewhere = good.clone();
        elsewhere.offsets[0].partition.partition = 7;
        let code = rig.commit_code(&elsewhere)?;
        ensure!(code == Some(ErrorCode::UnknownTopicOrPartition), "{code:?}");
        ensure!(
            rig.commit_code(&good)?.is_none(),
            "an outsider commits for a group without members"
        );
        let fetch = FetchOffsetsRequest {
            group: GROUP.to_owned(),
            member: None,
            partitions: Some(vec![rig.partition]),
            require_stable: true,
        };
        let pending = rig.ask(&fetch)??.partitions.remove(0).outcome;
        let code = pending.as_ref().err().map(|failure| failure.code);
        ensure!(code == Some(ErrorCode::UnstableOffset), "{pending:?}");
        let next = rig.ask_until(&end(me, true))??.producer;
        // The answer to the commit says that it is decided: the group hears of it a moment later.
        let committed = loop {
            match rig.ask(&fetch)??.partitions.remove(0).outcome {
                Err(failure) if failure.code == ErrorCode::UnstableOffset => {
                    thread::sleep(AGAIN_AFTER);
                }
                settled => break settled?,
            }
        };
        ensure!(committed.as_ref().is_some_and(|it| it.offset == 1), "{committed:?}");
        rig.refused(&good, ErrorCode::ProducerFenced)?;
        let more = rig.offsets(next);
        ensure!(rig.commit_code(&more)?.is_none(), "the next transaction goes on");
        Ok(())
    })
}
