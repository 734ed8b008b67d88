//! The seam between the controller and whoever agrees on its records. The controller decides, a quorum makes
//! decisions last; neither looks inside the other.

pub mod one;

use tidemark_protocol::TimestampMs;

use crate::{image::Image, record::MetadataRecord};

/// Agrees on records, in order, once and for good. One thread owns it, and its calls may block on a disk.
///
/// Records have consecutive indexes from 0 on, which the caller counts along: those of
/// [`Image::metadata_index`].
pub trait Quorum: Send + 'static {
    /// Takes in one decision, for the next [`Quorum::commit`]: all of its records or, after an error, none.
    fn propose(
        &mut self,
        records: &[MetadataRecord],
        now_ms: TimestampMs,
    ) -> Result<Room, TooLarge>;

    /// Commits everything proposed since the last commit: after `Ok` it will be there after any restart. All of
    /// it or none; after an error but [`CommitError::Failed`] it is none, and forgotten.
    fn commit(&mut self) -> Result<(), CommitError>;

    /// Whether replaying the log has become so long that a snapshot should be taken.
    fn wants_snapshot(&self) -> bool;

    /// Stores the image, which has applied exactly what is committed, and forgets the records it makes
    /// superfluous. An error loses nothing: the log is still there.
    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError>;
}

/// Whether more may be proposed before the next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    More,
    /// Commit first.
    Enough,
}

/// A decision that cannot be committed because of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the change takes {bytes} bytes in the metadata log; at most {bytes_max} can be committed at once"
)]
pub struct TooLarge {
    pub bytes: usize,
    pub bytes_max: usize,
}

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Try again when there is space.
    #[error("the disk of the metadata log is full")]
    Full,
    /// It is not known what was committed. No further call may be made: only a restart can tell.
    #[error(transparent)]
    Failed(#[from] QuorumError),
}

/// Something that did not work, and why.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {source}")]
pub struct QuorumError {
    /// What was attempted, in words.
    pub attempt: String,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl QuorumError {
    pub fn new(
        attempt: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { attempt: attempt.into(), source: source.into() }
    }
}
