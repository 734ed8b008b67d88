//! Counts, every few seconds, what the coordinators of this broker hold: groups, members, transactions that are open. For the
//! metrics. What is decided and not committed yet counts: this is a measurement and not an answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tidemark_coordinator::{
    groups::{GroupListing, GroupState},
    transactions::{TransactionState, Transactions},
};
use tidemark_protocol::{PartitionIndex, TimestampMs};
use tokio::time::MissedTickBehavior;

use super::topics::{GROUPS, TRANSACTIONS};
use crate::{
    broker::Broker,
    clock::Clock,
    metrics::{Scrape, ScrapeSource, table},
    tasks::Shutdown,
};

/// How often everything is counted.
const INTERVAL: Duration = Duration::from_secs(5);
/// Groups that have a series of their own.
const SERIES_MAX: usize = 1_000;

/// What was counted last.
#[derive(Debug)]
struct CoordinatorWatch {
    clock: Clock,
    counted: Mutex<Counted>,
}

#[derive(Clone, Debug, Default)]
struct Counted {
    /// Members of every group, and what their group is doing.
    groups: BTreeMap<String, (GroupState, u64)>,
    open: u64,
    /// Decided, and some of their markers are not written yet.
    ending: u64,
    /// When the oldest of the open ones began.
    oldest_ms: Option<TimestampMs>,
}

impl ScrapeSource for CoordinatorWatch {
    fn scrape(&self, scrape: &Scrape) {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counted.scrape_groups(scrape);
        scrape.gauge(&table::TRANSACTIONS, &["open"], counted.open);
        scrape.gauge(&table::TRANSACTIONS, &["ending"], counted.ending);
        let age_ms =
            counted.oldest_ms.map_or(0, |began| self.clock.wall_ms().saturating_sub(began));
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        scrape.gauge_f64(&table::TRANSACTION_OLDEST, &[], age.as_secs_f64());
    }
}

impl Counted {
    fn scrape_groups(&self, scrape: &Scrape) {
        let mut states = BTreeMap::from(STATES.map(|name| (name, 0)));
        let mut others = 0;
        for (at, (group, (state, members))) in self.groups.iter().enumerate() {
            *states.entry(name(*state)).or_default() += 1;
            if at < SERIES_MAX {
                scrape.gauge(&table::GROUP_MEMBERS, &[group], *members);
            } else {
                others += members;
            }
        }
        if self.groups.len() > SERIES_MAX {
            scrape.gauge(&table::GROUP_MEMBERS, &["other"], others);
        }
        for (state, count) in states {
            scrape.gauge(&table::GROUPS, &[state], count);
        }
    }

    fn add_groups(&mut self, listed: Vec<GroupListing>) {
        let counted = |one: GroupListing| (one.group, (one.state, one.members as u64));
        self.groups.extend(listed.into_iter().map(counted));
    }

    fn add_transactions(&mut self, other: &Self) {
        self.open += other.open;
        self.ending += other.ending;
        self.oldest_ms = match (self.oldest_ms, other.oldest_ms) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
    }
}

/// Every state of a group that is shown.
const STATES: [&str; 3] = ["empty", "rebalancing", "stable"];

/// A state as the metrics show it: the classic protocol's two phases are a rebalance like any other.
fn name(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "empty",
        GroupState::Stable => "stable",
        GroupState::Reconciling
        | GroupState::PreparingRebalance
        | GroupState::CompletingRebalance => "rebalancing",
    }
}

/// Counts until shutdown.
pub(crate) async fn run(broker: Arc<Broker>, shutdown: Shutdown) {
    let watch =
        Arc::new(CoordinatorWatch { clock: broker.clock.clone(), counted: Mutex::default() });
    broker.metrics.add_source(&watch);
    let mut rounds = tokio::time::interval(INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.or_stop(rounds.tick()).await.is_some() {
        let Some(counted) = shutdown.or_stop(count(&broker)).await else { return };
        *watch.counted.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }
}

async fn count(broker: &Broker) -> Counted {
    let mut counted = Counted::default();
    for partition in led(broker, GROUPS) {
        // An error: it is being read, or elsewhere by now.
        if let Ok(listed) = broker.groups.visit(partition, |machine| machine.list_groups()).await {
            counted.add_groups(listed);
        }
    }
    for partition in led(broker, TRANSACTIONS) {
        let visited = broker.transactions.visit(partition, |machine| of(machine.state()));
        if let Ok(some) = visited.await {
            counted.add_transactions(&some);
        }
    }
    counted
}

/// The partitions of an internal topic that are led here.
pub(crate) fn led(broker: &Broker, topic: &str) -> Vec<PartitionIndex> {
    let image = broker.image();
    let Some(topic) = image.topic(topic) else { return Vec::new() };
    let led = topic.partitions.iter().zip(0..).filter(|(it, _)| it.leader == Some(broker.id));
    led.map(|(_, index)| index).collect()
}

fn of(transactions: &Transactions) -> Counted {
    let mut counted = Counted::default();
    for transaction in transactions.values() {
        if transaction.state == TransactionState::Ongoing {
            counted.open += 1;
            let began = transaction.started_ms;
            counted.oldest_ms = Some(counted.oldest_ms.map_or(began, |known| known.min(began)));
        }
        counted.ending += u64::from(transaction.state.decision().is_some());
    }
    counted
}

#[cfg(test)]
mod tests {
    use tidemark_coordinator::transactions::Transaction;

    use super::*;

    fn transaction(state: TransactionState, started_ms: TimestampMs) -> Transaction {
        Transaction {
            producer_id: 1,
            producer_epoch: 0,
            last: None,
            next_producer_id: None,
            timeout_ms: 1000,
            state,
            partitions: [].into(),
            started_ms,
            updated_ms: started_ms,
        }
    }

    #[test]
    fn what_is_open_counts_from_the_oldest_and_what_ends_does_not() {
        let one = |name: &str, state, ms| (name.to_owned(), transaction(state, ms));
        let mut counted = of(&[
            one("a", TransactionState::Ongoing, 20),
            one("b", TransactionState::Ongoing, 10),
            one("c", TransactionState::PrepareCommit, 1),
            one("d", TransactionState::CompleteCommit, 2),
            one("e", TransactionState::Empty, 0),
        ]
        .into());
        assert_eq!((counted.open, counted.ending, counted.oldest_ms), (2, 1, Some(10)));
        counted.add_transactions(&of(&[one("f", TransactionState::Ongoing, 5)].into()));
        assert_eq!((counted.open, counted.oldest_ms), (3, Some(5)));
        counted.add_transactions(&Counted::default());
        assert_eq!(counted.oldest_ms, Some(5));
    }
}
