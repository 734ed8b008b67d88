//! The judge's word as a test wants it: an error with the evidence, and the history kept in a file.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Workload, replicas};
use crate::{
    checker::{Report, check},
    cluster::{Cluster, PATIENCE},
    history::History,
    process::failure_dir,
};

/// Waits until everything is well again, reads everything, compares the replicas, and demands that nothing is wrong. Ends
/// all processes.
pub fn judge(cluster: &mut Cluster, workload: Workload, topic: &str) -> Result<Report> {
    cluster.heal()?;
    cluster.await_in_sync(topic)?;
    workload.await_progress(PATIENCE).context("when all was well again")?;
    let mut history = workload.finish(cluster.client_config(), PATIENCE)?;
    cluster.await_in_sync(topic)?;
    cluster.check_processes()?;
    history.replicas = replicas::collect(cluster, topic)?;
    demand_clean(&history)
}

/// Judges a history. What was found is an error, which also says where the history can be read.
pub fn demand_clean(history: &History) -> Result<Report> {
    let report = check(history);
    if report.is_clean() {
        return Ok(report);
    }
    match keep(history) {
        Ok(path) => bail!("{report}\nthe history is in {}", path.display()),
        Err(error) => bail!("{report}\nthe history could not be written: {error}"),
    }
}

/// In a file, numbered as in the evidence.
fn keep(history: &History) -> Result<PathBuf> {
    let path = failure_dir()?.join("history.txt");
    let mut file = std::io::BufWriter::new(fs::File::create(&path)?);
    for line in history.lines() {
        writeln!(file, "{line}")?;
    }
    file.flush()?;
    Ok(path)
}
