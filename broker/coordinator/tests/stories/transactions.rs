//! Stories of transactional ids.

use tidemark_coordinator::{
    Now, Record, TransactionConfig, TransactionCoordinator, TransactionLoader,
    transactions::{
        AddPartitions, EndTxn, InitProducerId, MarkerResult, MarkersWritten, ProducerIdentity,
        TransactionDecision, TransactionEffect, TransactionRequest, TransactionResponse,
    },
};
use tidemark_protocol::Offset;

use crate::{
    Teller,
    words::{Words, show_all},
};

/// What the wall clock says when the other one says 0.
const EPOCH_MS: i64 = 1_700_000_000_000;

pub(crate) struct Transactions {
    config: TransactionConfig,
    coordinator: Option<TransactionCoordinator>,
    log: Vec<(Offset, Record)>,
    end_offset: Offset,
    epoch: i32,
}

impl Transactions {
    pub(crate) fn new() -> Self {
        let config = TransactionConfig { producer_ids_min: 1, ..TransactionConfig::default() };
        Self { config, coordinator: None, log: Vec::new(), end_offset: 0, epoch: 0 }
    }

    fn load(&mut self, now: Now) -> Vec<String> {
        let mut loader = TransactionLoader::new();
        for (offset, record) in &self.log {
            loader.replay(*offset, record).unwrap();
        }
        self.epoch += 1;
        let config = self.config.clone();
        let loaded = loader.finish(self.end_offset, self.epoch, config, now);
        let (coordinator, decision) = loaded.unwrap();
        self.coordinator = Some(coordinator);
        self.told(decision)
    }

    fn told(&mut self, decision: TransactionDecision) -> Vec<String> {
        assert_eq!(decision.base_offset, self.end_offset);
        self.end_offset = decision.end_offset();
        let coordinator = self.coordinator.as_ref().unwrap();
        let mut told = Vec::new();
        let mut loader = TransactionLoader::new();
        for _ in &decision.records {
            let state = coordinator.state();
            let written = state.iter().map(|(id, transaction)| {
                let next = transaction.next_producer_id;
                let next = next.map(|id| format!(", then {id}/0")).unwrap_or_default();
                format!(
                    "{id} is {} as {}/{}{next}: {}",
                    transaction.state.name(),
                    transaction.producer_id,
                    transaction.producer_epoch,
                    show_all(&transaction.partitions)
                )
            });
            told.push(format!("writes: {}", written.collect::<Vec<_>>().join("; ")));
        }
        self.log.extend((decision.base_offset..).zip(decision.records));
        for (offset, record) in &self.log {
            loader.replay(*offset, record).unwrap();
        }
        assert_eq!(&loader.state().unwrap(), coordinator.state());
        told.extend(decision.replies.iter().map(|reply| match &reply.outcome {
            Err(failure) => format!("{}: {}", failure.code.name(), failure.message),
            Ok(response) => describe(response),
        }));
        told.extend(decision.effects.iter().map(describe_effect));
        told
    }
}

impl Teller for Transactions {
    fn tell(&mut self, words: &Words<'_>) -> Vec<String> {
        let now =
            Now { mono_ms: words.now_ms, wall_ms: EPOCH_MS + i64::try_from(words.now_ms).unwrap() };
        match words.verb {
            "coordinator" => {
                if let Some(epoch_max) = words.number("epoch_max") {
                    self.config.epoch_max = epoch_max;
                }
                return self.load(now);
            }
            "failover" => return self.load(now),
            _ => {}
        }
        let coordinator = self.coordinator.as_mut().expect("a coordinator comes first");
        match words.verb {
            "ids" => {
                let first = words.number("first").unwrap();
                coordinator.add_producer_ids(first..first + words.number::<i64>("count").unwrap());
                Vec::new()
            }
            "tick" => {
                let decision = coordinator.on_timer(now);
                self.told(decision)
            }
            _ => {
                let decision = coordinator.handle(now, 0, request(words));
                self.told(decision)
            }
        }
    }
}

fn request(words: &Words<'_>) -> TransactionRequest {
    let id = words.name.to_owned();
    match words.verb {
        "init" => TransactionRequest::InitProducerId(InitProducerId {
            id,
            timeout_ms: words.number("timeout").unwrap_or(1_000),
            expected: words.text("expected").map(|text| identity(&text)),
        }),
        "add" | "verify" => TransactionRequest::AddPartitions(AddPartitions {
            id,
            producer: identity(&words.text("as").unwrap()),
            partitions: words.partitions("of").unwrap(),
            verify_only: words.verb == "verify",
        }),
        "commit" | "abort" => TransactionRequest::EndTxn(EndTxn {
            id,
            producer: identity(&words.text("as").unwrap()),
            commit: words.verb == "commit",
        }),
        "written" | "deleted" | "fenced" => {
            let result = match words.verb {
                "written" => MarkerResult::Written,
                "deleted" => MarkerResult::TopicDeleted,
                _ => MarkerResult::Fenced,
            };
            let partitions: Vec<_> = words.partitions("of").unwrap();
            TransactionRequest::MarkersWritten(MarkersWritten {
                id,
                producer: identity(&words.text("as").unwrap()),
                results: partitions.into_iter().map(|one| (one, result)).collect(),
            })
        }
        "operator_aborts" => TransactionRequest::Abort { id },
        "list" => TransactionRequest::List,
        _ => panic!("{}: no such verb", words.line),
    }
}

/// `7/0`: producer id and epoch.
fn identity(text: &str) -> ProducerIdentity {
    let (id, epoch) = text.split_once('/').unwrap();
    ProducerIdentity { producer_id: id.parse().unwrap(), epoch: epoch.parse().unwrap() }
}

fn describe(response: &TransactionResponse) -> String {
    let show = |identity: &ProducerIdentity| format!("{}/{}", identity.producer_id, identity.epoch);
    match response {
        TransactionResponse::InitProducerId(identity) | TransactionResponse::EndTxn(identity) => {
            format!("go on as {}", show(identity))
        }
        TransactionResponse::List(all) => {
            let one = |one: &tidemark_coordinator::transactions::TransactionListing| {
                format!("{} {} {}", one.id, show(&one.producer), one.state.name())
            };
            all.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        TransactionResponse::Describe(transaction) => format!("{transaction:?}"),
        TransactionResponse::AddPartitions
        | TransactionResponse::MarkersWritten
        | TransactionResponse::Abort => "ok".to_owned(),
    }
}

fn describe_effect(effect: &TransactionEffect) -> String {
    match effect {
        TransactionEffect::NeedProducerIds => "asks for producer ids".to_owned(),
        TransactionEffect::Aborted { id, cause, .. } => format!("aborts {id}: {cause:?}"),
        TransactionEffect::SendMarkers(markers) => format!(
            "sends {} of {}/{} in coordinator epoch {} to {}",
            if markers.commit { "commit" } else { "abort" },
            markers.producer.producer_id,
            markers.producer.epoch,
            markers.coordinator_epoch,
            show_all(&markers.partitions)
        ),
    }
}
