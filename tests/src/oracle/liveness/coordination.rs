//! L9: transactions end, whoever has begun them, and what is decided is read to its end.

use super::{Violation, served, violation};
use crate::sim::{shape::LEDGER, world::World};

/// What transactions wait for.
pub(super) fn unmet(world: &World) -> Option<Violation> {
    if !world.can_coordinate() {
        return None;
    }
    let busy = world.transactors.values().filter(|transactor| !transactor.is_idle()).count();
    if busy > 0 {
        return Some(violation("L9", format!("{busy} transactional producers wait for an answer")));
    }
    if let Some(unended) = world.ghost.scan.unended() {
        return Some(violation("L9", unended));
    }
    let ledger = world.ghost.metadata.image.topic(LEDGER)?;
    for partition in served(world).into_iter().filter(|id| id.topic_id == ledger.id) {
        let end = world.ghost.true_end(partition);
        for reader in world.readers.values() {
            let at = reader.position(partition);
            if at < end {
                let text =
                    format!("a reader of what is decided in {partition} is at {at} of {end}");
                return Some(violation("L9", text));
            }
        }
    }
    None
}
