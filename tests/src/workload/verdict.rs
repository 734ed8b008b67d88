//! The judge's word as a test wants it: an error with the evidence, and the history kept in a file.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::{Result, bail};

use crate::{
    checker::{Report, check},
    history::History,
    process::failure_dir,
};

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
