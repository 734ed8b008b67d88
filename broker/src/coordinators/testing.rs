//! A coordinator that is as small as one can be, for the tests of those that hold coordinators.

use std::sync::Arc;

use tidemark_controller::Image;
use tidemark_coordinator::{Decision, LoadError, Now, Record, Token, decision};
use tidemark_protocol::{Offset, PartitionIndex};

use super::{Coordinator, DecisionOf, Start};
use crate::broker::Broker;

/// Answers every request with the offset of the record that it writes for it, and has an effect of it.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) end: Offset,
}

impl Counter {
    pub(super) fn decide(&mut self, token: Option<Token>) -> DecisionOf<Self> {
        let base_offset = self.end;
        let count = usize::from(token.is_some());
        self.end += count as Offset;
        Decision {
            base_offset,
            records: vec![Record { key: b"k".to_vec(), value: None }; count],
            replies: token
                .map(|token| decision::Reply { token, outcome: Ok(base_offset) })
                .into_iter()
                .collect(),
            effects: vec![base_offset; count],
            wake_at_ms: None,
        }
    }
}

impl Coordinator for Counter {
    const TOPIC: &'static str = "__counters";
    type Loader = ();
    type Request = ();
    type Response = Offset;
    type Effect = Offset;
    type Excerpt = ();

    fn excerpt(_image: &Image) {}

    fn replay(_loader: &mut (), _offset: Offset, _record: &Record) -> Result<(), LoadError> {
        Ok(())
    }

    fn finish(_loader: (), start: Start<'_, Self>) -> Result<(Self, DecisionOf<Self>), LoadError> {
        let mut machine = Self { end: start.first_offset };
        let first = machine.decide(None);
        Ok((machine, first))
    }

    fn handle(&mut self, _now: Now, token: Token, _request: ()) -> DecisionOf<Self> {
        self.decide(Some(token))
    }

    fn on_timer(&mut self, _now: Now) -> DecisionOf<Self> {
        self.decide(None)
    }

    fn on_excerpt(&mut self, _excerpt: &()) -> DecisionOf<Self> {
        self.decide(None)
    }

    fn carry_out(_broker: &Arc<Broker>, _partition: PartitionIndex, _effect: Offset) {}

    fn ended(_broker: &Broker, _partition: PartitionIndex) {}
}
