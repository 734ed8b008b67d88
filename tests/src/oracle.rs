//! What must hold, one file per property, named as `correctness.md` numbers them (S1 to S26; L1 to L12).
//!
//! The oracles see what nobody in the cluster can: every log at once, everything that was ever committed, who has lost
//! what. They look after every step, at what the step has changed, so that a look costs little; each says what it found
//! in a sentence. They change nothing.

#![expect(clippy::ref_option, unreachable_pub, reason = "oracles are handed what the ghost has")]

mod atomicity;
mod bounds;
mod candidate_completeness;
mod commit_immutable;
mod committed_offsets;
mod compaction;
mod epochs;
mod exactly_once;
mod ghost;
mod group_fencing;
mod group_log;
mod idempotence;
mod isr_cas;
mod leader_completeness;
pub mod liveness;
mod log_matching;
mod marks;
mod metadata;
mod metadata_matching;
mod min_isr_gate;
mod no_loss;
mod producer_fencing;
mod quorum_superset;
mod raft;
mod recovery;
pub mod retention;
mod scan;
mod single_leader;
mod stable_offset;
mod unclean_exclusion;
mod verified;
mod watermark;

use std::fmt;

pub use self::{
    committed_offsets::CommittedOffsets,
    compaction::keeps_removals_us,
    exactly_once::{Copied, ExactlyOnce},
    ghost::{Ghost, Mark, Observed, ReplicaKey, Truth},
    group_fencing::Claims,
    no_loss::Acknowledged,
    scan::{Roles, Scan},
    unclean_exclusion::Loss,
};

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub property: &'static str,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.property, self.text)
    }
}

/// Whether what was looked at is in order.
pub type Verdict = Result<(), Violation>;

/// A violation of this property.
pub fn violation(property: &'static str, text: impl Into<String>) -> Violation {
    Violation { property, text: text.into() }
}

/// Holds, or is a violation.
fn require(holds: bool, property: &'static str, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(violation(property, text())) }
}
