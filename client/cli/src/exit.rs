//! How a command ends: the exit codes, and the error that carries one with a message and what to do next.
//!
//! Exit codes are an interface: scripts branch on them, so they never change their meaning.

use std::fmt;

use tidemark_protocol::{ErrorCode, Failure};

/// Exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It was done.
    Success = 0,
    /// It failed for a reason that has no code of its own.
    Error = 1,
    /// The command line was wrong; nothing was attempted.
    Usage = 2,
    /// A topic, partition or file that was named does not exist.
    NotFound = 3,
    /// It exists already, has the wrong state, or was not confirmed; nothing was changed.
    Conflict = 4,
    /// The deadline passed before the outcome was known.
    Timeout = 5,
    /// The cluster answers but is not healthy.
    Degraded = 6,
    /// Some of the work was done and some was not.
    Partial = 7,
    /// Interrupted before it was finished, as shells write it (128 + SIGINT).
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Exit codes for the end of `--help`.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes:
  0 done                 4 conflict, or not confirmed
  1 error                5 timed out
  2 wrong usage          6 cluster degraded
  3 not found            7 done in part";

/// Why a command failed, in one line, and what the user can do about it in another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    pub exit: Exit,
    pub message: String,
    /// What to do next, as a sentence without a full stop.
    pub hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being attempted in front of the message.
    #[must_use]
    pub(crate) fn context(mut self, attempted: impl fmt::Display) -> Self {
        self.message = format!("{attempted}: {}", self.message);
        self
    }

    /// What a broker answered instead of doing it.
    pub(crate) fn from_failure(failure: &Failure) -> Self {
        let error = Self::new(exit_for(failure.code), failure.message.clone());
        match hint_for(failure.code) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

fn exit_for(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::UnknownBroker
        | ErrorCode::UnknownGroup
        | ErrorCode::UnknownMember
        | ErrorCode::UnknownSeek => Exit::NotFound,
        ErrorCode::TopicExists
        | ErrorCode::OffsetOutOfRange
        | ErrorCode::FencedLeaderEpoch
        | ErrorCode::IneligibleReplica
        | ErrorCode::DuplicateBroker
        | ErrorCode::WrongCluster
        | ErrorCode::ChangeInProgress
        | ErrorCode::GroupNotEmpty
        | ErrorCode::GroupFull
        | ErrorCode::UnreleasedInstance
        | ErrorCode::FencedInstance => Exit::Conflict,
        ErrorCode::InvalidTopicName
        | ErrorCode::InvalidPartitions
        | ErrorCode::InvalidConfig
        | ErrorCode::InvalidGroup
        | ErrorCode::InvalidRegex
        | ErrorCode::UnknownAssignor
        | ErrorCode::TooLarge
        | ErrorCode::BatchTooLarge => Exit::Usage,
        ErrorCode::Timeout => Exit::Timeout,
        _ => Exit::Error,
    }
}

fn hint_for(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::UnknownTopicOrPartition => {
            "`tidemark topic list` shows the topics there are, `tidemark topic create` makes one"
        }
        ErrorCode::UnknownGroup => "`tidemark group list` shows the groups there are",
        ErrorCode::GroupNotEmpty => {
            "stop its members first; `tidemark group describe GROUP` shows who they are"
        }
        ErrorCode::UnknownSeek => "`tidemark group history GROUP` shows the changes there are",
        ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoading => {
            "the group's coordinator is moving or reading its log; try again in a moment"
        }
        ErrorCode::TopicExists => "add --if-not-exists to accept a topic that is there already",
        ErrorCode::InvalidConfig => {
            "`tidemark topic describe TOPIC --all` lists every setting with its default"
        }
        ErrorCode::OffsetOutOfRange => {
            "`tidemark topic describe TOPIC` shows the offsets there are"
        }
        ErrorCode::BatchTooLarge | ErrorCode::TooLarge => {
            "raise it with `tidemark topic alter TOPIC --set max_batch_bytes=...`, or send smaller records"
        }
        ErrorCode::Timeout => {
            "the outcome is unknown and it may yet take effect; look, or raise --timeout"
        }
        ErrorCode::NotReady | ErrorCode::NotController | ErrorCode::NotLeader => {
            "the broker is starting, stopping or moving leaders; `tidemark cluster health --wait 30s`"
        }
        ErrorCode::DiskFull => {
            "free space, or `tidemark topic trim` or `topic delete` what is not needed; reading still works"
        }
        ErrorCode::StorageFailed => {
            "the broker takes no more writes; `tidemark broker describe` and its log say which directory failed"
        }
        ErrorCode::CorruptData => {
            "`tidemark topic describe TOPIC` names the range; consume with --offset beyond it to go on"
        }
        ErrorCode::NotEnoughReplicas | ErrorCode::NotEnoughReplicasAfterAppend => {
            "too few replicas are in sync; `tidemark cluster health` says which brokers are missing"
        }
        ErrorCode::UnknownBroker => {
            "`tidemark broker list` shows the brokers, `tidemark cluster quorum` the controllers"
        }
        ErrorCode::IneligibleReplica => {
            "`tidemark partition describe` shows which replicas are in sync"
        }
        ErrorCode::ChangeInProgress => {
            "one change at a time: `tidemark cluster quorum` and `tidemark partition move` show what goes on"
        }
        ErrorCode::UnsupportedApi => {
            "the broker is older than this command line; `tidemark version` and `tidemark broker describe`"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_message_and_gains_a_code_and_a_hint() {
        let failure = Failure::new(ErrorCode::UnknownTopicOrPartition, "no topic `ordrs`");
        let error = CliError::from_failure(&failure).context("describe");
        assert_eq!(error.exit, Exit::NotFound);
        assert_eq!(error.to_string(), "describe: no topic `ordrs`");
        assert!(error.hint.is_some_and(|hint| hint.contains("topic list")));
    }

    #[test]
    fn exit_codes_are_the_documented_numbers() {
        let codes = [
            Exit::Success,
            Exit::Error,
            Exit::Usage,
            Exit::NotFound,
            Exit::Conflict,
            Exit::Timeout,
            Exit::Degraded,
            Exit::Partial,
        ];
        assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5, 6, 7]);
        for (code, exit) in codes.into_iter().enumerate() {
            assert!(EXIT_CODES_HELP.contains(&format!("{code} ")), "{exit:?} is not in the help");
        }
    }
}
