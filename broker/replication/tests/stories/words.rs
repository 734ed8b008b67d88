//! One line of a story, taken apart: `verb key=value ...`; a verb that is an event has the time in front:
//! `12ms verb ...`.
//!
//! Replicas are written `2`, in a later run of their process `2@7`, and not eligible `2!`.

use std::collections::BTreeMap;

use tidemark_protocol::{
    ErrorCode,
    messages::{Acks, Durability, Position},
};
use tidemark_replication::{
    Answer, Assignment, Config, EpochEnd, Fetched, FollowerFetch, Member, ReplicaId, Settings,
    StorageDurability,
};

pub(crate) struct Words<'a> {
    pub(crate) line: &'a str,
    pub(crate) now_ms: u64,
    pub(crate) verb: &'a str,
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    pub(crate) fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace().peekable();
        let time = words.next_if(|word| word.ends_with("ms") && !word.contains('='));
        let now_ms = time.map_or(0, |time| time.trim_end_matches("ms").parse().unwrap());
        let verb = words.next().unwrap_or_else(|| panic!("{line}: no verb"));
        let values = words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
        Self { line, now_ms, verb, values }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            broker_id: 1,
            durability: match self.values.get("durability") {
                Some(&"memory") => StorageDurability::Memory,
                _ => StorageDurability::Disk,
            },
            min_insync_replicas: self.number_or("min_insync", 1).try_into().unwrap(),
            replica_lag_ms: self.number_or("lag", 10_000),
        }
    }

    /// Those of `before`, except for what this line says.
    pub(crate) fn settings(&self, before: Settings) -> Settings {
        let said = self.config().settings();
        let durability = if self.has("durability") { said.durability } else { before.durability };
        let min_insync_replicas = if self.has("min_insync") {
            said.min_insync_replicas
        } else {
            before.min_insync_replicas
        };
        Settings { durability, min_insync_replicas }
    }

    pub(crate) fn assignment(&self) -> Assignment {
        let list = |key| self.values.get(key).copied().unwrap_or("1").split(',');
        let replicas = list("replicas").map(|word| {
            let replica = replica(word);
            let (id, broker_epoch) = (replica.broker_id, replica.broker_epoch);
            Member { id, broker_epoch, eligible: !word.ends_with('!') }
        });
        Assignment {
            leader: match self.text("leader") {
                "none" => None,
                id => Some(id.parse().unwrap()),
            },
            leader_epoch: self.small("epoch"),
            partition_epoch: self
                .number_or("partition_epoch", self.number("epoch"))
                .try_into()
                .unwrap(),
            replicas: replicas.collect(),
            isr: list("isr").map(|id| id.parse().unwrap()).collect(),
            elr: self.list("elr"),
        }
    }

    /// Brokers, none by default.
    fn list(&self, key: &str) -> Vec<u32> {
        let ids = self.values.get(key).map(|list| list.split(','));
        ids.into_iter().flatten().map(|id| id.parse().unwrap()).collect()
    }

    /// `history=1:0,3:10`: epochs and where they start.
    pub(crate) fn history(&self) -> Vec<(u32, u64)> {
        let entries =
            self.values.get("history").map_or(Vec::new(), |list| list.split(',').collect());
        entries.into_iter().map(pair).collect()
    }

    pub(crate) fn fetch(&self) -> FollowerFetch {
        let at = self.number("at");
        let position = Position {
            leader_epoch: self.small("epoch"),
            round: self.number("round"),
            fetch_offset: at,
            flushed_offset: self.number_or("flushed", at),
            last_fetched_epoch: self.has("last").then(|| self.small("last")),
            log_start_offset: self.number_or("start", 0),
        };
        FollowerFetch { follower: self.replica("from"), position, epoch_end: None }
    }

    pub(crate) fn fetched(&self, answer: Answer) -> Fetched {
        Fetched {
            leader_epoch: self.small("epoch"),
            round: self.number("round"),
            high_watermark: self.number_or("hw", 0),
            log_start_offset: self.number_or("start", 0),
            removals_end: self.number_or("removals", 0),
            answer,
        }
    }

    pub(crate) fn out_of_range(&self) -> Answer {
        let (start, end) = self.text("log").split_once("..").unwrap();
        Answer::OutOfRange {
            log_start_offset: start.parse().unwrap(),
            log_end_offset: end.parse().unwrap(),
        }
    }

    pub(crate) fn epoch_end(&self, key: &str) -> EpochEnd {
        let (epoch, end_offset) = pair(self.text(key));
        EpochEnd { epoch, end_offset }
    }

    pub(crate) fn replica(&self, key: &str) -> ReplicaId {
        replica(self.text(key))
    }

    pub(crate) fn acks(&self) -> Acks {
        match self.text("acks") {
            "none" => Acks::None,
            "leader" => Acks::Leader,
            "all" => Acks::All,
            other => panic!("{}: acks {other}", self.line),
        }
    }

    pub(crate) fn durability(&self) -> Durability {
        match self.values.get("durability") {
            None => Durability::Topic,
            Some(&"memory") => Durability::Memory,
            Some(&"disk") => Durability::Disk,
            Some(other) => panic!("{}: durability {other}", self.line),
        }
    }

    pub(crate) fn code(&self, key: &str) -> ErrorCode {
        let name = self.text(key);
        let code = ErrorCode::ALL.iter().find(|code| code.name() == name);
        *code.unwrap_or_else(|| panic!("{}: no code {name}", self.line))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or_else(|_| panic!("{}: {key} is no number", self.line))
    }

    pub(crate) fn number_or(&self, key: &str, default: u64) -> u64 {
        if self.has(key) { self.number(key) } else { default }
    }

    pub(crate) fn small(&self, key: &str) -> u32 {
        self.number(key).try_into().unwrap()
    }

    fn text(&self, key: &str) -> &'a str {
        self.values.get(key).unwrap_or_else(|| panic!("{}: no {key}", self.line))
    }
}

fn replica(word: &str) -> ReplicaId {
    let word = word.trim_end_matches('!');
    let (id, epoch) = word.split_once('@').unwrap_or((word, "1"));
    ReplicaId { broker_id: id.parse().unwrap(), broker_epoch: epoch.parse().unwrap() }
}

fn pair(word: &str) -> (u32, u64) {
    let (epoch, offset) = word.split_once(':').unwrap_or_else(|| panic!("{word}: epoch:offset"));
    (epoch.parse().unwrap(), offset.parse().unwrap())
}
