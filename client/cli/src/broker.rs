//! `tidemark broker`: the brokers of the cluster, and what is to become of each. One file per role.

mod describe;
mod drain;
mod list;
mod remove;

use clap::{Args, Subcommand};
use tidemark_protocol::{
    BrokerId,
    messages::{BrokerMetadata, MetadataResponse},
};

use crate::{
    exit::{CliError, Exit},
    session::Session,
};

pub(crate) use describe::Setting;

#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::ListArgs),
    Describe(describe::DescribeArgs),
    Drain(drain::DrainArgs),
    Undrain(drain::UndrainArgs),
    Remove(remove::RemoveArgs),
}

pub(crate) async fn run(session: &Session, args: BrokerArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::List(args) => list::run(session, &args).await,
        Verb::Describe(args) => describe::run(session, &args).await,
        Verb::Drain(args) => drain::run(session, args).await,
        Verb::Undrain(args) => drain::undrain(session, args).await,
        Verb::Remove(args) => remove::run(session, args).await,
    }
}

/// A broker in one word, the worst first.
pub(crate) fn state(broker: &BrokerMetadata) -> &'static str {
    match (broker.fenced, broker.shutting_down, broker.draining) {
        (true, ..) => "fenced",
        (false, true, _) => "stopping",
        (false, false, true) => "draining",
        (false, false, false) => "active",
    }
}

fn known(metadata: &MetadataResponse, id: BrokerId) -> Result<&BrokerMetadata, CliError> {
    metadata.brokers.iter().find(|broker| broker.id == id).ok_or_else(|| {
        CliError::new(Exit::NotFound, format!("no broker {id}"))
            .with_hint("`tidemark broker list` shows the brokers there are")
    })
}
