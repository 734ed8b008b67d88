//! Reading by subscription: the broker sends, this side grants.

use tidemark_protocol::{
    ErrorCode, Failure,
    frame::Frame,
    messages::{FetchedPartition, PushHeader, SubscribePartition, SubscribeRequest},
};

use super::{End, Worker};
use crate::{connection::Subscription, error::RequestError};

impl Worker {
    /// Subscribes and hands on pushes for as long as the connection lasts.
    pub(super) async fn push(&mut self) -> Result<(), End> {
        let deadline = self.cluster.deadline();
        let connection = self.pool.get(&self.address, deadline).await?;
        let request = SubscribeRequest {
            credit_bytes: self.window_bytes,
            max_push_bytes: self.config.response_bytes,
            partitions: self.readings.iter().map(subscribe_partition).collect(),
            isolation: self.config.isolation,
        };
        let (answer, mut subscription) = connection.subscribe(&request, deadline).await?;
        if answer.partitions.len() != self.readings.len() {
            return Err(
                self.protocol_error("a subscription answered with another number of partitions")
            );
        }
        for (reading, outcome) in self.readings.iter().zip(answer.partitions) {
            let outcome = outcome.map(|subscribed| FetchedPartition {
                high_watermark: subscribed.high_watermark,
                log_start_offset: subscribed.log_start_offset,
                leader_epoch: subscribed.leader_epoch,
                batch_bytes: 0,
                stable: None,
            });
            self.hand_on(reading.slot, outcome, bytes::Bytes::new()).await?;
        }
        self.pushes(&mut subscription).await
    }

    async fn pushes(&self, subscription: &mut Subscription) -> Result<(), End> {
        let slots = self.slots();
        loop {
            tokio::select! {
                push = subscription.push() => {
                    let (header, payload) = self.decode(push?)?;
                    let Some(partition) = header.partition else {
                        return Err(End::Error(RequestError::Refused(whole(header.outcome))));
                    };
                    let slot = *slots
                        .get(&partition)
                        .ok_or_else(|| self.protocol_error("a push for a partition not subscribed"))?;
                    self.hand_on(slot, header.outcome, payload).await?;
                }
                bytes = self.window.worth_granting() => {
                    subscription.grant(u32::try_from(bytes).unwrap_or(u32::MAX)).await?;
                }
            }
        }
    }

    fn decode(&self, push: Frame) -> Result<(PushHeader, bytes::Bytes), End> {
        let header: PushHeader =
            push.message().map_err(|error| self.protocol_error(&error.to_string()))?;
        let promised = header.outcome.as_ref().map_or(0, |fetched| fetched.batch_bytes as usize);
        if promised != push.payload.len() {
            return Err(self.protocol_error("a push is not as long as it says"));
        }
        Ok((header, push.payload))
    }
}

fn subscribe_partition(reading: &super::Reading) -> SubscribePartition {
    SubscribePartition {
        partition: reading.partition,
        leader_epoch: Some(reading.epoch),
        offset: reading.offset,
    }
}

/// Why the broker ended a whole subscription.
fn whole(outcome: Result<FetchedPartition, Failure>) -> Failure {
    let unexplained = || Failure::new(ErrorCode::NotReady, "the broker ended the subscription");
    match outcome.err().unwrap_or_else(unexplained) {
        // This side cancels by leaving; a broker that does is stopping.
        failure if failure.code == ErrorCode::Cancelled => {
            Failure::new(ErrorCode::NotReady, failure.message)
        }
        failure => failure,
    }
}
