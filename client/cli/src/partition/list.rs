//! `tidemark partition list`: partitions on a line each, all or those in trouble.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{BrokerId, LeaderEpoch, PartitionIndex};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    placement::{self, Partition, Selection},
    session::Session,
};

/// List partitions: leaders, replicas, and who is in sync
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  tidemark partition list
  tidemark partition list orders payments/0-3
  tidemark partition list --under-replicated
  tidemark partition list --leader 2 -o name"
)]
pub(crate) struct ListArgs {
    /// Only these, as TOPIC, TOPIC/2, TOPIC/0,3 or TOPIC/0-5
    #[arg(value_name = "PARTITION")]
    partitions: Vec<Selection>,

    #[command(flatten)]
    filter: Filter,
}

/// With several of these, a partition is listed that any of them is about.
#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Filter {
    /// Only those with a replica that is not in sync
    #[arg(long)]
    under_replicated: bool,

    /// Only those with fewer replicas in sync than `min_insync_replicas`, which refuse records with acks=all
    #[arg(long)]
    under_min_isr: bool,

    /// Only those without a leader, which cannot be read or written
    #[arg(long, visible_alias = "offline")]
    leaderless: bool,

    /// Only those that are being moved
    #[arg(long)]
    moving: bool,

    /// Only those that another broker leads than should
    #[arg(long)]
    not_preferred: bool,

    /// Only those with a replica on this broker
    #[arg(long, value_name = "BROKER")]
    broker: Option<BrokerId>,

    /// Only those that this broker leads
    #[arg(long, value_name = "BROKER")]
    leader: Option<BrokerId>,
}

impl Filter {
    fn is_about(&self, it: &Partition) -> bool {
        let conditions = [
            (self.under_replicated, it.is_under_replicated()),
            (self.under_min_isr, it.is_below_min_isr()),
            (self.leaderless, it.is_leaderless()),
            (self.moving, it.is_moving()),
            (self.not_preferred, it.is_led_by_another()),
        ];
        let any = conditions.iter().any(|(asked, holds)| *asked && *holds);
        let none_asked = conditions.iter().all(|(asked, _)| !asked);
        (none_asked || any)
            && self.broker.is_none_or(|broker| it.metadata.replicas.contains(&broker))
            && self.leader.is_none_or(|leader| it.metadata.leader == Some(leader))
    }
}

#[derive(Serialize)]
struct Listed {
    partitions: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    topic: String,
    partition: PartitionIndex,
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    preferred_leader: Option<BrokerId>,
    replicas: Vec<BrokerId>,
    isr: Vec<BrokerId>,
    elr: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    min_isr: usize,
    health: &'static str,
    #[serde(skip)]
    troubled: bool,
}

impl From<&Partition> for Row {
    fn from(it: &Partition) -> Self {
        let metadata = it.metadata.clone();
        Self {
            topic: it.topic.clone(),
            partition: it.index,
            preferred_leader: it.preferred(),
            min_isr: it.min_isr(),
            health: it.health(),
            troubled: it.is_in_trouble(),
            leader: metadata.leader,
            leader_epoch: metadata.leader_epoch,
            replicas: metadata.replicas,
            isr: metadata.isr,
            elr: metadata.elr,
            adding: metadata.adding,
            removing: metadata.removing,
        }
    }
}

impl Report for Listed {
    const SCHEMA: &'static str = "tidemark/partition.list/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&[
            "PARTITION",
            ">LEADER",
            ">EPOCH",
            "REPLICAS",
            "IN SYNC",
            "ELIGIBLE",
            ">MIN",
            "MOVE",
            "HEALTH",
        ]);
        for it in &self.partitions {
            rows.push_toned(
                vec![
                    format!("{}/{}", it.topic, it.partition),
                    it.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                    it.leader_epoch.to_string(),
                    placement::ids(&it.replicas),
                    placement::ids_or_dash(&it.isr),
                    placement::ids_or_dash(&it.elr),
                    it.min_isr.to_string(),
                    change(&it.adding, &it.removing),
                    it.health.to_owned(),
                ],
                if it.troubled { Tone::Bad } else { Tone::Plain },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.partitions.iter().map(|it| format!("{}/{}", it.topic, it.partition)).collect()
    }
}

/// `+4 -1` for a move that adds 4 and then removes 1.
fn change(adding: &[BrokerId], removing: &[BrokerId]) -> String {
    let added = adding.iter().map(|id| format!("+{id}"));
    let changes: Vec<_> = added.chain(removing.iter().map(|id| format!("-{id}"))).collect();
    if changes.is_empty() { "-".to_owned() } else { changes.join(" ") }
}

pub(super) async fn run(session: &Session, args: &ListArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let partitions = super::selected(&admin, &args.partitions).await?;
    let listed = partitions.iter().filter(|it| args.filter.is_about(it)).map(Row::from);
    session.output.print(&Listed { partitions: listed.collect() })?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::{Color, Format, Output},
        placement::{partitions_of, tests::topic},
    };

    fn partitions() -> Vec<Partition> {
        let mut topic = topic(
            &[
                (Some(1), &[1, 2, 3], &[1, 2, 3]),
                (Some(2), &[2, 3, 1], &[2]),
                (None, &[3, 1, 2], &[]),
                (Some(2), &[1, 2, 4], &[1, 2]),
            ],
            "2",
        );
        topic.partitions[2].elr = vec![3];
        topic.partitions[3].adding = vec![4];
        topic.partitions[3].removing = vec![1];
        partitions_of(&topic)
    }

    fn chosen(filter: &Filter) -> Vec<u32> {
        partitions().iter().filter(|it| filter.is_about(it)).map(|it| it.index).collect()
    }

    #[test]
    fn filters_of_trouble_add_up_and_those_of_brokers_narrow() {
        let none = Filter::default;
        assert_eq!(chosen(&none()), [0, 1, 2, 3]);
        assert_eq!(chosen(&Filter { under_replicated: true, ..none() }), [1, 2]);
        assert_eq!(chosen(&Filter { under_min_isr: true, ..none() }), [1, 2]);
        assert_eq!(chosen(&Filter { leaderless: true, moving: true, ..none() }), [2, 3]);
        assert_eq!(chosen(&Filter { broker: Some(4), ..none() }), [3]);
        assert_eq!(chosen(&Filter { leader: Some(2), under_replicated: true, ..none() }), [1]);
    }

    #[test]
    fn a_line_has_all_that_is_known_of_a_partition() {
        let listed = Listed { partitions: partitions().iter().map(Row::from).collect() };
        let output = Output::new(Format::Table, true, Color::Never);
        let text = String::from_utf8(output.render(&listed).unwrap()).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").filter(|it| !it.is_empty()).map(str::trim).collect())
            .collect();
        assert_eq!(lines[2], ["orders/1", "2", "0", "2,3,1", "2", "-", "2", "-", "below min ISR"]);
        assert_eq!(lines[3], ["orders/2", "none", "0", "3,1,2", "-", "3", "2", "-", "no leader"]);
        assert_eq!(lines[4], ["orders/3", "2", "0", "1,2,4", "1,2", "-", "2", "+4 -1", "moving"]);
    }
}
