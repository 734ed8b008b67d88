//! Init producer id: an identity for a producer that begins.

use std::sync::Arc;

use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerIdentity},
};

use super::timeout;
use crate::broker::Broker;

pub(crate) async fn init_producer_id(
    broker: Arc<Broker>,
    request: InitProducerIdRequest,
) -> Result<InitProducerIdResponse, Failure> {
    let wait = timeout(request.timeout_ms);
    let taken = tokio::time::timeout(wait, broker.producer_ids.take(&broker, wait)).await;
    let producer_id = taken.unwrap_or_else(|_elapsed| {
        let message = "the controller has not handed out producer ids in time";
        Err(Failure::new(ErrorCode::Timeout, message))
    })?;
    Ok(InitProducerIdResponse { producer: ProducerIdentity { producer_id, epoch: 0 } })
}
