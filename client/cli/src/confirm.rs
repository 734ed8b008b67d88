//! Asking before something is destroyed. Without a terminal to ask on, `--yes` is required.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::exit::{CliError, Exit};

/// How a dangerous verb may proceed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Consent {
    /// Do it without asking
    #[arg(short = 'y', long, conflicts_with = "dry_run")]
    pub yes: bool,

    /// Show what would happen and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl Consent {
    /// Returns when the user agrees; `question` ends in a question mark.
    pub(crate) fn obtain(self, question: &str) -> Result<(), CliError> {
        if self.yes {
            return Ok(());
        }
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Err(CliError::new(Exit::Conflict, "not confirmed, nothing was changed")
                .with_hint(
                    "there is no terminal to ask on; add --yes to confirm, or --dry-run to look",
                ));
        }
        let mut stderr = io::stderr();
        let mut answer = String::new();
        write!(stderr, "{question} [y/N] ")
            .and_then(|()| stderr.flush())
            .and_then(|()| stdin.lock().read_line(&mut answer))
            .map_err(|error| CliError::error(format!("cannot ask: {error}")))?;
        if is_yes(&answer) {
            Ok(())
        } else {
            Err(CliError::new(Exit::Conflict, "not confirmed, nothing was changed"))
        }
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        assert!(is_yes("y\n") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("n") && !is_yes("yeah"));
    }
}
