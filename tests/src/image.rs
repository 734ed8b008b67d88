//! Disks that can lose power: file systems in image files, mounted through a loop device.
//!
//! A copy of the image, taken while the broker on it is stopped, is what a disk would hold if the power went away in that
//! moment: what was flushed is there, what was not is in the page cache of the file system above and nowhere else.
//! Needs root, `mkfs.ext4`, `losetup` and `mount`. Writeback of the kernel must not get there first: it leaves pages alone
//! for thirty seconds (`vm.dirty_expire_centisecs`), and the journal is told to do so for longer.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// How it is mounted: the journal is committed by flushes alone.
pub const MOUNT_OPTIONS: &str = "loop,commit=300";
/// How long the kernel may take to let go of an image whose last process has ended.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(2);

/// A folder that only lives as long as the machine is up, where there is one: the images' own bytes need not be durable.
pub fn folder() -> Result<tempfile::TempDir> {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        return Ok(tempfile::tempdir_in(shared_memory)?);
    }
    Ok(tempfile::tempdir()?)
}

/// An image with an empty file system.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    /// How many times it has lost power.
    losses: u64,
}

impl Image {
    /// Makes `<stem>.0` with a file system of this size.
    pub fn create(stem: &Path, mib: u64) -> Result<Self> {
        let image = Self { path: stem.with_extension("0"), losses: 0 };
        image.format(mib)?;
        Ok(image)
    }

    /// Makes the file system anew.
    pub fn format(&self, mib: u64) -> Result<()> {
        let file = File::create(&self.path)?;
        file.set_len(mib << 20)?;
        let mut command = Command::new("mkfs.ext4");
        run(command.args(["-q", "-F", "-b", "4096"]).arg(&self.path))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk as it is without whatever has not reached it. Who writes to it must be stopped. The old image stays
    /// until [`Image::remove`].
    pub fn lose_power(&self) -> Result<Self> {
        let losses = self.losses + 1;
        let path = self.path.with_extension(losses.to_string());
        let mut command = Command::new("cp");
        run(command.arg("--sparse=always").arg(&self.path).arg(&path))?;
        Ok(Self { path, losses })
    }

    /// Waits until no loop device has the image any more: a mount ends some time after the last process that saw it.
    pub fn await_released(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = Command::new("losetup").arg("-j").arg(&self.path).output()?;
            if output.stdout.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} is still in use", self.path.display());
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    pub fn remove(&self) -> Result<()> {
        Ok(fs::remove_file(&self.path)?)
    }
}

/// Shows that the method does what it says on this machine: what was flushed is in the copy, what was not is not.
pub fn prove() -> Result<()> {
    let dir = folder()?;
    let (mount, image) = (dir.path().join("mount"), Image::create(&dir.path().join("proof"), 64)?);
    fs::create_dir(&mount)?;
    let copy = dir.path().join("copy");
    let script = "mount -o \"$1\" \"$2\" \"$3\" && cd \"$3\" && echo kept >flushed && sync . flushed \
                  && echo lost >unflushed && cp --sparse=always \"$2\" \"$4\" && cd / && umount \"$3\"";
    let mut write = Command::new("unshare");
    write.args(["-m", "sh", "-c", script, "sh", MOUNT_OPTIONS]).arg(image.path());
    run(write.arg(&mount).arg(&copy))?;
    let script = "mount -o loop \"$1\" \"$2\" && cd \"$2\" && cat flushed && cat unflushed 2>/dev/null; cd /";
    let mut look = Command::new("unshare");
    look.args(["-m", "sh", "-c", script, "sh"]).arg(&copy).arg(&mount);
    let seen = look.output()?;
    let text = String::from_utf8_lossy(&seen.stdout);
    ensure!(
        text == "kept\n",
        "no loss of power: {text:?} {:?}",
        String::from_utf8_lossy(&seen.stderr)
    );
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_flushed_is_lost() {
        if rustix::process::geteuid().is_root() {
            prove().unwrap();
        }
    }
}
