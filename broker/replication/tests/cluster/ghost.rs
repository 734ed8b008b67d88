//! What really happened, and what must never: checked after every step of any replica.

use std::{collections::BTreeMap, fmt::Write as _};

use tidemark_protocol::{BrokerId, LeaderEpoch, Offset, messages::Acks};
use tidemark_replication::{ProduceOutcome, Produced, Replica, StorageDurability, Token};

use crate::{
    log::{Log, Record},
    world::World,
};

#[derive(Debug, Default)]
pub(crate) struct Ghost {
    /// What a leader's watermark has passed, written once.
    pub(crate) committed: BTreeMap<Offset, Record>,
    /// Who led in which epoch.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    /// Watermark of each leadership.
    watermarks: BTreeMap<LeaderEpoch, Offset>,
    /// The highest watermark that readers were shown.
    shown: Offset,
    waiting: BTreeMap<Token, (BrokerId, Produced)>,
    acknowledged: u64,
}

impl Ghost {
    pub(crate) fn true_watermark(&self) -> Offset {
        self.committed.last_key_value().map_or(0, |(offset, _)| offset + 1)
    }

    /// Takes a log for committed: the story begins in the middle.
    pub(crate) fn trust(&mut self, log: &Log) {
        for offset in log.start()..log.end() {
            self.committed.insert(offset, log.get(offset).unwrap());
        }
    }

    pub(crate) fn leads(&mut self, id: BrokerId, epoch: LeaderEpoch) {
        let leader = *self.leaders.entry(epoch).or_insert(id);
        assert_eq!(leader, id, "two leaders in epoch {epoch}");
    }

    pub(crate) fn appended(&self, id: BrokerId, epoch: LeaderEpoch) {
        assert_eq!(self.leaders.get(&epoch), Some(&id), "who has not led has appended");
    }

    pub(crate) fn asked(&mut self, id: BrokerId, produced: Produced) {
        if produced.acks != Acks::None {
            self.waiting.insert(produced.token, (id, produced));
        }
    }

    pub(crate) fn replied(&mut self, token: Token, outcome: ProduceOutcome, watermark: Offset) {
        let (_, asked) = self.waiting.remove(&token).expect("one reply for each request");
        if let Ok(receipt) = outcome
            && asked.acks == Acks::All
        {
            assert_eq!(receipt.end_offset, asked.end_offset);
            assert!(asked.end_offset <= watermark, "acknowledged before it was committed");
            self.acknowledged += 1;
        }
    }

    /// Whoever waited for this broker learns of its end in another way.
    pub(crate) fn forget(&mut self, id: BrokerId) {
        self.waiting.retain(|_, (asked, _)| *asked != id);
    }
}

impl World {
    /// Everything that must hold, after a step of `id`.
    pub(crate) fn check(&mut self, id: BrokerId) {
        self.check_watermark(id);
        let committed = self.ghost.true_watermark();
        let now = self.controller.now();
        for broker in self.brokers.values() {
            let log = &broker.log;
            assert!(log.start() <= committed, "{}: uncommitted records were deleted", broker.id);
            if let Some(replica) = &broker.replica {
                let watermark = replica.high_watermark();
                assert!(watermark <= committed, "{}: shows what is not committed", broker.id);
                assert!((log.start()..=log.end()).contains(&watermark), "{}: bounds", broker.id);
                for (offset, record) in self.ghost.committed.range(log.start()..watermark) {
                    assert_eq!(log.get(*offset), Some(*record), "{} at {offset}", broker.id);
                }
            }
            // Whoever may be elected has every committed record, as durably as it was promised.
            let is_electable = now.isr.contains(&broker.id) || now.elr.contains(&broker.id);
            if is_electable && !broker.is_wiped {
                let holds = match self.durability {
                    StorageDurability::Disk => log.flushed,
                    StorageDurability::Memory => log.end(),
                };
                assert!(
                    holds >= committed,
                    "{}: electable, without {holds}..{committed}",
                    broker.id
                );
                for (offset, record) in self.ghost.committed.range(log.start()..) {
                    assert_eq!(log.get(*offset), Some(*record), "{} is electable", broker.id);
                }
            }
        }
    }

    /// What the watermark of a leader has passed is committed, for good.
    fn check_watermark(&mut self, id: BrokerId) {
        let broker = &self.brokers[&id];
        let Some(replica) = &broker.replica else { return };
        let Some(epoch) = replica.leader_epoch() else { return };
        let watermark = replica.high_watermark();
        let before = self.ghost.watermarks.insert(epoch, watermark).unwrap_or(0);
        assert!(before <= watermark, "the watermark of epoch {epoch} went back");
        let true_watermark = self.ghost.true_watermark();
        if watermark > true_watermark {
            let state = &self.controller.states[broker.followed];
            let min = usize::from(replica.config().min_insync_replicas).min(state.replicas.len());
            assert!(state.isr.len() >= min, "committed with too few in sync");
        }
        for offset in true_watermark.max(broker.log.start())..watermark {
            let record = broker.log.get(offset).expect("the watermark is in the log");
            self.ghost.committed.insert(offset, record);
        }
        if replica.is_watermark_known() && epoch == self.controller.now().leader_epoch {
            assert!(watermark >= self.ghost.shown, "readers have seen {} before", self.ghost.shown);
        }
        self.ghost.shown = self.ghost.shown.max(watermark);
    }

    /// Whether nothing is left to do: everybody is in sync, has everything and knows it.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.controller.now();
        let Some(leader) = now.leader.map(|id| &self.brokers[&id]) else { return false };
        let is_done = |id: &BrokerId| {
            let broker = &self.brokers[id];
            let knows = |it: &Replica| it.high_watermark() == leader.log.end();
            broker.replica.as_ref().is_some_and(knows)
                && broker.log.end() == leader.log.end()
                // One that has followed another leader may have given up more.
                && broker.log.start() >= leader.log.start()
        };
        self.network.is_empty()
            && self.ghost.waiting.is_empty()
            && now.isr.len() == now.replicas.len()
            && now.replicas.iter().all(is_done)
    }

    /// What is wrong with a cluster that should be quiet.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!(
            "{:?}\nwaiting {:?}\n{:?}\n",
            self.controller.now(),
            self.ghost.waiting,
            self.network
        );
        for broker in self.brokers.values() {
            writeln!(text, "{broker:?}").unwrap();
        }
        text
    }
}
