//! The end of a run: every fault is mended, and what is left must come to order within a bound of simulated time. What is
//! demanded then is in `oracle/liveness`.

use std::collections::BTreeSet;

use super::{
    client::named,
    core::{MS, Micros, SECOND},
    trace::Who,
    world::World,
};
use crate::{
    checker,
    history::{Action, Send},
    oracle::{Ghost, Verdict, Violation, liveness, violation},
};

/// How long everything may take to come to order.
const SETTLE_US: Micros = 90 * SECOND;
/// Bytes in a push to a follower at least from then on.
const HEALED_PUSH_BYTES: usize = 64 << 10;
/// How often it is looked at.
const LOOK_US: Micros = 200 * MS;

/// How a run went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Something happened that must never happen.
    Safety(Violation),
    /// Something did not happen that must happen when nothing is in its way.
    Liveness(Violation),
}

impl World {
    /// Mends everything, and waits until all is in order.
    pub fn heal(&mut self) -> Result<(), Wrong> {
        self.mend_all().map_err(Wrong::Safety)?;
        let healed_us = self.core.now_us();
        self.history.healed_ns = Some(healed_us * 1_000);
        let mut goals = liveness::Goals::begin(self);
        loop {
            let until_us = self.core.now_us() + LOOK_US;
            self.run(until_us).map_err(Wrong::Safety)?;
            let Some(unmet) = goals.unmet(self) else { break };
            if self.core.now_us() - healed_us > SETTLE_US {
                return Err(Wrong::Liveness(unmet));
            }
        }
        let took_ms = (self.core.now_us() - healed_us) / MS;
        self.core.figures.happened_times("milliseconds to order", took_ms);
        self.ghost.check_no_loss().map_err(Wrong::Safety)?;
        if !self.copiers.is_empty() && self.can_coordinate() && !self.ghost.scan.exactly_once.is_off
        {
            self.core.figures.check("copies compared");
            self.ghost.scan.compare_copies().map_err(Wrong::Safety)?;
        }
        self.compare_all_compacted().map_err(Wrong::Safety)?;
        self.judge_history().map_err(Wrong::Safety)
    }

    fn mend_all(&mut self) -> Verdict {
        self.core.note(Who::World, "heal", [0, 0], String::new);
        self.are_faults_on = false;
        // With pushes as small as they are drawn, a replica that is far behind a busy leader never catches up.
        self.shape.push_bytes = self.shape.push_bytes.max(HEALED_PUSH_BYTES);
        self.net.unblock_all(&mut self.core);
        self.net.corrupt(0);
        for id in self.shape.nodes.clone() {
            self.mend_disk(id);
            self.resume(id)?;
            self.leaving.remove(&id);
            let node = &self.nodes[&id];
            if node.is_up() {
                let process = node.process().expect("it is up");
                if process.broker.disk_failure().is_some()
                    || process.has_controller_failed()
                    || process.is_leaving()
                {
                    self.crash(id);
                }
            }
            self.start(id)?;
        }
        self.undo_drains();
        for producer in self.producers.values_mut() {
            producer.is_calm = true;
        }
        Ok(())
    }

    fn undo_drains(&mut self) {
        for broker_id in self.shape.nodes.clone() {
            let command = tidemark_controller::SetDraining { broker_id, draining: false };
            self.wish(tidemark_controller::Command::SetDraining(command));
        }
    }

    /// Where more was lost than is promised to survive, offsets are given out again: what clients saw before that and what
    /// they see afterwards are two logs.
    fn forget_what_is_beyond_promise(&mut self) {
        let Ghost { lossy, lost, .. } = &self.ghost;
        let beyond: BTreeSet<_> = lossy.union(lost).copied().map(named).collect();
        self.history.operations.retain_mut(|operation| match &mut operation.action {
            Action::Send(Send { partition, .. })
            | Action::OutOfRange { partition, .. }
            | Action::ReadEnd { partition, .. } => !beyond.contains(partition),
            Action::Poll(poll) => {
                poll.records.retain(|(partition, _)| !beyond.contains(partition));
                true
            }
            Action::Assign(positions) => {
                positions.retain(|(partition, _)| !beyond.contains(partition));
                true
            }
            _ => true,
        });
    }

    /// What clients have seen, judged by the checker that judges real processes.
    fn judge_history(&mut self) -> Verdict {
        let served = liveness::served(self);
        let stuck = self.partitions().len() - served.len();
        self.core.figures.happened_times("partitions left to the operator", stuck as u64);
        let kept: BTreeSet<_> = served.into_iter().map(named).collect();
        self.forget_what_is_beyond_promise();
        for operation in &mut self.history.operations {
            if let Action::Send(send) = &mut operation.action {
                // Nobody is owed what was in a topic that was deleted.
                send.survives &= kept.contains(&send.partition);
            }
        }
        let report = checker::check(&self.history);
        self.core.figures.check("history");
        match report.findings.anomalies.first_key_value() {
            None => Ok(()),
            Some((kind, anomaly)) => {
                Err(violation("history", format!("{}: {:?}", kind.name(), anomaly.evidence)))
            }
        }
    }
}
