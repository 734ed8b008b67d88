//! Programs that are not ours and that a suite needs: found on the `PATH`, or unpacked from Debian's package.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::process::programs_dir;

/// A program of that name: from the `PATH`, or else unpacked below the build's target folder from the Debian package,
/// which is downloaded but not installed, so that no service of its own starts.
pub fn debian_program(package: &str, program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let unpacked = programs_dir().join("tools").join(package);
    let unpacked_program = unpacked.join("usr/bin").join(program);
    let mut places = env::split_paths(&path).map(|dir| dir.join(program));
    if let Some(found) = places.find(|path| path.is_file()) {
        return Ok(found);
    }
    if !unpacked_program.is_file() {
        unpack(package, &unpacked).with_context(|| {
            format!("{program} is not installed; try `apt-get install {package}`")
        })?;
    }
    Ok(unpacked_program)
}

/// All at once: several tests may want the same package at the same time.
fn unpack(package: &str, into: &Path) -> Result<()> {
    let parent = into.parent().context("a folder for all packages")?;
    std::fs::create_dir_all(parent)?;
    let unpacked = tempfile::tempdir_in(parent)?;
    let downloads = tempfile::tempdir()?;
    // Without package lists, as on a new machine, they are fetched first.
    if run(Command::new("apt-get").args(["download", package]).current_dir(&downloads)).is_err() {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get").args(["download", package]).current_dir(&downloads))?;
    }
    let mut entries = std::fs::read_dir(&downloads)?;
    let archive = entries.next().context("apt-get download leaves a file")??.path();
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(unpacked.path()))?;
    match std::fs::rename(unpacked.path(), into) {
        Err(error) if !into.is_dir() => Err(error.into()),
        // Done, or somebody else was quicker.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
