//! Samples of what producers with an identity ask.

use tidemark_protocol::messages::*;

use crate::samples::{Sample, api, part};

pub(crate) const PRODUCER: ProducerIdentity = ProducerIdentity { producer_id: 1 << 40, epoch: 3 };

/// What clients may ask.
pub(crate) fn clients(all: &mut Vec<Sample>) {
    part(all, &PRODUCER);
    let init = InitProducerIdRequest { timeout_ms: 30_000 };
    api(all, &init, InitProducerIdResponse { producer: PRODUCER });
}
