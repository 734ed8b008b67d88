//! `tidemark group describe`: one group in full: its members, what they read, how far they are, and who left and why.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{
    TimestampMs, TopicPartition,
    messages::{
        DescribeGroupResponse, MemberDescription, MemberRemoval, MemberState, RemovalReason,
    },
};

use super::{Names, lag::Lag};
use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::{self, Session},
};

/// Show one consumer group: members, partitions, lag, and who left and why
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark group describe billing
  tidemark group describe billing -o json")]
pub(crate) struct DescribeArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,
}

#[derive(Serialize)]
struct Described {
    name: String,
    state: &'static str,
    protocol: &'static str,
    epoch: i32,
    coordinator: u32,
    members: Vec<Member>,
    removals: Vec<Removal>,
    lag: Lag,
}

#[derive(Serialize)]
struct Member {
    id: String,
    instance: Option<String>,
    client_id: String,
    host: String,
    epoch: i32,
    state: &'static str,
    /// Partitions assigned to it.
    count: usize,
    assigned: Vec<String>,
    /// What it was told to give up and may still be reading.
    revoking: Vec<String>,
    /// When it is put out unless it is heard of.
    session_left_ms: Option<u64>,
}

#[derive(Serialize)]
struct Removal {
    id: String,
    client_id: String,
    host: String,
    reason: &'static str,
    at_ms: TimestampMs,
}

impl Report for Described {
    const SCHEMA: &'static str = "tidemark/group.describe/1";

    fn page(&self, page: &mut Page) {
        page.title(&format!("Group {}", self.name));
        page.fields(&[
            ("state", self.state.to_owned()),
            ("members", self.members.len().to_string()),
            ("coordinator", format!("broker {}", self.coordinator)),
            ("protocol", self.protocol.to_owned()),
            ("epoch", self.epoch.to_string()),
            ("lag", self.lag.summary()),
        ]);
        if !self.members.is_empty() {
            page.title("Members");
            let mut rows =
                Rows::new(&["MEMBER", "CLIENT", "HOST", "STATE", ">PARTITIONS", "ASSIGNED"]);
            for member in &self.members {
                rows.push(vec![
                    member.instance.clone().unwrap_or_else(|| member.id.clone()),
                    member.client_id.clone(),
                    member.host.clone(),
                    member.state.to_owned(),
                    member.count.to_string(),
                    member.assigned.join(" "),
                ]);
            }
            page.table(&rows);
        }
        if !self.lag.partitions.is_empty() {
            page.title("Partitions");
            page.table(&self.lag.rows());
        }
        if !self.removals.is_empty() {
            page.title("Left");
            let now_ms = session::now_ms();
            let mut rows = Rows::new(&["MEMBER", "CLIENT", "HOST", "WHY", "WHEN"]);
            for removal in &self.removals {
                let tone = if removal.reason == "left" { Tone::Plain } else { Tone::Bad };
                rows.push_toned(
                    vec![
                        removal.id.clone(),
                        removal.client_id.clone(),
                        removal.host.clone(),
                        removal.reason.to_owned(),
                        quantity::ago(removal.at_ms, now_ms),
                    ],
                    tone,
                );
            }
            page.table(&rows);
        }
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

pub(super) async fn run(session: &Session, args: &DescribeArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let group = admin.describe_group(&args.group).await?;
    let partitions =
        group.members.iter().flat_map(|member| member.assigned.iter().chain(&member.revoking));
    let names = Names::of(&admin, partitions).await?;
    let lag = Lag::of(&admin, &args.group).await?;
    session.output.print(&described(group, &names, lag))?;
    Ok(Exit::Success)
}

fn described(group: DescribeGroupResponse, names: &Names, lag: Lag) -> Described {
    let protocol = if group.is_classic { "classic" } else { "consumer" };
    Described {
        name: group.group,
        state: super::state(group.state),
        protocol,
        epoch: group.epoch,
        coordinator: group.coordinator,
        members: group.members.into_iter().map(|member| shown(member, names)).collect(),
        removals: group.removals.into_iter().map(removal).collect(),
        lag,
    }
}

fn shown(member: MemberDescription, names: &Names) -> Member {
    Member {
        id: member.member,
        instance: member.instance,
        client_id: member.client_id,
        host: member.host,
        epoch: member.epoch,
        state: match member.state {
            MemberState::Stable => "stable",
            MemberState::Revoking => "giving up",
            MemberState::Waiting => "waiting",
            MemberState::Away => "away",
        },
        count: member.assigned.len(),
        assigned: by_topic(&member.assigned, names),
        revoking: by_topic(&member.revoking, names),
        session_left_ms: member.session_left_ms,
    }
}

/// `topic/0,1,2` for each topic.
fn by_topic(partitions: &[TopicPartition], names: &Names) -> Vec<String> {
    let mut topics: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in partitions {
        topics.entry(names.get(*id)).or_default().push(id.partition.to_string());
    }
    topics.into_iter().map(|(topic, list)| format!("{topic}/{}", list.join(","))).collect()
}

fn removal(removal: MemberRemoval) -> Removal {
    Removal {
        id: removal.instance.unwrap_or(removal.member),
        client_id: removal.client_id,
        host: removal.host,
        reason: match removal.reason {
            RemovalReason::Left => "left",
            RemovalReason::MissedProcessingDeadline => "too slow with its records",
            RemovalReason::SessionTimedOut => "not heard of",
            RemovalReason::MissedRebalanceDeadline => "did not give up partitions",
            RemovalReason::Kicked => "kicked",
            RemovalReason::Replaced => "replaced",
        },
        at_ms: removal.at_ms,
    }
}
