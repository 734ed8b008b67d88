//! Change broker: drain it, take that back, or forget it.

use std::sync::Arc;

use tidemark_controller::{
    Command,
    command::{SetDraining, UnregisterBroker},
};
use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{BrokerChange, ChangeBrokerRequest, ChangeBrokerResponse},
};

use super::change_metadata;
use crate::broker::Broker;

pub(crate) async fn change_broker(
    broker: Arc<Broker>,
    request: ChangeBrokerRequest,
) -> Result<ChangeBrokerResponse, Failure> {
    let broker_id = request.broker;
    let image = broker.image();
    if image.broker(broker_id).is_none() {
        let message = format!("there is no broker {broker_id}");
        return Err(Failure::new(ErrorCode::UnknownBroker, message));
    }
    let held = image.topics().flat_map(|topic| topic.partitions.iter());
    let replicas = held.filter(|partition| partition.replicas.contains(&broker_id)).count();
    let command = match request.change {
        BrokerChange::Drain => Command::SetDraining(SetDraining { broker_id, draining: true }),
        BrokerChange::Undrain => Command::SetDraining(SetDraining { broker_id, draining: false }),
        BrokerChange::Unregister => Command::UnregisterBroker(UnregisterBroker { broker_id }),
    };
    if request.validate_only {
        image.decide(&command)?;
    } else {
        change_metadata(&broker, command, request.timeout_ms).await?;
    }
    Ok(ChangeBrokerResponse { replicas: u32::try_from(replicas).unwrap_or(u32::MAX) })
}
