//! A broker process starts: it is given a broker epoch, and everything its former life led or held is decided
//! anew, in the same entry. Whether another run of it is still alive is for the machine to know.

use tidemark_protocol::{ErrorCode, Failure, bug};

use super::{
    Changes, Decision,
    change::{Change, Restarted},
};
use crate::{
    command::{Answer, RegisterBroker},
    image::{Broker, Image},
    record::MetadataRecord,
};

/// Longest host name (that of DNS) and rack, in bytes.
const NAME_BYTES_MAX: usize = 253;

pub(super) fn decide(image: &Image, command: &RegisterBroker) -> Result<Decision, Failure> {
    let is_name = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len());
    if !is_name(&command.host) || !command.rack.as_deref().is_none_or(is_name) {
        let message = format!(
            "a broker registers with the host where clients reach it, and perhaps a rack, \
             each of 1 to {NAME_BYTES_MAX} bytes"
        );
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let known = image.broker(command.broker_id);
    if let Some(broker) = known.filter(|broker| broker.incarnation == command.incarnation) {
        return Ok((Vec::new(), Answer::BrokerRegistered { broker_epoch: broker.epoch }));
    }
    let mut records = vec![MetadataRecord::BrokerRegistered {
        broker_id: command.broker_id,
        incarnation: command.incarnation,
        directory: command.directory,
        host: command.host.clone(),
        port: command.port,
        rack: command.rack.clone(),
    }];
    if let Some(known) = known
        && !bug::is_put_back("unclean-restart-stays-in-isr")
    {
        records.extend(restarted(image, known, command).into_records());
    }
    Ok((records, Answer::BrokerRegistered { broker_epoch: image.metadata_index() }))
}

/// What becomes of the partitions of a broker that was there before.
///
/// It leaves every in-sync set. Unless it stopped cleanly, whatever it had not flushed may be gone, and it is
/// nowhere eligible either. With another directory it has nothing at all.
fn restarted(image: &Image, known: &Broker, command: &RegisterBroker) -> Changes {
    let is_wiped =
        command.directory != known.directory && !bug::is_put_back("wiped-disk-is-trusted");
    let is_clean = !is_wiped && command.previous_broker_epoch == Some(known.epoch);
    let restarted = Restarted { broker_id: known.id, is_clean, is_wiped };
    let after = image.with_broker(Broker { fenced: true, ..known.clone() });
    let mut changes = Changes::default();
    for (topic, index, partition) in image.partitions() {
        let is_known_for = |id: &_| partition.isr.contains(id) || partition.elr.contains(id);
        if is_known_for(&known.id) || partition.last_known_leader == Some(known.id) {
            let change = Change::of(&after, &topic.config, partition).restarted(restarted);
            changes.add(topic.id, index, change.build());
        }
    }
    changes
}
