//! `tidemark broker list`: every broker on a line.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{BrokerEpoch, BrokerId, messages::MetadataResponse};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    placement,
    session::Session,
};

/// List brokers: state, and how much each leads and holds
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  tidemark broker list
  tidemark broker list -o json"
)]
pub(crate) struct ListArgs {}

#[derive(Serialize)]
struct Brokers {
    brokers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: BrokerId,
    host: String,
    port: u16,
    rack: Option<String>,
    /// `active`, `draining`, `stopping` or `fenced`.
    state: &'static str,
    controller: bool,
    /// Partitions it leads.
    leaders: usize,
    /// Partitions it holds.
    replicas: usize,
    /// Those of them that are not in sync.
    replicas_out_of_sync: usize,
    epoch: BrokerEpoch,
}

impl Report for Brokers {
    const SCHEMA: &'static str = "tidemark/broker.list/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&[
            ">ID",
            "ADDRESS",
            "RACK",
            "ROLE",
            "STATE",
            ">LEADS",
            ">REPLICAS",
            ">OUT OF SYNC",
        ]);
        for it in &self.brokers {
            let troubled = it.state == "fenced" || it.replicas_out_of_sync > 0;
            rows.push_toned(
                vec![
                    it.id.to_string(),
                    format!("{}:{}", it.host, it.port),
                    it.rack.clone().unwrap_or_else(|| "-".to_owned()),
                    if it.controller { "controller" } else { "broker" }.to_owned(),
                    it.state.to_owned(),
                    it.leaders.to_string(),
                    it.replicas.to_string(),
                    it.replicas_out_of_sync.to_string(),
                ],
                if troubled { Tone::Bad } else { Tone::Plain },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.brokers.iter().map(|it| it.id.to_string()).collect()
    }
}

pub(super) async fn run(session: &Session, ListArgs {}: &ListArgs) -> Result<Exit, CliError> {
    let metadata = session.admin().await?.metadata(None).await?;
    session.output.print(&Brokers::new(metadata))?;
    Ok(Exit::Success)
}

impl Brokers {
    fn new(metadata: MetadataResponse) -> Self {
        let partitions = placement::partitions(&metadata.topics);
        let count = |of: &dyn Fn(&placement::Partition) -> bool| {
            partitions.iter().filter(|it| of(it)).count()
        };
        let mut brokers: Vec<Row> = metadata
            .brokers
            .into_iter()
            .map(|broker| {
                let id = broker.id;
                Row {
                    state: super::state(&broker),
                    controller: metadata.controller_id == Some(id),
                    leaders: count(&|it| it.metadata.leader == Some(id)),
                    replicas: count(&|it| it.metadata.replicas.contains(&id)),
                    replicas_out_of_sync: count(&|it| {
                        it.origin().contains(&id) && !it.metadata.isr.contains(&id)
                    }),
                    id,
                    host: broker.host,
                    port: broker.port,
                    rack: broker.rack,
                    epoch: broker.epoch,
                }
            })
            .collect();
        brokers.sort_by_key(|it| it.id);
        Self { brokers }
    }
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::messages::BrokerMetadata;

    use super::*;
    use crate::{
        output::{Color, Format, Output},
        placement::tests::topic,
    };

    #[test]
    fn each_broker_has_its_state_and_what_it_leads_and_holds() {
        let broker = |id, port| BrokerMetadata {
            id,
            host: "h".to_owned(),
            port,
            ..BrokerMetadata::default()
        };
        let metadata = MetadataResponse {
            cluster_id: "c".to_owned(),
            controller_id: Some(1),
            broker_id: 1,
            metadata_index: 1,
            brokers: vec![
                BrokerMetadata { fenced: true, draining: true, ..broker(3, 3) },
                BrokerMetadata { rack: Some("a".to_owned()), ..broker(1, 1) },
                BrokerMetadata { draining: true, ..broker(2, 2) },
            ],
            topics: vec![topic(&[(Some(1), &[1, 2, 3], &[1, 2]), (Some(1), &[1, 3], &[1])], "1")],
        };
        let output = Output::new(Format::Table, false, Color::Never);
        let text = String::from_utf8(output.render(&Brokers::new(metadata)).unwrap()).unwrap();
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["1", "h:1", "a", "controller", "active", "2", "2", "0"]);
        assert_eq!(words[1], ["2", "h:2", "-", "broker", "draining", "0", "1", "0"]);
        assert_eq!(words[2], ["3", "h:3", "-", "broker", "fenced", "0", "2", "2"]);
    }
}
