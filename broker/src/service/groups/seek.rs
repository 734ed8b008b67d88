//! An administrator's changes of a group's offsets, and taking them back.

use std::sync::Arc;

use tidemark_coordinator::groups::{self, GroupRequest, GroupResponse, SeekOffsets, record};
use tidemark_protocol::{
    Failure,
    messages::{
        GroupSeek, OffsetChange, SeekGroupRequest, SeekGroupResponse, SeekHistoryRequest,
        SeekHistoryResponse, UndoSeekRequest, UndoSeekResponse,
    },
};

use super::{QUESTION_TIMEOUT_MS, ask, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn seek_group(
    broker: Arc<Broker>,
    request: SeekGroupRequest,
) -> Result<SeekGroupResponse, Failure> {
    let SeekGroupRequest { group, by, offsets, dry_run, timeout_ms } = request;
    let offsets = offsets.into_iter().map(|target| (target.partition, target.offset)).collect();
    let seek = SeekOffsets { group: group.clone(), by, offsets, dry_run };
    match ask(&broker, &group, timeout_ms, GroupRequest::SeekOffsets(seek)).await? {
        GroupResponse::SeekOffsets(seek) => Ok(SeekGroupResponse { seek: show(None, seek) }),
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn undo_seek(
    broker: Arc<Broker>,
    request: UndoSeekRequest,
) -> Result<UndoSeekResponse, Failure> {
    let UndoSeekRequest { group, by, id, timeout_ms } = request;
    let undo = groups::UndoSeek { group: group.clone(), by, id };
    match ask(&broker, &group, timeout_ms, GroupRequest::UndoSeek(undo)).await? {
        GroupResponse::UndoSeek(seek) => Ok(UndoSeekResponse { seek: show(None, seek) }),
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn seek_history(
    broker: Arc<Broker>,
    request: SeekHistoryRequest,
) -> Result<SeekHistoryResponse, Failure> {
    let asked = GroupRequest::SeekHistory { group: request.group.clone() };
    match ask(&broker, &request.group, QUESTION_TIMEOUT_MS, asked).await? {
        GroupResponse::SeekHistory(seeks) => {
            let seeks = seeks.into_iter().map(|(id, seek)| show(Some(id), seek));
            Ok(SeekHistoryResponse { seeks: seeks.collect() })
        }
        other => Err(wrong_answer(&other)),
    }
}

fn show(id: Option<u64>, seek: record::Seek) -> GroupSeek {
    let one = |change: record::SeekChange| OffsetChange {
        partition: change.partition,
        before: change.before,
        after: change.after,
    };
    GroupSeek {
        id,
        at_ms: seek.at_ms,
        by: seek.by,
        undo_of: seek.undo_of,
        changes: seek.changes.into_iter().map(one).collect(),
    }
}
