//! Reading by long poll: this side asks for what it has room for, and asks again.

use bytes::Bytes;
use tidemark_protocol::{
    batch::batches,
    messages::{FetchPartition, FetchRequest, FetchResponse},
};
use tokio::time::Instant;

use super::{End, Worker};

impl Worker {
    /// Fetches for as long as the connection lasts and a partition is left.
    pub(super) async fn fetch(&mut self) -> Result<(), End> {
        let connection = self.pool.get(&self.address, self.cluster.deadline()).await?;
        let wait = self.config.fetch_wait;
        while !self.readings.is_empty() {
            let room_bytes = u32::try_from(self.window.room().await).unwrap_or(u32::MAX);
            let max_bytes = room_bytes.min(self.config.response_bytes).max(1);
            let request = FetchRequest {
                max_wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
                min_bytes: self.config.fetch_min_bytes,
                max_bytes,
                partitions: self.readings.iter().map(|r| fetch_partition(r, max_bytes)).collect(),
                isolation: self.config.isolation,
            };
            let deadline = Instant::now() + wait + self.cluster.config().request_timeout;
            let asked = connection.request(&request, Vec::new(), wait, deadline).await;
            let (answer, payload) = asked?;
            self.hand_on_all(answer, payload).await?;
            // Partitions take turns in being first, since the first may fill the answer.
            if !self.readings.is_empty() {
                self.readings.rotate_left(1);
            }
        }
        Ok(())
    }

    async fn hand_on_all(&mut self, answer: FetchResponse, mut payload: Bytes) -> Result<(), End> {
        if answer.partitions.len() != self.readings.len() {
            return Err(self.protocol_error("a fetch answered with another number of partitions"));
        }
        let mut failed = Vec::new();
        for (at, outcome) in answer.partitions.into_iter().enumerate() {
            let bytes = outcome.as_ref().map_or(0, |fetched| fetched.batch_bytes as usize);
            if bytes > payload.len() {
                return Err(self.protocol_error("an answer is shorter than it says"));
            }
            let share = payload.split_to(bytes);
            // What cannot be parsed is for the consumer to report, with its position.
            for batch in batches(share.clone()).map_while(Result::ok) {
                let reading = &mut self.readings[at];
                reading.offset = reading.offset.max(batch.header.next_offset());
            }
            if outcome.is_err() {
                failed.push(at);
            }
            self.hand_on(self.readings[at].slot, outcome, share).await?;
        }
        for at in failed.into_iter().rev() {
            self.readings.remove(at);
        }
        Ok(())
    }
}

fn fetch_partition(reading: &super::Reading, max_bytes: u32) -> FetchPartition {
    FetchPartition {
        partition: reading.partition,
        leader_epoch: Some(reading.epoch),
        offset: reading.offset,
        max_bytes,
    }
}
