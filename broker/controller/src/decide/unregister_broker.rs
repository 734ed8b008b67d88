//! A broker is forgotten. It must be stopped, and hold nothing: its replicas would be nobody's.

use tidemark_protocol::{ErrorCode, Failure};

use super::Decision;
use crate::{
    command::{Answer, UnregisterBroker},
    image::Image,
    record::MetadataRecord,
};

pub(super) fn decide(image: &Image, command: UnregisterBroker) -> Result<Decision, Failure> {
    let UnregisterBroker { broker_id } = command;
    let broker = image.require_broker(broker_id)?;
    if !broker.fenced {
        let message = format!("broker {broker_id} is alive; stop it first");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let held = image.partitions().filter(|(_, _, one)| one.replicas.contains(&broker_id)).count();
    if held > 0 {
        let message = format!("broker {broker_id} holds {held} replicas; drain it first");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    Ok((vec![MetadataRecord::BrokerUnregistered { broker_id }], Answer::BrokerUnregistered))
}
