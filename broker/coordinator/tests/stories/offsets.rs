//! The verbs of committed offsets.

use tidemark_coordinator::groups::{
    CommitOffsets, CommitTransactionalOffsets, Committer, DeleteOffsets, EndTransaction,
    FetchOffsets, GroupRequest, GroupResponse, OffsetToCommit, SeekOffsets, UndoSeek, record::Seek,
};
use tidemark_protocol::ErrorCode;

use crate::{
    groups::GROUP,
    words::{Words, partition, show},
};

pub(crate) fn request(words: &Words<'_>) -> Option<GroupRequest> {
    let group = GROUP.to_owned();
    Some(match words.verb {
        "commit" => GroupRequest::CommitOffsets(CommitOffsets {
            group,
            committer: committer(words),
            offsets: offsets(words),
        }),
        "commit_in_transaction" => {
            GroupRequest::CommitTransactionalOffsets(CommitTransactionalOffsets {
                group,
                producer_id: words.number("pid").unwrap(),
                producer_epoch: words.number("pepoch").unwrap(),
                guard: words.number("guard"),
                committer: committer(words),
                offsets: offsets(words),
            })
        }
        "end_transaction" => GroupRequest::EndTransaction(EndTransaction {
            producer_id: words.number("pid").unwrap(),
            producer_epoch: words.number("pepoch").unwrap(),
            coordinator_epoch: words.number("coordinator").unwrap_or(1),
            commit: words.name == "commit",
        }),
        "fetch" => GroupRequest::FetchOffsets(FetchOffsets {
            group,
            member: (!words.name.is_empty())
                .then(|| (words.name.to_owned(), words.number("epoch").unwrap())),
            partitions: words.partitions("of"),
            require_stable: words.has("stable"),
        }),
        "delete_offsets" => GroupRequest::DeleteOffsets(DeleteOffsets {
            group,
            partitions: words.partitions("of").unwrap(),
        }),
        "seek" => GroupRequest::SeekOffsets(SeekOffsets {
            group,
            by: words.text("by").unwrap(),
            offsets: offsets(words).into_iter().map(|one| (one.partition, one.offset)).collect(),
            dry_run: words.has("dry_run"),
        }),
        "undo" => GroupRequest::UndoSeek(UndoSeek {
            group,
            by: words.text("by").unwrap(),
            id: words.number("id"),
        }),
        "history" => GroupRequest::SeekHistory { group },
        _ => return None,
    })
}

fn committer(words: &Words<'_>) -> Committer {
    if words.name.is_empty() {
        return Committer::Outside;
    }
    Committer::Member {
        member: words.name.to_owned(),
        epoch: words.number("epoch").or(words.number("generation")).unwrap(),
        instance: words.text("instance"),
    }
}

/// Every `a/0=5` of the line.
fn offsets(words: &Words<'_>) -> Vec<OffsetToCommit> {
    let offsets = words.rest.iter().filter_map(|word| word.split_once('='));
    let offsets = offsets.filter(|(of, _)| of.contains('/'));
    let offset = |(of, offset): (&str, &str)| OffsetToCommit {
        partition: partition(of),
        offset: offset.parse().unwrap(),
        leader_epoch: None,
        metadata: words.text("metadata").unwrap_or_default(),
    };
    offsets.map(offset).collect()
}

pub(crate) fn describe(response: &GroupResponse) -> Option<Vec<String>> {
    Some(match response {
        GroupResponse::CommitOffsets(results)
        | GroupResponse::CommitTransactionalOffsets(results)
        | GroupResponse::DeleteOffsets(results) => {
            let result = |result: &Result<(), ErrorCode>| {
                result.map_or_else(ErrorCode::name, |()| "ok").to_owned()
            };
            vec![results.iter().map(result).collect::<Vec<_>>().join(", ")]
        }
        GroupResponse::EndTransaction => vec!["ok".to_owned()],
        GroupResponse::FetchOffsets(fetched) if fetched.is_empty() => vec!["nothing".to_owned()],
        GroupResponse::FetchOffsets(fetched) => {
            let one = |of: &tidemark_coordinator::groups::FetchedOffset| {
                let what = match &of.outcome {
                    Err(code) => code.name().to_owned(),
                    Ok(None) => "nothing".to_owned(),
                    Ok(Some(found)) => {
                        format!("{} {}", found.offset, found.metadata).trim().to_owned()
                    }
                };
                format!("{}: {what}", show(&of.partition))
            };
            vec![fetched.iter().map(one).collect::<Vec<_>>().join(", ")]
        }
        GroupResponse::SeekOffsets(seek) | GroupResponse::UndoSeek(seek) => {
            vec![describe_seek(seek)]
        }
        GroupResponse::SeekHistory(seeks) if seeks.is_empty() => vec!["nothing".to_owned()],
        GroupResponse::SeekHistory(seeks) => {
            seeks.iter().map(|(id, seek)| format!("{id}: {}", describe_seek(seek))).collect()
        }
        _ => return None,
    })
}

fn describe_seek(seek: &Seek) -> String {
    let offset = |offset: Option<u64>| offset.map_or("nothing".to_owned(), |at| at.to_string());
    let changes: Vec<String> = seek
        .changes
        .iter()
        .map(|one| {
            format!("{} {} -> {}", show(&one.partition), offset(one.before), offset(one.after))
        })
        .collect();
    let undo = seek.undo_of.map(|id| format!(", undoing {id}")).unwrap_or_default();
    format!("{} by {}{undo}", changes.join(", "), seek.by)
}
