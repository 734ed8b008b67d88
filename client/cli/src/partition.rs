//! `tidemark partition`: where the replicas of partitions are, moving them, and choosing who leads. One file per role.

mod describe;
mod lead;
mod list;
mod relocate;

use clap::{Args, Subcommand};
use tidemark_client::Admin;

use crate::{
    exit::{CliError, Exit},
    placement::{self, Partition, Selection},
    session::{self, Session},
};

pub(crate) use describe::Replica;

#[derive(Debug, Args)]
pub(crate) struct PartitionArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::ListArgs),
    Describe(describe::DescribeArgs),
    Move(relocate::MoveArgs),
    Balance(relocate::BalanceArgs),
    TransferLeader(lead::TransferArgs),
    Elect(lead::ElectArgs),
}

pub(crate) async fn run(session: &Session, args: PartitionArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::List(args) => list::run(session, &args).await,
        Verb::Describe(args) => describe::run(session, &args).await,
        Verb::Move(args) => relocate::run(session, args).await,
        Verb::Balance(args) => relocate::balance(session, args).await,
        Verb::TransferLeader(args) => lead::transfer(session, args).await,
        Verb::Elect(args) => lead::elect(session, args).await,
    }
}

/// The partitions named, or all; a topic that is not there is answered with those that are near.
async fn selected(admin: &Admin, selections: &[Selection]) -> Result<Vec<Partition>, CliError> {
    let known = admin.metadata(None).await?;
    for selection in selections {
        if known.topics.iter().all(|topic| topic.name != selection.topic()) {
            return Err(session::unknown_topic(selection.topic(), &known));
        }
    }
    placement::select(placement::partitions(&known.topics), selections)
}
