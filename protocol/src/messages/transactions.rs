//! Producers with an identity: who they are, so that what they send again is recognized.

use serde::{Deserialize, Serialize};

use crate::message::{Api, Request};

/// Who a producer is: its batches carry both numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProducerIdentity {
    /// Never negative. Belongs to one producer for good.
    pub producer_id: i64,
    /// Never negative. What bears a lower one than was seen is refused.
    pub epoch: i16,
}

/// Asks for the identity of a producer that begins.
///
/// Any broker answers. The id was never given to anybody before, and the epoch is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProducerIdRequest {
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProducerIdResponse {
    pub producer: ProducerIdentity,
}

impl Request for InitProducerIdRequest {
    const API: Api = Api::InitProducerId;
    type Response = InitProducerIdResponse;
}
