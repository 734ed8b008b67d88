//! `summary`: what somebody else has made of a log's batches up to an offset, kept beside them so that after a restart or a
//! truncation nobody has to read all of them again. Opaque bytes here.
//!
//! A summary is only a shortcut: one that may be about batches that are not in the log any more is not given to anybody.
//! A small one may also come with the [`crate::Checkpoint`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemark_protocol::Offset;

use super::{Log, Shared};
use crate::{
    disk::{Disk, DiskError},
    state_file::{self, Kind},
};

const SUMMARY_FILE: &str = "summary";
/// Longest content of a summary, in bytes.
pub const SUMMARY_BYTES_MAX: usize = 64 << 20;
/// What the file has around its content, and more.
const FILE_OVERHEAD_BYTES: usize = 4096;

/// What the batches below `end_offset` come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub end_offset: Offset,
    /// At most [`SUMMARY_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

/// The file: a summary, and which batches it is about.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    incarnation: u64,
    truncations: u64,
    summary: Summary,
}

/// Makes a summary durable, when run. May be run on any thread.
pub struct SummaryJob<D: Disk> {
    shared: Arc<Shared<D>>,
    stored: Stored,
}

impl<D: Disk> std::fmt::Debug for SummaryJob<D> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SummaryJob")
            .field("log", &self.shared)
            .field("end_offset", &self.stored.summary.end_offset)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> SummaryJob<D> {
    /// Replaces the summary on disk, unless the log was deleted, cut or begun anew meanwhile. When it fails the older
    /// summary is there still, or none: the next start reads more.
    pub fn run(self) -> Result<(), DiskError> {
        let Stored { incarnation, truncations, .. } = self.stored;
        let state_files = self.shared.state_files();
        if state_files.deleted
            || state_files.incarnation > incarnation
            || state_files.truncations != truncations
        {
            return Ok(());
        }
        let path = self.shared.path(SUMMARY_FILE);
        state_file::write(self.shared.disk(), &path, Kind::Summary, &self.stored)
    }
}

impl<D: Disk> Log<D> {
    /// A job that stores a summary. Its end is to be committed and flushed: what comes before it is not expected to go
    /// away, and if it does the summary is of no use.
    ///
    /// # Panics
    /// When it ends beyond the log, or is too long.
    pub fn summary_job(&self, summary: Summary) -> SummaryJob<D> {
        let (end_offset, log_end) = (summary.end_offset, self.log_end_offset());
        assert!(end_offset <= log_end, "a summary up to {end_offset}, the log ends at {log_end}");
        assert!(summary.content.len() <= SUMMARY_BYTES_MAX, "a summary is too long");
        let (incarnation, truncations) = (self.meta.incarnation, self.truncations.count());
        let stored = Stored { incarnation, truncations, summary };
        SummaryJob { shared: Arc::clone(&self.shared), stored }
    }

    /// The latest summary that is known to be about batches that are here, if there is one. Reads from the disk.
    pub fn summary(&self) -> Option<Summary> {
        let known = self.opened_summary.clone().filter(|(truncations, summary)| {
            self.is_about_this(self.meta.incarnation, *truncations, summary)
        });
        let known = known.map(|(_, summary)| summary);
        let end_offset = known.as_ref().map(|summary| summary.end_offset);
        if !self.dir_exists || end_offset == Some(self.log_end_offset()) {
            return known;
        }
        let path = self.shared.path(SUMMARY_FILE);
        let max_bytes = SUMMARY_BYTES_MAX + FILE_OVERHEAD_BYTES;
        let stored: Option<Stored> =
            state_file::read_cache(self.shared.disk(), &path, Kind::Summary, max_bytes);
        let stored = stored.filter(|stored| {
            self.is_about_this(stored.incarnation, stored.truncations, &stored.summary)
        });
        let later = |stored: &Stored| end_offset.is_none_or(|end| stored.summary.end_offset > end);
        stored.filter(later).map(|stored| stored.summary).or(known)
    }

    fn is_about_this(&self, incarnation: u64, truncations: u64, summary: &Summary) -> bool {
        let end_offset = summary.end_offset;
        incarnation == self.meta.incarnation
            && end_offset <= self.log_end_offset()
            && self.truncations.lowest_since(truncations).is_none_or(|lowest| lowest >= end_offset)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidemark_protocol::{
        TopicId, TopicPartition,
        batch::{Batch, BatchBuilder, Compression},
    };

    use super::*;
    use crate::{Checkpoint, LogConfig, LogIdentity, SegmentFiles, disk::SimDisk};

    const DIR: &str = "/topics/t/0";

    fn disk() -> SimDisk {
        let disk = SimDisk::new(1);
        for dir in ["/topics", "/topics/t"] {
            disk.create_dir(Path::new(dir)).unwrap();
        }
        disk.sync_dir(Path::new("/")).unwrap();
        disk
    }

    fn open(disk: &SimDisk, checkpoint: Option<Checkpoint>) -> Log<SimDisk> {
        let partition = TopicPartition { topic_id: TopicId([1; 16]), partition: 0 };
        let files = SegmentFiles::new(disk.clone(), 8);
        let (dir, identity) = (Path::new(DIR), LogIdentity { partition });
        Log::open(&files, dir, identity, LogConfig::default(), checkpoint).unwrap().0
    }

    fn append(log: &mut Log<SimDisk>, batches: u64) {
        for _ in 0..batches {
            let mut builder = BatchBuilder::new(Compression::None);
            builder.push(1, None, Some(b"v"), &[]);
            let batch = Batch::parse(&mut builder.build().unwrap()).unwrap();
            log.append(&[batch], 1, 1).unwrap();
        }
        while let Some(job) = log.flush_job() {
            log.flushed(job.run().unwrap());
        }
    }

    fn summary(end_offset: Offset) -> Summary {
        Summary { end_offset, content: vec![u8::try_from(end_offset).unwrap(); 3] }
    }

    #[test]
    fn the_last_summary_survives_a_loss_of_power() {
        let disk = disk();
        let mut log = open(&disk, None);
        append(&mut log, 5);
        assert_eq!(log.summary(), None);
        for end_offset in [3, 5] {
            log.summary_job(summary(end_offset)).run().unwrap();
        }
        drop(log);
        disk.power_loss();
        assert_eq!(open(&disk, None).summary(), Some(summary(5)));
    }

    #[test]
    fn a_summary_of_what_was_cut_off_is_not_believed() {
        let disk = disk();
        let mut log = open(&disk, None);
        append(&mut log, 5);
        let late = log.summary_job(summary(5));
        log.summary_job(summary(4)).run().unwrap();
        log.truncate(4).unwrap();
        assert_eq!(log.summary(), Some(summary(4)), "all of it is still there");
        log.truncate(3).unwrap();
        append(&mut log, 9);
        assert_eq!(log.summary(), None, "other batches are there now");
        late.run().unwrap();
        assert_eq!(log.summary(), None, "it came too late");
        assert_eq!(open(&disk, None).summary(), None);
        log.summary_job(summary(6)).run().unwrap();
        let late = log.summary_job(summary(7));
        log.restart_at(2).unwrap();
        late.run().unwrap();
        append(&mut log, 9);
        assert_eq!(log.summary(), None, "another life");
        log.delete().unwrap();
    }

    #[test]
    fn a_checkpoint_may_bring_a_later_one_and_is_held_to_the_same() {
        let disk = disk();
        let mut log = open(&disk, None);
        append(&mut log, 5);
        log.summary_job(summary(2)).run().unwrap();
        let checkpoint = Checkpoint { summary: Some(summary(5)), ..log.checkpoint() };
        let reopened = open(&disk, Some(checkpoint.clone()));
        assert_eq!(reopened.summary(), Some(summary(5)));
        log.truncate(3).unwrap();
        append(&mut log, 4);
        assert_eq!(open(&disk, Some(checkpoint)).summary(), Some(summary(2)));
    }

    #[test]
    fn a_damaged_file_is_none() {
        let disk = disk();
        let mut log = open(&disk, None);
        append(&mut log, 1);
        log.summary_job(summary(1)).run().unwrap();
        let path = Path::new(DIR).join(SUMMARY_FILE);
        let mut bytes = disk.read_file(&path, 1000).unwrap().unwrap();
        bytes[20] ^= 1;
        disk.write_file(&path, &bytes).unwrap();
        assert_eq!(log.summary(), None);
    }
}
