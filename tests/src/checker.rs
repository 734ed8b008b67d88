//! The judge of histories: given what clients did and were told, what must not have happened and did.
//!
//! Pure and deterministic; the same judge for real processes and for the simulator. The words are Jepsen's where Jepsen has
//! one. One file per anomaly, each with what it is, and a test that looks like it and is not. It refuses to excuse
//! anything: what a client may not expect is for the history to say (see [`crate::history::Send::survives`] and
//! [`crate::history::Repeats`]).

mod aborted_read;
mod commit_regression;
mod divergence;
mod double_delivery;
mod duplicate;
mod epoch_regression;
mod inconsistent_offsets;
mod index;
mod invented_value;
mod lost_write;
mod offset_regression;
mod poll_order;
mod realtime_lag;
mod report;
mod send_order;
#[cfg(test)]
mod story;
mod transactions;
mod unseen;

pub use realtime_lag::Lag;
pub use report::{Anomaly, Counts, Findings, Kind, Report};

use self::index::Index;
use crate::history::History;

/// Judges a history.
pub fn check(history: &History) -> Report {
    let index = Index::new(history);
    let mut findings = Findings::default();
    let judges: [fn(&Index<'_>, &mut Findings); 15] = [
        inconsistent_offsets::find,
        lost_write::find,
        unseen::find,
        aborted_read::find,
        invented_value::find,
        duplicate::find,
        poll_order::find,
        send_order::find,
        offset_regression::find,
        epoch_regression::find,
        divergence::find,
        commit_regression::find,
        double_delivery::find,
        transactions::find,
        transactions::find_zombies,
    ];
    for judge in judges {
        judge(&index, &mut findings);
    }
    Report { findings, counts: Counts::of(&index), lag: realtime_lag::measure(&index) }
}
