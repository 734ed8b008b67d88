//! `tidemark cluster info`: what the cluster is made of.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::BrokerId;

use crate::{
    broker,
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::Session,
};

/// Show brokers, controller, and how much there is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster info
  tidemark cluster info -o json")]
pub(crate) struct InfoArgs {}

#[derive(Serialize)]
struct Info {
    cluster_id: String,
    controller_id: Option<BrokerId>,
    version: String,
    topics: usize,
    partitions: usize,
    brokers: Vec<Broker>,
}

#[derive(Serialize)]
struct Broker {
    id: BrokerId,
    host: String,
    port: u16,
    rack: Option<String>,
    controller: bool,
    fenced: bool,
    /// `active`, `draining`, `stopping` or `fenced`.
    state: &'static str,
}

impl Report for Info {
    const SCHEMA: &'static str = "tidemark/cluster.info/1";

    fn page(&self, page: &mut Page) {
        page.title(&format!("Cluster {}", self.cluster_id));
        let controller = self.controller_id.map_or("none".to_owned(), |id| id.to_string());
        page.fields(&[
            ("version", self.version.clone()),
            ("controller", controller),
            ("topics", quantity::count(self.topics as u64)),
            ("partitions", quantity::count(self.partitions as u64)),
        ]);
        page.title("Brokers");
        let mut rows = Rows::new(&[">ID", "ADDRESS", "RACK", "ROLE", "STATE"]);
        for broker in &self.brokers {
            rows.push_toned(
                vec![
                    broker.id.to_string(),
                    format!("{}:{}", broker.host, broker.port),
                    broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
                    if broker.controller { "controller" } else { "broker" }.to_owned(),
                    broker.state.to_owned(),
                ],
                if broker.fenced { Tone::Bad } else { Tone::Plain },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.id.to_string()).collect()
    }
}

pub(super) async fn run(session: &Session, InfoArgs {}: &InfoArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let metadata = admin.metadata(None).await?;
    let version = admin.describe_broker(None, false).await?.version;
    let controller_id = metadata.controller_id;
    let brokers = metadata.brokers.into_iter().map(|broker| Broker {
        controller: Some(broker.id) == controller_id,
        state: broker::state(&broker),
        id: broker.id,
        host: broker.host,
        port: broker.port,
        rack: broker.rack,
        fenced: broker.fenced,
    });
    session.output.print(&Info {
        cluster_id: metadata.cluster_id,
        controller_id,
        version,
        topics: metadata.topics.len(),
        partitions: metadata.topics.iter().map(|topic| topic.partitions.len()).sum(),
        brokers: brokers.collect(),
    })?;
    Ok(Exit::Success)
}
