//! Administration of consumer groups. Each call goes to the group's coordinator, wherever that is by then.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use futures_util::future::join_all;
use tidemark_protocol::{
    Failure, Offset, TopicId, TopicPartition,
    message::Request,
    messages::{
        CommitOffsetsRequest, DeleteGroupRequest, DeleteOffsetsRequest, DescribeGroupRequest,
        DescribeGroupResponse, DescribeLagRequest, FetchOffsetsRequest, FetchedOffset, GroupLag,
        GroupListing, GroupSeek, ListGroupsRequest, MetadataRequest, OffsetToCommit,
        RemoveMemberRequest, SeekGroupRequest, SeekHistoryRequest, SeekTarget, UnavailableGroups,
        UndoSeekRequest,
    },
};

use super::Admin;
use crate::{
    cluster::{Repeat, Target},
    error::AdminError,
    group::coordinator::Coordinator,
};

/// The groups of a cluster.
#[derive(Clone, Debug, Default)]
pub struct GroupList {
    /// Sorted by name.
    pub groups: Vec<GroupListing>,
    /// Coordinators that could not say which groups they have: the list is not complete.
    pub unavailable: Vec<UnavailableGroups>,
    /// Brokers that could not be asked, and why.
    pub unreachable: Vec<(u32, AdminError)>,
}

impl Admin {
    /// Every group, as far as its coordinator can be asked.
    pub async fn list_groups(&self) -> Result<GroupList, AdminError> {
        let brokers = self.metadata(Some(Vec::new())).await?.brokers;
        let serving = brokers.iter().filter(|broker| !broker.fenced).map(|broker| broker.id);
        let asked = serving
            .map(async |id| (id, self.question(&Target::Broker(id), &ListGroupsRequest {}).await));
        let mut list = GroupList::default();
        for (broker, answer) in join_all(asked).await {
            match answer {
                Ok(mut answer) => {
                    list.groups.append(&mut answer.groups);
                    list.unavailable.append(&mut answer.unavailable);
                }
                Err(error) => list.unreachable.push((broker, error)),
            }
        }
        list.groups.sort_by(|left, right| left.group.cmp(&right.group));
        // One that moved while others were asked may have been told of twice.
        list.groups.dedup_by(|left, right| left.group == right.group);
        Ok(list)
    }

    /// One group in full.
    pub async fn describe_group(&self, group: &str) -> Result<DescribeGroupResponse, AdminError> {
        let request = DescribeGroupRequest { group: group.to_owned() };
        self.ask_group(group, &request, Repeat::Question).await
    }

    /// How far a group is behind, in every partition that it reads or has committed an offset for.
    pub async fn group_lag(&self, group: &str) -> Result<Vec<GroupLag>, AdminError> {
        let request = DescribeLagRequest { group: group.to_owned(), timeout_ms: self.timeout_ms() };
        Ok(self.ask_group(group, &request, Repeat::Question).await?.partitions)
    }

    /// What a group has committed: for these partitions, or (`None`) for all it has.
    pub async fn fetch_offsets(
        &self,
        group: &str,
        partitions: Option<Vec<TopicPartition>>,
    ) -> Result<Vec<FetchedOffset>, AdminError> {
        let request = FetchOffsetsRequest {
            group: group.to_owned(),
            member: None,
            partitions,
            require_stable: false,
        };
        Ok(self.ask_group(group, &request, Repeat::Question).await?.partitions)
    }

    /// Commits offsets for a group without members: one outcome each, in order.
    pub async fn commit_offsets(
        &self,
        group: &str,
        offsets: Vec<OffsetToCommit>,
    ) -> Result<Vec<Result<(), Failure>>, AdminError> {
        let timeout_ms = self.timeout_ms();
        let request =
            CommitOffsetsRequest { group: group.to_owned(), member: None, offsets, timeout_ms };
        Ok(self.ask_group(group, &request, Repeat::Always).await?.partitions)
    }

    /// Sets offsets of a group without members; answers what changed, or with `dry_run` would. `by` says who asks.
    pub async fn seek_group(
        &self,
        group: &str,
        by: &str,
        offsets: impl IntoIterator<Item = (TopicPartition, Offset)>,
        dry_run: bool,
    ) -> Result<GroupSeek, AdminError> {
        let target = |(partition, offset)| SeekTarget { partition, offset };
        let request = SeekGroupRequest {
            group: group.to_owned(),
            by: by.to_owned(),
            offsets: offsets.into_iter().map(target).collect(),
            dry_run,
            timeout_ms: self.timeout_ms(),
        };
        let repeat = if dry_run { Repeat::Question } else { Repeat::IfNotDone };
        Ok(self.ask_group(group, &request, repeat).await?.seek)
    }

    /// Brings back what a change from outside replaced; `None`: the last one.
    pub async fn undo_seek(
        &self,
        group: &str,
        by: &str,
        id: Option<u64>,
    ) -> Result<GroupSeek, AdminError> {
        let (timeout_ms, by) = (self.timeout_ms(), by.to_owned());
        let request = UndoSeekRequest { group: group.to_owned(), by, id, timeout_ms };
        Ok(self.ask_group(group, &request, Repeat::IfNotDone).await?.seek)
    }

    /// The changes from outside that a group remembers, oldest first.
    pub async fn seek_history(&self, group: &str) -> Result<Vec<GroupSeek>, AdminError> {
        let request = SeekHistoryRequest { group: group.to_owned() };
        Ok(self.ask_group(group, &request, Repeat::Question).await?.seeks)
    }

    /// Removes committed offsets: one outcome each, in order.
    pub async fn delete_offsets(
        &self,
        group: &str,
        partitions: Vec<TopicPartition>,
    ) -> Result<Vec<Result<(), Failure>>, AdminError> {
        let timeout_ms = self.timeout_ms();
        let request = DeleteOffsetsRequest { group: group.to_owned(), partitions, timeout_ms };
        Ok(self.ask_group(group, &request, Repeat::Always).await?.partitions)
    }

    /// Forgets a group without members, with its offsets.
    pub async fn delete_group(&self, group: &str) -> Result<(), AdminError> {
        let request = DeleteGroupRequest { group: group.to_owned(), timeout_ms: self.timeout_ms() };
        self.ask_group(group, &request, Repeat::IfNotDone).await.map(drop)
    }

    /// Puts a member out of its group, by its id or by its name as a static member.
    pub async fn remove_member(
        &self,
        group: &str,
        name: &str,
        is_instance: bool,
    ) -> Result<(), AdminError> {
        let request = RemoveMemberRequest {
            group: group.to_owned(),
            name: name.to_owned(),
            is_instance,
            timeout_ms: self.timeout_ms(),
        };
        self.ask_group(group, &request, Repeat::IfNotDone).await.map(drop)
    }

    /// Names of topics, as far as there are such topics.
    pub async fn topic_names(
        &self,
        ids: impl IntoIterator<Item = TopicId>,
    ) -> Result<BTreeMap<TopicId, Arc<str>>, AdminError> {
        let topic_ids: Vec<_> = ids.into_iter().collect();
        let request = MetadataRequest { topics: Some(Vec::new()), topic_ids };
        let answer = self.question(&Target::Any, &request).await?;
        let named = answer.topics.iter().map(|topic| (topic.id, topic.name.as_str().into()));
        let names = named.collect();
        self.cluster.learn(answer, &[]);
        Ok(names)
    }

    async fn ask_group<R: Request>(
        &self,
        group: &str,
        request: &R,
        repeat: Repeat,
    ) -> Result<R::Response, AdminError> {
        Ok(self.coordinator_of(group).ask(request, repeat, self.deadline()).await?)
    }

    fn coordinator_of(&self, group: &str) -> Arc<Coordinator> {
        let mut last = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(known) if known.group() == group => known.clone(),
            _ => {
                let new = Arc::new(Coordinator::new(self.cluster.clone(), group.into()));
                last.insert(new).clone()
            }
        }
    }
}
