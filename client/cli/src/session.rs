//! One run's way to the cluster: where to connect, how long to wait, and what to say when it does not work.

use std::time::Duration;

use tidemark_client::{
    Admin, AdminError, Client, ClientConfig, ConnectError, ConsumeError, GroupError, ProduceError,
    RequestError,
};
use tidemark_protocol::{
    TimestampMs,
    messages::{MetadataResponse, TopicMetadata},
};

use crate::{
    exit::{CliError, Exit},
    output::Output,
};

/// How long to wait for the cluster when `--timeout` does not say.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the global flags said.
#[derive(Debug)]
pub(crate) struct Session {
    pub brokers: Vec<String>,
    /// `None`: each verb's own default.
    pub timeout: Option<Duration>,
    pub output: Output,
}

impl Session {
    /// Connects to the first broker that answers.
    pub(crate) async fn client(&self) -> Result<Client, CliError> {
        let config = ClientConfig {
            bootstrap: self.brokers.clone(),
            client_id: "tidemark-cli".to_owned(),
            connect_timeout: self.timeout.unwrap_or(TIMEOUT),
            request_timeout: self.timeout.unwrap_or(TIMEOUT),
            ..ClientConfig::default()
        };
        Ok(Client::connect(config).await?)
    }

    pub(crate) async fn admin(&self) -> Result<Admin, CliError> {
        Ok(self.client().await?.admin())
    }
}

/// The wall clock, which relative times count from.
pub(crate) fn now_ms() -> TimestampMs {
    jiff::Timestamp::now().as_millisecond()
}

/// One topic's partitions and leaders; a name that is not there is answered with those that are near.
pub(crate) async fn topic(admin: &Admin, name: &str) -> Result<TopicMetadata, CliError> {
    let mut found = admin.metadata(Some(vec![name.to_owned()])).await?.topics;
    match found.pop() {
        Some(topic) => Ok(topic),
        None => Err(unknown_topic(name, &admin.metadata(None).await?)),
    }
}

/// The error for a topic that is not there, naming those it may have been meant for.
pub(crate) fn unknown_topic(name: &str, known: &MetadataResponse) -> CliError {
    let error = CliError::new(Exit::NotFound, format!("no topic `{name}`"));
    if name.contains([':', '@']) {
        return error
            .with_hint(format!("where to begin and to stop is given as `--offset {name}`"));
    }
    let near = near_names(name, known.topics.iter().map(|topic| topic.name.as_str()));
    if near.is_empty() {
        error.with_hint(format!(
            "create it with `tidemark topic create {name}`; `tidemark topic list` shows those there are"
        ))
    } else {
        error.with_hint(format!("did you mean {}?", near.join(" or ")))
    }
}

/// Up to three names that a typo away from `name`, the nearest first.
fn near_names<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut near: Vec<(usize, &str)> = known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + name.len().max(candidate.len()) / 4
                || (name.len() >= 3 && candidate.contains(name))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, candidate)| format!("`{candidate}`")).collect()
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let exit = match error {
            ConnectError::TimedOut { .. } => Exit::Timeout,
            ConnectError::NoBootstrap | ConnectError::BadAddress { .. } => Exit::Usage,
            _ => Exit::Error,
        };
        let hint = match error {
            ConnectError::NotTidemark { .. } => {
                "9092 is the usual port for data, 9644 answers HTTP only; check --brokers"
            }
            ConnectError::NoBootstrap | ConnectError::BadAddress { .. } => {
                "write it like --brokers 127.0.0.1:9092, several separated by commas"
            }
            _ => "start a broker with `tidemarkd`, or name one with --brokers or TIDEMARK_BROKERS",
        };
        Self::new(exit, error.to_string()).with_hint(hint)
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Connect(error) => error.into(),
            RequestError::Refused(failure) => Self::from_failure(&failure),
            RequestError::TimedOut { .. } => Self::new(Exit::Timeout, error.to_string()).with_hint(
                "the broker is there but busy; raise --timeout, or see `tidemark cluster health`",
            ),
            RequestError::ConnectionLost { .. } => Self::error(error.to_string()).with_hint(
                "the broker went away; `tidemark cluster health --wait 30s` waits for it",
            ),
            _ => Self::error(error.to_string()),
        }
    }
}

impl From<AdminError> for CliError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Request(error) => error.into(),
            AdminError::UnknownTopic { .. } | AdminError::UnknownPartition { .. } => {
                Self::new(Exit::NotFound, error.to_string())
                    .with_hint("`tidemark topic list` shows the topics there are")
            }
            AdminError::NoLeader { .. } => Self::error(error.to_string())
                .with_hint("`tidemark cluster health` says which brokers are missing"),
            _ => Self::error(error.to_string()),
        }
    }
}

impl From<ProduceError> for CliError {
    fn from(error: ProduceError) -> Self {
        let message = error.to_string();
        match error {
            ProduceError::Request { source, .. } | ProduceError::Lookup { source, .. } => {
                Self { message, ..Self::from(source) }
            }
            ProduceError::UnknownTopic { .. } | ProduceError::UnknownPartition { .. } => {
                Self::new(Exit::NotFound, message)
            }
            ProduceError::DeliveryTimedOut { last: Some(last), .. } => {
                let hint = Self::from((*last).clone()).hint;
                Self { exit: Exit::Timeout, message, hint }
            }
            ProduceError::DeliveryTimedOut { last: None, .. } => Self::new(Exit::Timeout, message)
                .with_hint("`tidemark cluster health` says what is missing; what was sent may yet be written"),
            ProduceError::RecordTooLarge { .. } => Self::new(Exit::Usage, message),
            _ => Self::error(message),
        }
    }
}

impl From<ConsumeError> for CliError {
    fn from(error: ConsumeError) -> Self {
        let message = error.to_string();
        match error {
            ConsumeError::Request(error) => error.into(),
            ConsumeError::Refused { failure, .. } => {
                Self { message, ..Self::from_failure(&failure) }
            }
            ConsumeError::UnknownTopic { .. } | ConsumeError::UnknownPartition { .. } => {
                Self::new(Exit::NotFound, message)
            }
            ConsumeError::OffsetOutOfRange { .. } => Self::new(Exit::Conflict, message)
                .with_hint("the records were trimmed meanwhile; start again with --offset start"),
            _ => Self::error(message),
        }
    }
}

impl From<GroupError> for CliError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Request(error) => error.into(),
            GroupError::Consume(error) => error.into(),
            GroupError::CommitRefused { failure } => Self::from_failure(&failure),
            GroupError::NothingCommitted { .. } => Self::new(Exit::NotFound, error.to_string()),
            _ => Self::error(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_the_topics_it_may_have_meant() {
        let known = ["orders", "orders-archive", "payments", "audit"];
        let near = |name| near_names(name, known.into_iter());
        assert_eq!(near("ordres"), ["`orders`"]);
        assert_eq!(near("order"), ["`orders`", "`orders-archive`"]);
        assert_eq!(near("paymetns"), ["`payments`"]);
        assert!(near("telemetry").is_empty());
    }
}
