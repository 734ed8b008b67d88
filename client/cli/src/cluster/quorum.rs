//! `tidemark cluster quorum`, `add-controller` and `remove-controller`: who decides about metadata.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{
    NodeId,
    messages::{DescribeQuorumResponse, VoterId},
};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    quantity,
    session::Session,
};

/// Show the controllers: who leads them, and how far each is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster quorum
  tidemark cluster quorum -o json")]
pub(crate) struct QuorumArgs {}

/// Make a running node a controller
///
/// It catches up first and votes then. Of 3 controllers 1 may be lost, of 5 2; an even number is no better than one less.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster add-controller 4 broker-4:9092")]
pub(crate) struct AddArgs {
    /// Id of the node
    #[arg(value_name = "NODE")]
    node: NodeId,

    /// Where the other nodes reach it
    #[arg(value_name = "HOST:PORT", value_parser = parse_address)]
    address: String,
}

/// Take a controller out of the quorum
///
/// Also the way to replace one whose disk is lost: remove it, start it on its new disk, and add it again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster remove-controller 3
  tidemark cluster remove-controller 3 --dry-run")]
pub(crate) struct RemoveArgs {
    /// Id of the node
    #[arg(value_name = "NODE")]
    node: NodeId,

    #[command(flatten)]
    consent: Consent,
}

fn parse_address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not an address; write it like broker-4:9092")),
    }
}

#[derive(Serialize)]
struct Quorum {
    leader: NodeId,
    term: u64,
    committed_index: u64,
    log_end_index: u64,
    voters: usize,
    voters_alive: usize,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    node: NodeId,
    directory: String,
    address: String,
    /// `leader`, `voter` or `catching up`.
    role: &'static str,
    alive: bool,
    log_end_index: u64,
    /// Entries it does not have yet.
    lag: u64,
}

impl From<DescribeQuorumResponse> for Quorum {
    fn from(quorum: DescribeQuorumResponse) -> Self {
        let end = quorum.log_end_index;
        let voters = quorum.members.iter().filter(|it| it.is_voter);
        let (voters, voters_alive) =
            voters.fold((0, 0), |(all, alive), it| (all + 1, alive + usize::from(it.is_alive)));
        let members = quorum.members.into_iter().map(|it| Member {
            node: it.id.node,
            directory: it.id.directory.to_string(),
            address: it.address,
            role: match (it.is_voter, it.id.node == quorum.leader) {
                (true, true) => "leader",
                (true, false) => "voter",
                (false, _) => "catching up",
            },
            alive: it.is_alive,
            log_end_index: it.log_end_index,
            lag: end.saturating_sub(it.log_end_index),
        });
        let mut members: Vec<Member> = members.collect();
        members.sort_by_key(|it| (it.role == "catching up", it.node));
        Self {
            leader: quorum.leader,
            term: quorum.term,
            committed_index: quorum.committed_index,
            log_end_index: end,
            voters,
            voters_alive,
            members,
        }
    }
}

impl Report for Quorum {
    const SCHEMA: &'static str = "tidemark/cluster.quorum/1";

    fn page(&self, page: &mut Page) {
        let majority = self.voters / 2 + 1;
        let alive = format!("{} of {} voters alive", self.voters_alive, self.voters);
        if self.voters_alive >= majority {
            let spare = self.voters_alive - majority;
            page.line(&format!("{alive}, {spare} more may be lost"), Tone::Good);
        } else {
            page.line(&format!("{alive}: no majority, {majority} are needed"), Tone::Bad);
        }
        page.fields(&[
            ("leader", self.leader.to_string()),
            ("term", self.term.to_string()),
            ("committed", quantity::count(self.committed_index)),
            ("end", quantity::count(self.log_end_index)),
        ]);
        let mut rows =
            Rows::new(&[">NODE", "ADDRESS", "ROLE", "STATE", ">END", ">LAG", "DIRECTORY"]);
        for it in &self.members {
            rows.push_toned(
                vec![
                    it.node.to_string(),
                    it.address.clone(),
                    it.role.to_owned(),
                    if it.alive { "alive" } else { "silent" }.to_owned(),
                    it.log_end_index.to_string(),
                    it.lag.to_string(),
                    it.directory.clone(),
                ],
                if it.alive { Tone::Plain } else { Tone::Bad },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.members.iter().map(|it| it.node.to_string()).collect()
    }
}

pub(super) async fn run(session: &Session, QuorumArgs {}: &QuorumArgs) -> Result<Exit, CliError> {
    let quorum = session.admin().await?.describe_quorum().await?;
    session.output.print(&Quorum::from(quorum))?;
    Ok(Exit::Success)
}

#[derive(Serialize)]
struct Controllers {
    dry_run: bool,
    /// After the change.
    voters: Vec<Voter>,
}

#[derive(Serialize)]
struct Voter {
    node: NodeId,
    directory: String,
}

impl Controllers {
    fn new(voters: impl IntoIterator<Item = VoterId>, dry_run: bool) -> Self {
        let voter = |it: VoterId| Voter { node: it.node, directory: it.directory.to_string() };
        let mut voters: Vec<Voter> = voters.into_iter().map(voter).collect();
        voters.sort_by_key(|it| it.node);
        Self { dry_run, voters }
    }
}

impl Report for Controllers {
    const SCHEMA: &'static str = "tidemark/cluster.controllers/1";

    fn page(&self, page: &mut Page) {
        let nodes: Vec<_> = self.voters.iter().map(|it| it.node.to_string()).collect();
        let are = if self.dry_run { "would be" } else { "are" };
        page.line(&format!("the controllers {are} {}", nodes.join(", ")), Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        self.voters.iter().map(|it| it.node.to_string()).collect()
    }
}

pub(super) async fn add(session: &Session, args: AddArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let added = admin.add_controller(args.node, &args.address).await;
    let voters = added
        .map_err(|error| CliError::from(error).context(format!("add controller {}", args.node)))?;
    session.output.print(&Controllers::new(voters, false))?;
    Ok(Exit::Success)
}

pub(super) async fn remove(session: &Session, args: RemoveArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let quorum = admin.describe_quorum().await?;
    let left = left_without(&quorum, args.node)?;
    if args.consent.dry_run {
        session.output.print(&Controllers::new(left, true))?;
        return Ok(Exit::Success);
    }
    if !args.consent.yes {
        output::note(format_args!(
            "This takes controller {} out of the quorum; {} left.",
            args.node,
            quantity::counted(left.len() as u64, "controller")
        ));
    }
    args.consent.obtain("Remove?")?;
    let voters = admin.remove_controller(args.node).await?;
    session.output.print(&Controllers::new(voters, false))?;
    Ok(Exit::Success)
}

/// The voters that stay when `node` goes, which has to be one of them and not the last.
fn left_without(quorum: &DescribeQuorumResponse, node: NodeId) -> Result<Vec<VoterId>, CliError> {
    if quorum.members.iter().all(|it| it.id.node != node) {
        return Err(CliError::new(Exit::NotFound, format!("node {node} is no controller"))
            .with_hint("`tidemark cluster quorum` shows the controllers"));
    }
    let staying = quorum.members.iter().filter(|it| it.is_voter && it.id.node != node);
    let left: Vec<VoterId> = staying.map(|it| it.id).collect();
    if left.is_empty() {
        return Err(CliError::new(Exit::Conflict, "the last controller cannot be removed"));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{DirectoryId, messages::QuorumMember};

    use super::*;
    use crate::output::{Color, Format, Output};

    fn quorum(alive: [bool; 3]) -> DescribeQuorumResponse {
        let member = |node, is_alive| QuorumMember {
            id: VoterId { node, directory: DirectoryId([u8::try_from(node).unwrap(); 16]) },
            is_voter: node != 9,
            address: format!("h{node}:9092"),
            log_end_index: 40 - u64::from(node),
            is_alive,
        };
        let voters = (1..).zip(alive).map(|(node, alive)| member(node, alive));
        DescribeQuorumResponse {
            leader: 1,
            term: 7,
            committed_index: 38,
            log_end_index: 39,
            members: voters.chain([member(9, true)]).collect(),
        }
    }

    fn text(alive: [bool; 3]) -> String {
        let output = Output::new(Format::Table, true, Color::Never);
        String::from_utf8(output.render(&Quorum::from(quorum(alive))).unwrap()).unwrap()
    }

    #[test]
    fn the_quorum_says_first_how_many_may_still_be_lost() {
        let well = text([true, true, true]);
        assert!(well.starts_with("3 of 3 voters alive, 1 more may be lost\n"), "{well}");
        let words = |text: &str, line: usize| -> Vec<String> {
            text.lines().nth(line).unwrap().split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words(&well, 6)[..6], ["1", "h1:9092", "leader", "alive", "39", "0"]);
        assert_eq!(words(&well, 8)[..6], ["3", "h3:9092", "voter", "alive", "37", "2"]);
        assert_eq!(words(&well, 9)[..4], ["9", "h9:9092", "catching", "up"]);
        let lost = text([true, false, false]);
        assert!(lost.starts_with("1 of 3 voters alive: no majority, 2 are needed\n"), "{lost}");
        assert!(lost.contains("silent"));
    }

    #[test]
    fn only_a_controller_that_is_not_the_last_can_be_removed() {
        let left = left_without(&quorum([true; 3]), 2).unwrap();
        assert_eq!(left.iter().map(|it| it.node).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(left_without(&quorum([true; 3]), 4).unwrap_err().exit, Exit::NotFound);
        let mut alone = quorum([true; 3]);
        alone.members.truncate(1);
        assert_eq!(left_without(&alone, 1).unwrap_err().exit, Exit::Conflict);
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert!(parse_address("broker-4:9092").is_ok() && parse_address("[::1]:9092").is_ok());
        for wrong in ["broker-4", "broker-4:", ":9092", "broker-4:0", "broker-4:99999"] {
            assert!(parse_address(wrong).is_err(), "{wrong} was accepted");
        }
    }
}
