//! `tidemark`: administer a cluster, produce, consume and measure, from a shell.
//!
//! This file parses, runs and exits; it decides nothing else. Reading order: [`args`], [`session`], then one
//! file per verb group ([`topic`], [`produce`], [`consume`], [`group`], [`broker`], [`partition`], [`cluster`], [`mod@bench`], [`up`]);
//! below them [`placement`] and [`moves`] of replicas, the grammar of [`position`]s, the [`template`] language, [`input`] and
//! [`output`].

mod args;
mod bench;
mod broker;
mod cluster;
mod confirm;
mod consume;
mod encoding;
mod escape;
mod exit;
mod group;
mod input;
mod moves;
mod output;
mod partition;
mod placement;
mod position;
mod produce;
mod progress;
mod quantity;
mod session;
mod template;
mod topic;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    match args::run(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::note(format_args!("error: {error}"));
            if let Some(hint) = &error.hint {
                output::note(format_args!("  hint: {hint}"));
            }
            error.exit.into()
        }
    }
}

/// The client's own log goes to standard error, and only when `TIDEMARK_LOG` asks for it.
fn start_logging() {
    if let Ok(filter) = std::env::var("TIDEMARK_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}
