//! The bugs that can be put back where the simulator runs what they break, and the hunt for them. What each breaks is in
//! `docs/testing.md`; a test compares both with what the source asks for.

use std::{
    env, io,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// All of them. Those of classic groups are not here: no simulated client is in one.
pub const ALL: &[&str] = &[
    "complete-before-all-markers",
    "coordinator-answers-before-commit",
    "decided-transactions-forgotten-at-failover",
    "diverging-fetch-updates-state",
    "diverging-reply-raises-watermark",
    "duplicate-forgets-epoch",
    "durable-counts-unflushed",
    "elect-fenced-replica",
    "epochs-not-truncated-at-end",
    "expand-before-leso",
    "expand-without-fetch-in-epoch",
    "followers-forget-producers",
    "isr-change-without-cas",
    "isr-rollback-on-any-error",
    "isr-rollback-on-refusal",
    "keep-follower-state-over-epochs",
    "kip-890-no-epoch-bump",
    "late-diverging-reply",
    "lso-reads-watermark-twice",
    "marker-without-coordinator-epoch",
    "no-batch-validation",
    "no-broker-epoch-check",
    "no-elr",
    "no-epoch-bump-after-reassignment",
    "no-verification-guard",
    "overtaken-heartbeat-accepted",
    "partition-given-before-revoked",
    "pending-offset-wins-by-time",
    "raft-apply-before-flush-single-voter",
    "raft-commit-not-persisted",
    "raft-send-before-flush",
    "raft-vote-not-durable",
    "reassignment-completes-early",
    "repeated-answered-before-commit",
    "removals-are-missed",
    "reply-before-commit",
    "stale-broker-epoch-accepted",
    "stale-commit-accepted",
    "timeout-does-not-bump",
    "tombstone-leaves-pending",
    "truncate-to-watermark",
    "truncation-keeps-producers",
    "unclean-restart-stays-in-isr",
    "watermark-below-min-isr",
    "watermark-ignores-pending-isr",
    "wiped-disk-is-trusted",
    "wiped-disk-keeps-its-vote",
];

/// What came of a hunt.
#[derive(Clone, Debug)]
pub struct Hunted {
    pub name: &'static str,
    /// What the hunt printed last: where the bug was found, or that it was not.
    pub outcome: String,
    pub took: Duration,
}

/// Hunts one bug in a process of its own, with these arguments for it: a process does not change which bug it has.
pub fn hunt(name: &'static str, arguments: &[String]) -> io::Result<Hunted> {
    let began = Instant::now();
    let output = Command::new(env::current_exe()?)
        .args(arguments)
        .arg("--hunt")
        .env("TIDEMARK_BUG", name)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcome = said.lines().next().unwrap_or("it said nothing").to_owned();
    Ok(Hunted { name, outcome, took: began.elapsed() })
}
