//! The consumer.

mod config;

use std::{sync::Arc, time::Duration};

use futures_util::Stream;
use tidemark_protocol::{Offset, PartitionIndex};

use crate::{
    cluster::Cluster,
    error::ConsumeError,
    record::{ConsumedBatch, ConsumedRecord},
};
pub use config::{ConsumerConfig, OutOfRange, Position, Transport};

#[derive(Debug)]
pub struct Consumer {}

impl Consumer {
    pub(crate) fn new(_cluster: Arc<Cluster>, _config: ConsumerConfig) -> Self {
        Self {}
    }
    /// Replaces the assignment.
    pub async fn assign<T: AsRef<str>>(
        &mut self,
        _partitions: impl IntoIterator<Item = (T, PartitionIndex, Position)>,
    ) -> Result<(), ConsumeError> {
        Ok(())
    }
    /// All partitions of a topic; replaces the assignment.
    pub async fn assign_topic(
        &mut self,
        _topic: &str,
        _position: Position,
    ) -> Result<(), ConsumeError> {
        Ok(())
    }
    /// What is assigned, sorted.
    pub fn assignment(&self) -> Vec<(Arc<str>, PartitionIndex)> {
        Vec::new()
    }
    pub async fn seek(
        &mut self,
        _topic: &str,
        _partition: PartitionIndex,
        _position: Position,
    ) -> Result<(), ConsumeError> {
        Ok(())
    }
    pub fn pause(&mut self, _topic: &str, _partition: PartitionIndex) -> Result<(), ConsumeError> {
        Ok(())
    }
    pub fn resume(&mut self, _topic: &str, _partition: PartitionIndex) -> Result<(), ConsumeError> {
        Ok(())
    }
    /// Records; empty when none came within `max_wait`.
    pub async fn poll(&mut self, _max_wait: Duration) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        Ok(Vec::new())
    }
    pub async fn poll_batches(
        &mut self,
        _max_wait: Duration,
    ) -> Result<Vec<ConsumedBatch>, ConsumeError> {
        Ok(Vec::new())
    }
    pub async fn next(&mut self) -> Result<ConsumedRecord, ConsumeError> {
        Err(ConsumeError::NothingAssigned)
    }
    pub fn stream(&mut self) -> impl Stream<Item = Result<ConsumedRecord, ConsumeError>> + '_ {
        futures_util::stream::unfold(self, |consumer| async move {
            Some((consumer.next().await, consumer))
        })
    }
    /// Offset of the next record to be returned.
    pub fn position(&self, _topic: &str, _partition: PartitionIndex) -> Option<Offset> {
        None
    }
    /// Asks the brokers: the high watermark of every assigned partition.
    pub async fn end_offsets(
        &self,
    ) -> Result<Vec<(Arc<str>, PartitionIndex, Offset)>, ConsumeError> {
        Ok(Vec::new())
    }
    /// Records between position and the last high watermark heard; does not ask.
    pub fn lag(&self, _topic: &str, _partition: PartitionIndex) -> Option<u64> {
        None
    }
}
