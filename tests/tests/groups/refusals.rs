//! Bad input to coordinators: refused with a code that says why, and nothing changes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tidemark_client::ErrorCode;
use tidemark_protocol::{
    Failure, TopicPartition,
    message::Request,
    messages::{
        CommitOffsetsRequest, CoordinatorKind, CreateTopicRequest, FindCoordinatorRequest,
        GroupHeartbeatRequest, GroupHeartbeatResponse, GroupMember, GroupSubscription,
        OffsetToCommit,
    },
};
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, PATIENCE},
    raw::{Raw, batch},
};

fn heartbeat(member: &str, sequence: u64) -> GroupHeartbeatRequest {
    GroupHeartbeatRequest {
        group: "billing".to_owned(),
        member: member.to_owned(),
        epoch: 0,
        sequence,
        instance: None,
        rack: None,
        client_id: "test".to_owned(),
        subscription: Some(GroupSubscription { topics: vec!["orders".to_owned()], regex: None }),
        rebalance_timeout_ms: Some(10_000),
        assignor: None,
        owned: None,
        missed_processing_deadline: false,
        wait_ms: 0,
    }
}

fn commit(epoch: Option<i32>, offset: OffsetToCommit) -> CommitOffsetsRequest {
    let member = |epoch| GroupMember { member: "a".to_owned(), epoch, instance: None };
    CommitOffsetsRequest {
        group: "billing".to_owned(),
        member: epoch.map(member),
        offsets: vec![offset],
        timeout_ms: 10_000,
    }
}

struct Rig {
    raw: Raw,
    partition: TopicPartition,
}

impl Rig {
    /// A connection to the one broker, a topic with two partitions, and a coordinator that has been found.
    fn new(cluster: &Cluster) -> Result<Self> {
        let mut raw = Raw::open(cluster.broker(1)?)?;
        let partition = raw.create_topic("orders", 2, &[])?[0];
        let find = FindCoordinatorRequest {
            kind: CoordinatorKind::Group,
            key: "billing".to_owned(),
            timeout_ms: 10_000,
        };
        raw.call(&find, &[])?.0?;
        let mut rig = Self { raw, partition };
        rig.await_loaded()?;
        Ok(rig)
    }

    /// A coordinator that was just made reads its log first, and tells nobody when it is done.
    fn await_loaded(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let stranger = GroupHeartbeatRequest { epoch: 1, ..heartbeat("nobody", 1) };
        while let Err(failure) = self.ask(&stranger)?
            && failure.code == ErrorCode::CoordinatorLoading
        {
            ensure!(Instant::now() < deadline, "{failure}");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn ask<R: Request>(&mut self, request: &R) -> Result<Result<R::Response, Failure>> {
        Ok(self.raw.call(request, &[])?.0)
    }

    /// Joins, and comes again until it has its partitions.
    fn join(&mut self, member: &str) -> Result<GroupHeartbeatResponse> {
        let mut answer = self.ask(&heartbeat(member, 1))??;
        let mut sequence = 1;
        while answer.assignment.as_ref().is_none_or(Vec::is_empty) {
            sequence += 1;
            let next = GroupHeartbeatRequest {
                epoch: answer.epoch,
                owned: Some(Vec::new()),
                subscription: None,
                ..heartbeat(member, sequence)
            };
            answer = self.ask(&next)??;
        }
        Ok(answer)
    }

    fn refused<R: Request>(&mut self, request: &R, code: ErrorCode) -> Result<()>
    where
        R::Response: std::fmt::Debug,
    {
        match self.ask(request)? {
            Err(failure) if failure.code == code => Ok(()),
            other => anyhow::bail!("not {code:?}: {other:?}"),
        }
    }

    fn offset(&self, partition: u32, metadata: &str) -> OffsetToCommit {
        OffsetToCommit {
            partition: TopicPartition { partition, ..self.partition },
            offset: 1,
            leader_epoch: None,
            metadata: metadata.to_owned(),
        }
    }

    /// The code for the only partition of a commit.
    fn commit_code(&mut self, request: &CommitOffsetsRequest) -> Result<Option<ErrorCode>> {
        let answer = self.ask(request)??;
        Ok(answer.partitions[0].as_ref().err().map(|failure| failure.code))
    }
}

#[test]
fn heartbeats_that_make_no_sense_are_refused() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        let regex = |regex: &str| GroupHeartbeatRequest {
            subscription: Some(GroupSubscription {
                topics: Vec::new(),
                regex: Some(regex.to_owned()),
            }),
            ..heartbeat("a", 1)
        };
        rig.refused(&regex("orders-("), ErrorCode::InvalidRegex)?;
        rig.refused(&regex(&"x".repeat(2_000)), ErrorCode::InvalidRegex)?;
        let unknown = GroupHeartbeatRequest { epoch: 3, ..heartbeat("nobody", 1) };
        rig.refused(&unknown, ErrorCode::UnknownMember)?;
        let nameless = GroupHeartbeatRequest { group: String::new(), ..heartbeat("a", 1) };
        rig.refused(&nameless, ErrorCode::InvalidGroup)?;
        let long = GroupHeartbeatRequest { member: "m".repeat(300), ..heartbeat("a", 1) };
        rig.refused(&long, ErrorCode::InvalidGroup)?;
        let assignor =
            GroupHeartbeatRequest { assignor: Some("best".to_owned()), ..heartbeat("a", 1) };
        rig.refused(&assignor, ErrorCode::UnknownAssignor)?;
        let nothing = GroupHeartbeatRequest { subscription: None, ..heartbeat("a", 1) };
        rig.refused(&nothing, ErrorCode::InvalidRequest)?;

        let joined = rig.join("a")?;
        let ahead = GroupHeartbeatRequest { epoch: joined.epoch + 5, ..heartbeat("a", 100) };
        rig.refused(&ahead, ErrorCode::FencedMemberEpoch)?;
        rig.refused(&heartbeat("a", 1), ErrorCode::StaleRequest)
    })
}

#[test]
fn commits_of_others_and_of_too_much_are_refused_one_by_one() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        let joined = rig.join("a")?;
        let epoch = Some(joined.epoch);
        let good = commit(epoch, rig.offset(0, "m"));
        ensure!(rig.commit_code(&good)?.is_none(), "a member commits for what it holds");
        let oversized = commit(epoch, rig.offset(0, &"m".repeat(5_000)));
        let code = rig.commit_code(&oversized)?;
        ensure!(code == Some(ErrorCode::OffsetMetadataTooLarge), "{code:?}");
        let elsewhere = commit(epoch, rig.offset(7, ""));
        let code = rig.commit_code(&elsewhere)?;
        ensure!(code == Some(ErrorCode::NotAssigned), "{code:?}");
        let ahead = commit(Some(joined.epoch + 1), rig.offset(0, ""));
        rig.refused(&ahead, ErrorCode::FencedMemberEpoch)?;
        let outsider = commit(None, rig.offset(0, ""));
        rig.refused(&outsider, ErrorCode::GroupNotEmpty)?;
        let stranger = CommitOffsetsRequest {
            member: Some(GroupMember { member: "b".to_owned(), epoch: 1, instance: None }),
            ..outsider
        };
        rig.refused(&stranger, ErrorCode::UnknownMember)
    })
}

#[test]
fn the_clusters_own_topics_belong_to_the_cluster() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        let mut rig = Rig::new(cluster)?;
        let create = CreateTopicRequest {
            name: "__mine".to_owned(),
            partitions: Some(1),
            replication_factor: Some(1),
            settings: std::collections::BTreeMap::new(),
            validate_only: false,
            timeout_ms: 10_000,
        };
        rig.refused(&create, ErrorCode::InvalidTopicName)?;
        let find = FindCoordinatorRequest {
            kind: CoordinatorKind::Group,
            key: "billing".to_owned(),
            timeout_ms: 10_000,
        };
        let groups = rig.ask(&find)??.partition;
        let refused = rig.raw.produce(groups, &batch(&[b"x"]))?;
        let code = refused.as_ref().err().map(|failure| failure.code);
        ensure!(code == Some(ErrorCode::InvalidTopicName), "{refused:?}");
        Ok(())
    })
}

#[test]
fn whoever_does_not_coordinate_says_so() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let find = FindCoordinatorRequest {
            kind: CoordinatorKind::Group,
            key: "billing".to_owned(),
            timeout_ms: 30_000,
        };
        let mut raw = Raw::open(cluster.broker(1)?)?;
        let found = raw.call(&find, &[])?.0?;
        let other = cluster.ids().into_iter().find(|id| *id != found.broker);
        let other = cluster.broker(other.unwrap_or(1))?;
        let refused = Raw::open(other)?.call(&heartbeat("a", 1), &[])?.0;
        let code = refused.as_ref().err().map(|failure| failure.code);
        ensure!(code == Some(ErrorCode::NotCoordinator), "{refused:?}");
        Ok(())
    })
}
