//! What a broker may do changes: it is fenced, unfenced, about to stop, or being emptied. Whatever follows for
//! partitions is in the same entry, and every decision is about one broker, so that the next one sees its effect.

use tidemark_protocol::Failure;

use super::{Changes, Decision, broker_changed, change::Change};
use crate::{
    command::{Answer, BrokerRun, SetDraining},
    image::{Broker, Image},
};

/// The broker is in no in-sync set any more, and others lead what it led.
pub(super) fn fence(image: &Image, run: BrokerRun) -> Result<Decision, Failure> {
    let broker = image.require_run(run.broker_id, run.broker_epoch)?;
    if broker.fenced {
        return Ok((Vec::new(), Answer::BrokerFenced));
    }
    Ok((withdrawn(image, Broker { fenced: true, ..broker.clone() }), Answer::BrokerFenced))
}

/// As for a fenced broker, until it starts anew.
pub(super) fn begin_shutdown(image: &Image, run: BrokerRun) -> Result<Decision, Failure> {
    let broker = image.require_run(run.broker_id, run.broker_epoch)?;
    if broker.in_controlled_shutdown {
        return Ok((Vec::new(), Answer::ControlledShutdownBegun));
    }
    let stopping = Broker { in_controlled_shutdown: true, ..broker.clone() };
    Ok((withdrawn(image, stopping), Answer::ControlledShutdownBegun))
}

/// The broker may lead what nobody leads. In-sync sets it joins when their leaders say so.
pub(super) fn unfence(image: &Image, run: BrokerRun) -> Result<Decision, Failure> {
    let broker = image.require_run(run.broker_id, run.broker_epoch)?;
    if !broker.fenced || broker.in_controlled_shutdown {
        return Ok((Vec::new(), Answer::BrokerUnfenced));
    }
    let broker = Broker { fenced: false, ..broker.clone() };
    let mut records = vec![broker_changed(&broker)];
    let (id, after) = (broker.id, image.with_broker(broker));
    let mut changes = Changes::default();
    for (topic, index, partition) in image.partitions() {
        if partition.leader.is_none() && partition.replicas.contains(&id) {
            let change = Change::of(&after, &topic.config, partition);
            changes.add(topic.id, index, change.build());
        }
    }
    records.extend(changes.into_records());
    Ok((records, Answer::BrokerUnfenced))
}

/// The moves themselves are decided one batch at a time, see [`crate::plan`].
pub(super) fn set_draining(image: &Image, command: SetDraining) -> Result<Decision, Failure> {
    let broker = image.require_broker(command.broker_id)?;
    let changed = Broker { draining: command.draining, ..broker.clone() };
    let records = if changed == *broker { Vec::new() } else { vec![broker_changed(&changed)] };
    Ok((records, Answer::DrainingSet))
}

fn withdrawn(image: &Image, broker: Broker) -> Vec<crate::record::MetadataRecord> {
    let mut records = vec![broker_changed(&broker)];
    let (id, after) = (broker.id, image.with_broker(broker));
    let mut changes = Changes::default();
    for (topic, index, partition) in image.partitions() {
        if partition.isr.contains(&id) {
            let change = Change::of(&after, &topic.config, partition).without(id);
            changes.add(topic.id, index, change.build());
        }
    }
    records.extend(changes.into_records());
    records
}
