//! Which part of which partition is to be read, and how far reading has come.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_client::{Admin, OffsetSpec};
use tidemark_protocol::{Offset, PartitionIndex, TimestampMs};

use crate::{
    exit::{CliError, Exit},
    position::{Extent, Point, Range},
    session,
};

/// The part of one partition that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// First offset to print.
    pub(crate) from: Offset,
    /// First offset not to print; `None` follows for ever.
    pub(crate) to: Option<Offset>,
    /// Everything below was read.
    pub(crate) next: Offset,
}

impl Slice {
    fn new(range: Range, extent: &Extent, ends: Ends) -> Self {
        let (from, to) = range.resolve(extent);
        let to = to.map(|to| if ends == Ends::Now { to.min(extent.end) } else { to });
        // An offset that does not exist yet is reached by reading on from the end.
        Self { from, to, next: from.min(extent.end) }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.to.is_some_and(|to| self.next >= to)
    }
}

/// What a range that ends beyond the last record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It ends at the last record there is.
    Now,
    /// The records that are missing are waited for.
    Eventually,
}

/// All slices of one command.
#[derive(Debug)]
pub(crate) struct Slices {
    by_topic: BTreeMap<Arc<str>, BTreeMap<PartitionIndex, Slice>>,
    /// Sum of where the slices begin, for the progress.
    begun: u64,
}

impl Slices {
    /// Looks up what the range means in every partition.
    pub(crate) async fn resolve(
        admin: &Admin,
        topics: &[String],
        only: &[PartitionIndex],
        range: Range,
        ends: Ends,
    ) -> Result<Self, CliError> {
        let mut by_topic = BTreeMap::new();
        for name in topics {
            let count = session::topic(admin, name).await?.partitions.len();
            if let Some(missing) = only.iter().find(|partition| **partition as usize >= count) {
                return Err(CliError::new(
                    Exit::NotFound,
                    format!("{name} has no partition {missing}: it has {count}"),
                ));
            }
            let partitions: Vec<PartitionIndex> = (0..)
                .take(count)
                .filter(|partition| only.is_empty() || only.contains(partition))
                .collect();
            let extents = extents(admin, name, &partitions, range).await?;
            let slices = extents.iter().map(|extent| Slice::new(range, extent, ends));
            by_topic.insert(name.as_str().into(), partitions.iter().copied().zip(slices).collect());
        }
        Ok(Self::new(by_topic))
    }

    fn new(by_topic: BTreeMap<Arc<str>, BTreeMap<PartitionIndex, Slice>>) -> Self {
        let mut slices = Self { by_topic, begun: 0 };
        slices.begun = slices.all().map(|slice| slice.next).sum();
        slices
    }

    fn all(&self) -> impl Iterator<Item = &Slice> {
        self.by_topic.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn slice(&mut self, topic: &str, partition: PartitionIndex) -> Option<&mut Slice> {
        self.by_topic.get_mut(topic)?.get_mut(&partition)
    }

    /// Partitions with something to read, and where to begin.
    pub(crate) fn open(&self) -> impl Iterator<Item = (&str, PartitionIndex, Offset)> {
        self.by_topic.iter().flat_map(|(topic, slices)| {
            slices
                .iter()
                .filter(|(_, slice)| !slice.is_done())
                .map(|(partition, slice)| (&**topic, *partition, slice.next))
        })
    }

    /// Whether all that was asked for was read; never when following.
    pub(crate) fn is_done(&self) -> bool {
        self.all().all(Slice::is_done)
    }

    /// Offsets from the beginnings to the ends; `None` when following.
    pub(crate) fn record_count(&self) -> Option<u64> {
        self.all().map(|slice| Some(slice.to?.saturating_sub(slice.from))).sum()
    }

    /// Offsets read so far.
    pub(crate) fn passed(&self) -> u64 {
        self.all().map(|slice| slice.next).sum::<u64>().saturating_sub(self.begun)
    }
}

/// Where each partition begins and ends, and where a range's times are in it.
pub(crate) async fn extents(
    admin: &Admin,
    topic: &str,
    partitions: &[PartitionIndex],
    range: Range,
) -> Result<Vec<Extent>, CliError> {
    let starts = offsets(admin, topic, partitions, OffsetSpec::Earliest).await?;
    let ends = offsets(admin, topic, partitions, OffsetSpec::Latest).await?;
    let from_times = times(admin, topic, partitions, range.from).await?;
    let to_times = times(admin, topic, partitions, range.to).await?;
    let extents = (0..partitions.len()).map(|at| Extent {
        start: starts[at],
        end: ends[at],
        from_time: from_times.as_ref().map(|offsets| offsets[at]),
        to_time: to_times.as_ref().map(|offsets| offsets[at]),
    });
    Ok(extents.collect())
}

async fn times(
    admin: &Admin,
    topic: &str,
    partitions: &[PartitionIndex],
    point: Option<Point>,
) -> Result<Option<Vec<Offset>>, CliError> {
    let time: Option<TimestampMs> = point.and_then(Point::time);
    match time {
        Some(timestamp_ms) => {
            Ok(Some(offsets(admin, topic, partitions, OffsetSpec::Timestamp(timestamp_ms)).await?))
        }
        None => Ok(None),
    }
}

/// One offset for each partition, in their order.
async fn offsets(
    admin: &Admin,
    topic: &str,
    partitions: &[PartitionIndex],
    spec: OffsetSpec,
) -> Result<Vec<Offset>, CliError> {
    let questions: Vec<_> = partitions.iter().map(|partition| (topic, *partition, spec)).collect();
    let answers = admin.list_offsets(&questions).await?;
    let mut offsets = Vec::with_capacity(answers.len());
    for (answer, partition) in answers.into_iter().zip(partitions) {
        let place = format!("{topic}/{partition}");
        offsets.push(answer.map_err(|error| CliError::from(error).context(place))?.offset);
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent { start: 10, end: 20, from_time: None, to_time: None };

    fn slice(range: &str) -> Slice {
        Slice::new(Range::parse(range, 0).unwrap(), &EXTENT, Ends::Now)
    }

    #[test]
    fn a_slice_of_nothing_is_done_at_once_and_one_that_follows_never() {
        assert!(slice("end:end").is_done());
        assert!(!slice("end").is_done());
        assert!(!slice(":end").is_done());
    }

    #[test]
    fn an_offset_beyond_the_end_is_waited_for_from_the_end() {
        let slice = slice("25");
        assert_eq!((slice.from, slice.next, slice.to), (25, 20, None));
    }

    #[test]
    fn a_range_ends_with_the_last_record_unless_more_is_waited_for() {
        assert_eq!(slice("15:500").to, Some(20));
        assert!(slice("600:+2").is_done(), "nothing of it is there");
        let range = Range::parse("15:500", 0).unwrap();
        assert_eq!(Slice::new(range, &EXTENT, Ends::Eventually).to, Some(500));
    }

    #[test]
    fn progress_counts_offsets_over_all_partitions() {
        let partitions = BTreeMap::from([(0, slice(":end")), (1, slice("15:end"))]);
        let mut slices = Slices::new(BTreeMap::from([(Arc::from("t"), partitions)]));
        assert_eq!(slices.record_count(), Some(15));
        assert_eq!(slices.open().count(), 2);
        slices.slice("t", 0).unwrap().next = 20;
        assert_eq!(slices.passed(), 10);
        assert_eq!(slices.open().map(|(_, partition, _)| partition).collect::<Vec<_>>(), [1]);
        assert!(!slices.is_done());
    }
}
