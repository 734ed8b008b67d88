//! S14, metadata matching: what each node applies is the beginning of what was committed, entry by entry, and a broker's
//! image is the one that the entries lead to.

use tidemark_controller::{Image, quorum::Committed};
use tidemark_protocol::NodeId;

use super::{Verdict, metadata::Metadata, require, violation};

impl Metadata {
    /// A controller delivers an entry: the next one for its process, and the one that everybody has there.
    pub(super) fn check_delivered(
        &mut self,
        node: NodeId,
        life: u64,
        entry: &Committed,
    ) -> Verdict {
        let Committed { index, term, records } = entry;
        let known = self.delivered.insert(node, (life, index + 1));
        let is_next = known.is_none_or(|(of, next)| of != life || next == *index);
        require(is_next, "S14", || format!("node {node} is given entry {index} after {known:?}"))?;
        let end = self.end();
        require(*index <= end, "S14", || {
            format!("node {node} is given entry {index} before {end}")
        })?;
        match usize::try_from(*index).ok().and_then(|at| self.entries.get(at)) {
            None => Ok(()),
            Some(known) if known.term == *term && known.records == *records => Ok(()),
            Some(known) => {
                let text =
                    format!("node {node} is given another entry {index}: {entry:?}, not {known:?}");
                Err(violation("S14", text))
            }
        }
    }

    /// A broker follows to this image.
    pub(super) fn check_followed(&self, node: NodeId, image: &Image) -> Verdict {
        let index = image.metadata_index();
        if index == 0 {
            return Ok(());
        }
        let known = self.images.get(&index);
        require(known.is_some_and(|known| **known == *image), "S14", || {
            format!("node {node} follows an image at {index} that is not what was committed")
        })
    }
}
