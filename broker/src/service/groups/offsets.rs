//! Committed offsets: writing, reading and removing them.

use std::sync::Arc;

use tidemark_coordinator::groups::{
    self, CommitOffsets, DeleteOffsets, FetchOffsets, GroupRequest, GroupResponse,
};
use tidemark_protocol::{
    Failure,
    messages::{
        CommitOffsetsRequest, CommitOffsetsResponse, CommittedOffset, DeleteOffsetsRequest,
        DeleteOffsetsResponse, FetchOffsetsRequest, FetchOffsetsResponse, FetchedOffset,
        OffsetToCommit,
    },
};

use super::{QUESTION_TIMEOUT_MS, ask, committer, explain, in_words, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn commit_offsets(
    broker: Arc<Broker>,
    request: CommitOffsetsRequest,
) -> Result<CommitOffsetsResponse, Failure> {
    let CommitOffsetsRequest { group, member, offsets, timeout_ms } = request;
    let partitions: Vec<_> = offsets.iter().map(|one| one.partition).collect();
    let one = |one: OffsetToCommit| groups::OffsetToCommit {
        partition: one.partition,
        offset: one.offset,
        leader_epoch: one.leader_epoch,
        metadata: one.metadata,
    };
    let commit = CommitOffsets {
        group: group.clone(),
        committer: committer(member),
        offsets: offsets.into_iter().map(one).collect(),
    };
    match ask(&broker, &group, timeout_ms, GroupRequest::CommitOffsets(commit)).await? {
        GroupResponse::CommitOffsets(outcomes) => {
            let count = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            broker.metrics.groups().committed(count as u64);
            let partitions = in_words(partitions.into_iter(), outcomes);
            Ok(CommitOffsetsResponse { partitions })
        }
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn fetch_offsets(
    broker: Arc<Broker>,
    request: FetchOffsetsRequest,
) -> Result<FetchOffsetsResponse, Failure> {
    let FetchOffsetsRequest { group, member, partitions, require_stable } = request;
    let member = member.map(|member| (member.member, member.epoch));
    let fetch = FetchOffsets { group: group.clone(), member, partitions, require_stable };
    match ask(&broker, &group, QUESTION_TIMEOUT_MS, GroupRequest::FetchOffsets(fetch)).await? {
        GroupResponse::FetchOffsets(found) => {
            Ok(FetchOffsetsResponse { partitions: found.into_iter().map(show).collect() })
        }
        other => Err(wrong_answer(&other)),
    }
}

fn show(found: groups::FetchedOffset) -> FetchedOffset {
    let groups::FetchedOffset { partition, outcome } = found;
    let shown = |committed: groups::CommittedOffset| CommittedOffset {
        offset: committed.offset,
        leader_epoch: committed.leader_epoch,
        metadata: committed.metadata,
        committed_ms: committed.committed_ms,
    };
    let outcome = outcome.map(|committed| committed.map(shown));
    FetchedOffset { partition, outcome: outcome.map_err(|code| explain(code, partition)) }
}

pub(crate) async fn delete_offsets(
    broker: Arc<Broker>,
    request: DeleteOffsetsRequest,
) -> Result<DeleteOffsetsResponse, Failure> {
    let DeleteOffsetsRequest { group, partitions, timeout_ms } = request;
    let delete = DeleteOffsets { group: group.clone(), partitions: partitions.clone() };
    match ask(&broker, &group, timeout_ms, GroupRequest::DeleteOffsets(delete)).await? {
        GroupResponse::DeleteOffsets(outcomes) => {
            let partitions = in_words(partitions.into_iter(), outcomes);
            Ok(DeleteOffsetsResponse { partitions })
        }
        other => Err(wrong_answer(&other)),
    }
}
