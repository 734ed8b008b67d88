//! Moves of replicas: the plan as a table, starting it, and the report of what came of it.
//!
//! A move lives in the cluster's metadata: it goes on when this program ends, and [`watch`] can look at it again at any time.

pub(crate) mod tracker;
pub(crate) mod watch;

use std::collections::BTreeMap;

use serde::Serialize;
use tidemark_client::{Admin, Reassignment};
use tidemark_protocol::{
    BrokerId, PartitionIndex, TopicPartition,
    messages::{PartitionReplicas, PlannedMove},
};

use crate::{
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    placement::{self, Partition},
    quantity,
};

/// Moves in one request: far below the protocol's limit, so that a throttled controller answers each in time.
const MOVES_PER_REQUEST: usize = 1000;

/// What is asked of moves beside where to.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Pace {
    /// Most bytes per second that each broker copies to replicas out of sync, like 50MiB; 0 for no bound [default: as it is]
    #[arg(long, value_name = "SIZE", value_parser = parse_throttle)]
    pub(crate) throttle: Option<u64>,

    /// Return as soon as the moves have begun; the same command without it shows how far they are
    #[arg(long)]
    pub(crate) no_wait: bool,
}

fn parse_throttle(text: &str) -> Result<u64, String> {
    quantity::parse_bytes(text.strip_suffix("/s").unwrap_or(text))
}

/// What is to move, or has.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    dry_run: bool,
    moves: Vec<Move>,
    /// Of all moves together.
    bytes_to_copy: u64,
}

/// One partition's share of a plan.
#[derive(Debug, Serialize)]
pub(crate) struct Move {
    pub(crate) topic: String,
    pub(crate) partition: PartitionIndex,
    pub(crate) from: Vec<BrokerId>,
    pub(crate) to: Vec<BrokerId>,
    /// Size of the log, once for each replica that has to be made; `null` when its leader does not say.
    pub(crate) bytes_to_copy: Option<u64>,
    pub(crate) status: Status,
    /// Why it was refused.
    pub(crate) error: Option<String>,
    #[serde(skip)]
    pub(crate) id: TopicPartition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// It would begin.
    Planned,
    Moving,
    Moved,
    Cancelled,
    Refused,
}

impl Status {
    fn text(self, dry_run: bool) -> &'static str {
        match self {
            Self::Planned if dry_run => "would move",
            Self::Planned => "to move",
            Self::Moving => "moving",
            Self::Moved => "moved",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}

impl Report for Plan {
    const SCHEMA: &'static str = "tidemark/partition.move/1";

    fn page(&self, page: &mut Page) {
        if self.moves.is_empty() {
            page.line("nothing to move", Tone::Plain);
            return;
        }
        page.table(&self.rows());
        let summary =
            format!("{}, {} to copy", self.counted(), quantity::bytes(self.bytes_to_copy));
        page.line(&summary, Tone::Plain);
        for it in self.moves.iter().filter(|it| it.error.is_some()) {
            let error = it.error.as_deref().unwrap_or_default();
            page.line(&format!("{}/{}: {error}", it.topic, it.partition), Tone::Bad);
        }
    }

    fn names(&self) -> Vec<String> {
        self.moves.iter().map(|it| format!("{}/{}", it.topic, it.partition)).collect()
    }
}

impl Plan {
    pub(crate) fn new(moves: Vec<Move>, dry_run: bool) -> Self {
        let bytes_to_copy = moves.iter().filter_map(|it| it.bytes_to_copy).sum();
        Self { dry_run, moves, bytes_to_copy }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// `3 partitions`.
    pub(crate) fn counted(&self) -> String {
        quantity::counted(self.moves.len() as u64, "partition")
    }

    fn rows(&self) -> Rows {
        let mut rows = Rows::new(&["PARTITION", "FROM", "TO", ">TO COPY", "STATUS"]);
        for it in &self.moves {
            rows.push_toned(
                vec![
                    format!("{}/{}", it.topic, it.partition),
                    placement::ids(&it.from),
                    placement::ids(&it.to),
                    it.bytes_to_copy.map_or_else(|| "?".to_owned(), quantity::bytes),
                    it.status.text(self.dry_run).to_owned(),
                ],
                if it.status == Status::Refused { Tone::Bad } else { Tone::Plain },
            );
        }
        rows
    }

    /// Shows on standard error what is going to happen, before somebody is asked.
    pub(crate) fn show(&self, what: &str) {
        output::note(what);
        output::note(output::plain_table(&self.rows()).trim_end());
        let bytes = quantity::bytes(self.bytes_to_copy);
        output::note(format_args!("{}, {bytes} to copy", self.counted()));
    }

    /// Begins what is planned, or checks that it could (`dry_run`), and notes in the plan what came of it.
    pub(crate) async fn begin(
        &mut self,
        admin: &Admin,
        throttle_bytes_per_second: Option<u64>,
    ) -> Result<(), CliError> {
        let validate_only = self.dry_run;
        let begun = if validate_only { Status::Planned } else { Status::Moving };
        self.order(admin, begun, |it| Reassignment {
            moves: vec![(it.id, Some(it.to.clone()))],
            throttle_bytes_per_second,
            validate_only,
        })
        .await
    }

    /// Takes back what is under way.
    pub(crate) async fn take_back(&mut self, admin: &Admin) -> Result<(), CliError> {
        let validate_only = self.dry_run;
        let begun = if validate_only { Status::Planned } else { Status::Cancelled };
        self.order(admin, begun, |it| Reassignment {
            moves: vec![(it.id, None)],
            throttle_bytes_per_second: None,
            validate_only,
        })
        .await
    }

    async fn order(
        &mut self,
        admin: &Admin,
        done: Status,
        order: impl Fn(&Move) -> Reassignment,
    ) -> Result<(), CliError> {
        for chunk in self.moves.chunks_mut(MOVES_PER_REQUEST) {
            let mut request = Reassignment::default();
            for it in &*chunk {
                let Reassignment { moves, throttle_bytes_per_second, validate_only } = order(it);
                request.moves.extend(moves);
                request.throttle_bytes_per_second = throttle_bytes_per_second;
                request.validate_only = validate_only;
            }
            let outcomes = admin.reassign_partitions(request).await?;
            for (it, outcome) in chunk.iter_mut().zip(outcomes) {
                match outcome {
                    Ok(()) => it.status = done,
                    Err(failure) => {
                        it.status = Status::Refused;
                        it.error = Some(failure.message);
                    }
                }
            }
        }
        Ok(())
    }

    /// Those that have begun and are not done.
    pub(crate) fn moving(&self) -> Vec<TopicPartition> {
        let moving = self.moves.iter().filter(|it| it.status == Status::Moving);
        moving.map(|it| it.id).collect()
    }

    /// The cluster has taken it over to carry the plan out.
    pub(crate) fn set_moving(&mut self) {
        for it in self.moves.iter_mut().filter(|it| it.status == Status::Planned) {
            it.status = Status::Moving;
        }
    }

    /// All that were moving have arrived.
    pub(crate) fn arrived(&mut self) {
        for it in self.moves.iter_mut().filter(|it| it.status == Status::Moving) {
            it.status = Status::Moved;
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        let refused = self.moves.iter().filter(|it| it.status == Status::Refused).count();
        match refused {
            0 => Exit::Success,
            _ if refused < self.moves.len() => Exit::Partial,
            _ => Exit::Error,
        }
    }
}

/// How far the replicas of each partition are, where their leaders say so.
pub(crate) async fn progress(
    admin: &Admin,
    partitions: &[Partition],
) -> Result<BTreeMap<TopicPartition, PartitionReplicas>, CliError> {
    let named: Vec<_> = partitions.iter().map(|it| (it.topic.as_str(), it.index)).collect();
    let answers = admin.describe_replicas(&named).await?;
    let known = partitions.iter().zip(answers);
    Ok(known.filter_map(|(it, answer)| Some((it.id(), answer.ok()?))).collect())
}

/// The moves that bring each of `partitions` to `to`; those that are there, or on their way there, need none.
pub(crate) fn explicit(
    partitions: &[Partition],
    to: &[BrokerId],
    sizes: &BTreeMap<TopicPartition, PartitionReplicas>,
) -> Vec<Move> {
    let astray = partitions.iter().filter(|it| it.target() != to);
    astray.map(|it| Move::new(it, it.origin(), to.to_vec(), sizes.get(&it.id()))).collect()
}

/// The moves that a broker has planned.
pub(crate) fn planned(
    planned: Vec<PlannedMove>,
    sizes: &BTreeMap<TopicPartition, PartitionReplicas>,
) -> Vec<Move> {
    let of = |it: PlannedMove| {
        let size = sizes.get(&it.partition);
        Move {
            bytes_to_copy: size.map(|size| bytes_to_copy(&it.from, &it.to, size)),
            topic: it.topic,
            partition: it.partition.partition,
            from: it.from,
            to: it.to,
            status: Status::Planned,
            error: None,
            id: it.partition,
        }
    };
    planned.into_iter().map(of).collect()
}

impl Move {
    pub(crate) fn new(
        partition: &Partition,
        from: Vec<BrokerId>,
        to: Vec<BrokerId>,
        size: Option<&PartitionReplicas>,
    ) -> Self {
        Self {
            topic: partition.topic.clone(),
            partition: partition.index,
            bytes_to_copy: size.map(|size| bytes_to_copy(&from, &to, size)),
            from,
            to,
            status: Status::Planned,
            error: None,
            id: partition.id(),
        }
    }
}

fn bytes_to_copy(from: &[BrokerId], to: &[BrokerId], size: &PartitionReplicas) -> u64 {
    let new = to.iter().filter(|id| !from.contains(id)).count();
    size.size_bytes.saturating_mul(new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::{Color, Format, Output},
        placement::{partitions_of, tests::topic},
    };

    pub(crate) fn replicas(size_bytes: u64) -> PartitionReplicas {
        PartitionReplicas {
            leader_epoch: 1,
            log_start_offset: 0,
            high_watermark: 10,
            log_end_offset: 10,
            size_bytes,
            replicas: Vec::new(),
        }
    }

    fn plan(dry_run: bool) -> Plan {
        let partitions =
            partitions_of(&topic(&[(Some(1), &[1, 2], &[1, 2]), (Some(2), &[2, 3], &[2, 3])], "1"));
        let sizes = [(partitions[0].id(), replicas(3 << 20))].into();
        Plan::new(explicit(&partitions, &[2, 3], &sizes), dry_run)
    }

    fn text(plan: &Plan) -> String {
        let output = Output::new(Format::Table, true, Color::Never);
        String::from_utf8(output.render(plan).unwrap()).unwrap()
    }

    #[test]
    fn a_plan_is_a_table_of_what_is_copied_where_and_leaves_out_what_is_there() {
        assert_eq!(
            text(&plan(true)),
            "PARTITION  FROM  TO    TO COPY  STATUS\n\
             orders/0   1,2   2,3  3.00 MiB  would move\n\
             1 partition, 3.00 MiB to copy\n"
        );
        assert_eq!(text(&Plan::new(Vec::new(), true)), "nothing to move\n");
    }

    #[test]
    fn what_is_on_its_way_to_the_same_place_is_not_moved_again() {
        let mut topic = topic(&[(Some(1), &[1, 2, 3], &[1, 2])], "1");
        topic.partitions[0].adding = vec![3];
        topic.partitions[0].removing = vec![1];
        let partitions = partitions_of(&topic);
        assert!(explicit(&partitions, &[2, 3], &BTreeMap::new()).is_empty());
        let elsewhere = explicit(&partitions, &[2, 4], &BTreeMap::new());
        assert_eq!((elsewhere[0].from.as_slice(), elsewhere[0].bytes_to_copy), (&[1, 2][..], None));
    }

    #[test]
    fn every_new_replica_is_a_copy_and_those_that_stay_are_none() {
        assert_eq!(bytes_to_copy(&[1, 2], &[2, 3, 4], &replicas(100)), 200);
        assert_eq!(bytes_to_copy(&[1, 2, 3], &[3, 1], &replicas(100)), 0);
    }

    #[test]
    fn a_refused_move_says_why_and_decides_the_exit_code() {
        let mut refused = plan(false);
        assert_eq!(refused.exit(), Exit::Success);
        refused.moves[0].status = Status::Refused;
        refused.moves[0].error = Some("broker 3 is fenced".to_owned());
        assert_eq!(refused.exit(), Exit::Error);
        assert!(text(&refused).ends_with("orders/0: broker 3 is fenced\n"), "{}", text(&refused));
        let mut moving = plan(false);
        moving.set_moving();
        refused.moves.append(&mut moving.moves);
        assert_eq!((refused.exit(), refused.moving().len()), (Exit::Partial, 1));
        refused.arrived();
        assert!(refused.moving().is_empty());
    }

    #[test]
    fn a_throttle_may_be_written_as_the_rate_it_is() {
        assert_eq!(parse_throttle("50MiB"), Ok(50 << 20));
        assert_eq!(parse_throttle("50MiB/s"), Ok(50 << 20));
        assert_eq!(parse_throttle("0"), Ok(0));
        assert!(parse_throttle("fast").is_err());
    }
}
