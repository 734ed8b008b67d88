//! One entry applied to an image.

use crate::{ApplyError, image::Image, record::MetadataRecord};

/// Applies the records of the entry at `index`. After an error the image is to be thrown away.
pub(super) fn apply_entry(
    image: &mut Image,
    index: u64,
    records: &[MetadataRecord],
) -> Result<(), ApplyError> {
    let expected = image.metadata_index;
    if index != expected {
        return Err(ApplyError::Gap { expected, found: index });
    }
    for record in records {
        image.metadata_index = index;
        image.apply(index, record)?;
    }
    image.metadata_index = index + 1;
    Ok(())
}
