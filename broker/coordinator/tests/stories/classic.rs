//! The verbs of the classic protocol.

use std::collections::BTreeMap;

use tidemark_coordinator::groups::{
    ClassicHeartbeat, GroupRequest, GroupResponse, JoinGroup, LeaveGroup, LeavingMember, SyncGroup,
};

use crate::{groups::GROUP, words::Words};

pub(crate) fn request(words: &Words<'_>) -> Option<GroupRequest> {
    let (group, member) = (GROUP.to_owned(), words.name.to_owned());
    let instance = words.text("instance");
    let generation = words.number("generation").unwrap_or(-1);
    Some(match words.verb {
        "join_group" => GroupRequest::JoinGroup(JoinGroup {
            group,
            member,
            new_member: words.text("new").unwrap_or_default(),
            require_known_member: words.has("known"),
            instance,
            client_id: String::new(),
            host: String::new(),
            session_timeout_ms: words.number("session").unwrap_or(1_000),
            rebalance_timeout_ms: words.number("rebalance").unwrap_or(500),
            protocol_type: words.text("type").unwrap_or("consumer".to_owned()),
            protocols: pairs(words, "protocols"),
        }),
        "sync_group" => GroupRequest::SyncGroup(SyncGroup {
            group,
            member,
            instance,
            generation,
            protocol_type: words.text("type"),
            protocol: words.text("protocol"),
            assignments: pairs(words, "assign").into_iter().collect::<BTreeMap<_, _>>(),
        }),
        "heartbeat" => {
            GroupRequest::ClassicHeartbeat(ClassicHeartbeat { group, member, instance, generation })
        }
        "leave_group" => GroupRequest::LeaveGroup(LeaveGroup {
            group,
            members: vec![LeavingMember { member, instance }],
        }),
        _ => return None,
    })
}

/// `range:x,sticky:y`.
fn pairs(words: &Words<'_>, key: &str) -> Vec<(String, Vec<u8>)> {
    let pair = |pair: &str| {
        let (name, bytes) = pair.split_once(':').unwrap_or((pair, ""));
        (name.to_owned(), bytes.as_bytes().to_vec())
    };
    words.list(key).unwrap_or_default().into_iter().map(pair).collect()
}

pub(crate) fn describe(response: &GroupResponse) -> Option<Vec<String>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Some(match response {
        GroupResponse::MemberIdRequired { member } => vec![format!("come back as {member}")],
        GroupResponse::JoinGroup(joined) => {
            let members = joined.members.iter();
            let members: Vec<String> = members
                .map(|one| format!("{} wants {}", one.member, text(&one.metadata)))
                .collect();
            let members = if members.is_empty() {
                String::new()
            } else {
                format!(": {}", members.join(", "))
            };
            let skip = if joined.skip_assignment { "; nothing to assign" } else { "" };
            vec![format!(
                "{} in generation {}, {}, led by {}{members}{skip}",
                joined.member, joined.generation, joined.protocol, joined.leader
            )]
        }
        GroupResponse::SyncGroup(synced) => {
            vec![format!("{:?} by {}", text(&synced.assignment), synced.protocol)]
        }
        GroupResponse::ClassicHeartbeat => vec!["ok".to_owned()],
        GroupResponse::LeaveGroup(results) => {
            let result = |result: &Result<(), tidemark_protocol::ErrorCode>| match result {
                Ok(()) => "ok".to_owned(),
                Err(code) => code.name().to_owned(),
            };
            results.iter().map(result).collect()
        }
        _ => return None,
    })
}
