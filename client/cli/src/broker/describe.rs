//! `tidemark broker describe`: one broker about itself.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{
    BrokerId,
    messages::{DescribeBrokerResponse, LogDirDescription, SettingValue},
};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::Session,
};

/// Describe a broker: state, disks, settings in force
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark broker describe
  tidemark broker describe 2 --all
  tidemark broker describe -o json")]
pub(crate) struct DescribeArgs {
    /// Id of the broker [default: the one that answers]
    #[arg(value_name = "BROKER")]
    id: Option<BrokerId>,

    /// Show every setting with its meaning, not only those that were set
    #[arg(short, long)]
    all: bool,
}

#[derive(Serialize)]
struct Described {
    id: BrokerId,
    cluster_id: String,
    version: String,
    ready: bool,
    not_ready_reasons: Vec<String>,
    uptime_ms: u64,
    topics: u32,
    partitions: u32,
    connections: u32,
    data_directories: Vec<Directory>,
    settings: Vec<Setting>,
    #[serde(skip)]
    all: bool,
}

#[derive(Serialize)]
struct Directory {
    path: String,
    state: String,
    disk_total_bytes: u64,
    disk_free_bytes: u64,
    /// What the topics in it take.
    used_bytes: u64,
}

/// A setting as reports show it, of a broker or of a topic.
#[derive(Serialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) default: String,
    pub(crate) source: String,
    pub(crate) doc: String,
}

impl From<SettingValue> for Setting {
    fn from(setting: SettingValue) -> Self {
        let SettingValue { name, value, default, source, doc } = setting;
        Self { name, value, default, source, doc }
    }
}

impl Report for Described {
    const SCHEMA: &'static str = "tidemark/broker.describe/1";

    fn page(&self, page: &mut Page) {
        page.title(&format!("Broker {}", self.id));
        if self.ready {
            page.line("  ready", Tone::Good);
        }
        for reason in &self.not_ready_reasons {
            page.line(&format!("  not ready: {reason}"), Tone::Bad);
        }
        page.fields(&[
            ("version", self.version.clone()),
            ("cluster", self.cluster_id.clone()),
            ("up for", quantity::duration(Duration::from_millis(self.uptime_ms))),
            ("topics", quantity::count(self.topics.into())),
            ("partitions", quantity::count(self.partitions.into())),
            ("connections", quantity::count(self.connections.into())),
        ]);
        page.title("Data directories");
        let mut rows = Rows::new(&["PATH", "STATE", ">USED", ">DISK FREE", ">DISK SIZE"]);
        for it in &self.data_directories {
            let sizes =
                [it.used_bytes, it.disk_free_bytes, it.disk_total_bytes].map(quantity::bytes);
            let mut row = vec![it.path.clone(), it.state.clone()];
            row.extend(sizes);
            rows.push_toned(row, if it.state == "ok" { Tone::Plain } else { Tone::Bad });
        }
        page.table(&rows);
        page.title(if self.all { "Settings" } else { "Settings that were set" });
        if self.settings.is_empty() {
            page.line("none; --all shows all of them", Tone::Plain);
            return;
        }
        let mut rows = Rows::new(&["SETTING", "VALUE", "DEFAULT", "SOURCE", "MEANING"]);
        for it in &self.settings {
            let row = [&it.name, &it.value, &it.default, &it.source, &it.doc];
            rows.push(row.map(String::clone).to_vec());
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

pub(super) async fn run(session: &Session, args: &DescribeArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let broker = admin.describe_broker(args.id, true).await?;
    let dirs = admin.describe_log_dirs(Some(broker.id)).await?.dirs;
    session.output.print(&Described::new(broker, dirs, args.all))?;
    Ok(Exit::Success)
}

impl Described {
    fn new(broker: DescribeBrokerResponse, dirs: Vec<LogDirDescription>, all: bool) -> Self {
        let settings = broker.settings.into_iter();
        let settings = settings.filter(|it| all || it.source != "default").map(Setting::from);
        let directories = dirs.into_iter().map(|dir| Directory {
            used_bytes: dir.topics.iter().map(|topic| topic.size_bytes).sum(),
            path: dir.path,
            state: dir.state,
            disk_total_bytes: dir.disk_total_bytes,
            disk_free_bytes: dir.disk_free_bytes,
        });
        Self {
            id: broker.id,
            cluster_id: broker.cluster_id,
            version: broker.version,
            ready: broker.not_ready_reasons.is_empty(),
            not_ready_reasons: broker.not_ready_reasons,
            uptime_ms: broker.uptime_ms,
            topics: broker.topics,
            partitions: broker.partitions,
            connections: broker.connections,
            data_directories: directories.collect(),
            settings: settings.collect(),
            all,
        }
    }
}
