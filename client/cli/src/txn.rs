//! `tidemark txn`: transactional ids, what they are doing, and an end to what hangs.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use tidemark_protocol::{TimestampMs, TopicId, messages::TransactionStatus};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct TxnArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List transactional ids, and whether each has a transaction open
    #[command(visible_alias = "ls")]
    List,
    /// Show one transactional id: who holds it, since when, and which partitions are in its transaction
    #[command(after_help = "\
Examples:
  tidemark txn describe bank-1")]
    Describe {
        /// The transactional id
        id: String,
    },
    /// Abort the transaction that a transactional id has open
    ///
    /// For one whose producer is gone and whose timeout is long: meanwhile `consume --read-committed` waits in front of it. A
    /// producer that lives hears of it with what it does next, and can begin anew.
    #[command(after_help = "\
Examples:
  tidemark txn abort bank-1
  tidemark txn abort bank-1 --yes")]
    Abort {
        /// The transactional id
        id: String,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Serialize)]
struct Transactions {
    transactions: Vec<Row>,
    /// Whether every coordinator could say which transactional ids it has.
    complete: bool,
}

#[derive(Serialize)]
struct Row {
    transactional_id: String,
    /// `empty`, `ongoing`, `committing`, `aborting`, `committed` or `aborted`.
    status: &'static str,
    producer_id: i64,
    epoch: i16,
}

impl Report for Transactions {
    const SCHEMA: &'static str = "tidemark/txn.list/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["TRANSACTIONAL ID", "STATUS", ">PRODUCER", ">EPOCH"]);
        for it in &self.transactions {
            rows.push(vec![
                it.transactional_id.clone(),
                it.status.to_owned(),
                it.producer_id.to_string(),
                it.epoch.to_string(),
            ]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.transactions.iter().map(|it| it.transactional_id.clone()).collect()
    }
}

#[derive(Serialize)]
struct Described {
    transactional_id: String,
    status: &'static str,
    producer_id: i64,
    epoch: i16,
    timeout_ms: u32,
    /// Of the last transaction; -1 when there was none.
    started_ms: TimestampMs,
    updated_ms: TimestampMs,
    /// `topic/partition`, as far as the topic exists.
    partitions: Vec<String>,
}

impl Report for Described {
    const SCHEMA: &'static str = "tidemark/txn.describe/1";

    fn page(&self, page: &mut Page) {
        page.fields(&[
            ("transactional id", self.transactional_id.clone()),
            ("status", self.status.to_owned()),
            ("producer", format!("{} epoch {}", self.producer_id, self.epoch)),
            ("timeout", format!("{} ms", self.timeout_ms)),
            ("last transaction began", shown(self.started_ms)),
            ("last change", shown(self.updated_ms)),
            ("partitions", self.partitions.join(" ")),
        ]);
    }

    fn names(&self) -> Vec<String> {
        vec![self.transactional_id.clone()]
    }
}

#[derive(Serialize)]
struct Aborted {
    transactional_id: String,
    dry_run: bool,
}

impl Report for Aborted {
    const SCHEMA: &'static str = "tidemark/txn.abort/1";

    fn page(&self, page: &mut Page) {
        let done = if self.dry_run { "would be aborted" } else { "is aborted" };
        page.line(&format!("the transaction of {} {done}", self.transactional_id), Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.transactional_id.clone()]
    }
}

pub(crate) async fn run(session: &Session, args: TxnArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::List => list(session).await,
        Verb::Describe { id } => describe(session, id).await,
        Verb::Abort { id, consent } => abort(session, id, consent).await,
    }
}

async fn list(session: &Session) -> Result<Exit, CliError> {
    let list = session.admin().await?.list_transactions().await?;
    let transactions = list.transactions.into_iter().map(|one| Row {
        transactional_id: one.transactional_id,
        status: status(one.status),
        producer_id: one.producer.producer_id,
        epoch: one.producer.epoch,
    });
    let complete = list.unavailable.is_empty() && list.unreachable.is_empty();
    session.output.print(&Transactions { transactions: transactions.collect(), complete })?;
    for missing in &list.unavailable {
        let (of, why) = (missing.partition, &missing.failure);
        output::note(format_args!("missing: transactional ids of {of}: {why}"));
    }
    for (broker, error) in &list.unreachable {
        output::note(format_args!("missing: transactional ids of broker {broker}: {error}"));
    }
    Ok(if complete { Exit::Success } else { Exit::Partial })
}

async fn describe(session: &Session, id: String) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let one = admin.describe_transaction(&id).await?;
    let topics = admin.metadata(None).await?.topics;
    let names: BTreeMap<TopicId, String> =
        topics.into_iter().map(|topic| (topic.id, topic.name)).collect();
    let partitions = one.partitions.iter().map(|partition| match names.get(&partition.topic_id) {
        Some(name) => format!("{name}/{}", partition.partition),
        None => partition.to_string(),
    });
    let described = Described {
        transactional_id: id,
        status: status(one.status),
        producer_id: one.producer.producer_id,
        epoch: one.producer.epoch,
        timeout_ms: one.transaction_timeout_ms,
        started_ms: one.started_ms,
        updated_ms: one.updated_ms,
        partitions: partitions.collect(),
    };
    session.output.print(&described)?;
    Ok(Exit::Success)
}

async fn abort(session: &Session, id: String, consent: Consent) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let one = admin.describe_transaction(&id).await?;
    if one.status != TransactionStatus::Ongoing {
        let message = format!("{id} has no transaction open: it is {}", status(one.status));
        return Err(CliError::error(message));
    }
    let dry_run = consent.dry_run;
    if !dry_run {
        if !consent.yes {
            output::note(format_args!(
                "Nothing that the transaction of {id} has written so far will count."
            ));
        }
        consent.obtain("Abort?")?;
        admin.abort_transaction(&id).await?;
    }
    session.output.print(&Aborted { transactional_id: id, dry_run })?;
    Ok(Exit::Success)
}

fn status(status: TransactionStatus) -> &'static str {
    match status {
        TransactionStatus::Empty => "empty",
        TransactionStatus::Ongoing => "ongoing",
        TransactionStatus::Committing => "committing",
        TransactionStatus::Aborting => "aborting",
        TransactionStatus::Committed => "committed",
        TransactionStatus::Aborted => "aborted",
    }
}

fn shown(timestamp_ms: TimestampMs) -> String {
    match Timestamp::from_millisecond(timestamp_ms) {
        Ok(timestamp) if timestamp_ms >= 0 => timestamp.to_string(),
        _ => "-".to_owned(),
    }
}
