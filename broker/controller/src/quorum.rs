//! The seam between the controller and whoever agrees on its records. The controller decides, a quorum makes
//! the decision last; neither looks inside the other.

pub mod one;

use tidemark_protocol::TimestampMs;

use crate::{image::Image, record::MetadataRecord};

/// Agrees on records, in order, once and for good. One thread owns it, and its calls may block on a disk.
///
/// Records have consecutive indexes from 0 on, which the caller counts along: they are those of
/// [`Image::metadata_index`]. After any error but [`ProposeError::Full`] and [`ProposeError::TooLarge`] it is
/// not known what was agreed on, and no further call is made.
pub trait Quorum: Send + 'static {
    /// Takes in one decision: all its records will be committed, or none. They are not committed yet.
    fn propose(
        &mut self,
        records: &[MetadataRecord],
        now_ms: TimestampMs,
    ) -> Result<(), ProposeError>;

    /// Returns when everything proposed is committed: it will be there after any restart.
    fn commit(&mut self) -> Result<(), QuorumError>;

    /// Whether replaying the log has become so long that a snapshot should be taken.
    fn wants_snapshot(&self) -> bool;

    /// Stores the image, which has applied exactly what is committed, and forgets the records it makes
    /// superfluous. An error loses nothing: the log is still there.
    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError>;
}

/// Why a decision was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was written; try again when there is space.
    #[error("the disk of the metadata log is full")]
    Full,
    /// Nothing was written.
    #[error("the decision is {bytes} bytes long; at most {bytes_max} can be committed at once")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error(transparent)]
    Failed(#[from] QuorumError),
}

/// Why nothing can be agreed on any more, or why the quorum cannot be opened.
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
