//! `tidemark cluster`: what the cluster is, whether it is well, and who its controllers are. One file per role.

mod health;
mod info;
mod quorum;

use clap::{Args, Subcommand};

use crate::{
    exit::{CliError, Exit},
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Info(info::InfoArgs),
    Health(health::HealthArgs),
    Quorum(quorum::QuorumArgs),
    AddController(quorum::AddArgs),
    RemoveController(quorum::RemoveArgs),
}

pub(crate) async fn run(session: &Session, args: ClusterArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::Info(args) => info::run(session, &args).await,
        Verb::Health(args) => health::run(session, &args).await,
        Verb::Quorum(args) => quorum::run(session, &args).await,
        Verb::AddController(args) => quorum::add(session, args).await,
        Verb::RemoveController(args) => quorum::remove(session, args).await,
    }
}
