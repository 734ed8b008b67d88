//! Runs the stories in `tests/stories/*.txt`: each is a script of events, and under every event, indented, what
//! the replica asked for. `TIDEMARK_STORIES=update cargo test -p tidemark-replication --test stories` rewrites
//! the indented lines; read the difference before it is committed.

#![expect(clippy::unwrap_used, reason = "a story that cannot be read is a failed test")]

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

use tidemark_protocol::{
    ErrorCode,
    messages::{Acks, Durability},
};
use tidemark_replication::{Config, Effect, Event, Produced, Replica, StorageDurability};

#[test]
fn the_stories_are_true() {
    let update = env::var("TIDEMARK_STORIES").is_ok_and(|value| value == "update");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no stories found");
    for path in paths {
        let written = fs::read_to_string(&path).unwrap();
        let told = tell(&written);
        if update {
            fs::write(&path, told).unwrap();
        } else {
            assert!(told == written, "{} goes differently:\n{told}", path.display());
        }
    }
}

/// The story with the transcript as it really is.
fn tell(story: &str) -> String {
    let mut told = String::new();
    let mut replica = None;
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(told, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words = Words::parse(line);
        if words.verb == "replica" {
            replica = Some(Replica::new(words.config()));
            continue;
        }
        let replica = replica.as_mut().unwrap_or_else(|| panic!("{line}: no replica yet"));
        for effect in words.run(replica) {
            writeln!(told, "  {effect}").unwrap();
        }
    }
    told
}

/// A line: `verb key=value ...`; a verb that is an event has the time in front: `12ms verb ...`.
struct Words<'a> {
    line: &'a str,
    now_ms: u64,
    verb: &'a str,
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace().peekable();
        let time = words.next_if(|word| word.ends_with("ms") && !word.contains('='));
        let now_ms = time.map_or(0, |time| time.trim_end_matches("ms").parse().unwrap());
        let verb = words.next().unwrap_or_else(|| panic!("{line}: no verb"));
        let values = words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
        Self { line, now_ms, verb, values }
    }

    fn run(&self, replica: &mut Replica) -> Vec<String> {
        let mut effects = Vec::new();
        match self.verb {
            "admit" => {
                let admitted = replica.admit(self.acks());
                return vec![admitted.map_or_else(ErrorCode::name, |()| "yes").to_owned()];
            }
            "produced" => {
                let base_offset = replica.log_end_offset();
                let produced = Produced {
                    token: self.number("token"),
                    acks: self.acks(),
                    durability: match self.values.get("durability") {
                        None => Durability::Topic,
                        Some(&"memory") => Durability::Memory,
                        Some(&"disk") => Durability::Disk,
                        Some(other) => panic!("{}: durability {other}", self.line),
                    },
                    deadline_ms: self.number("deadline"),
                    base_offset,
                    end_offset: base_offset + self.number("records"),
                };
                replica.step(self.now_ms, Event::Produced(produced), &mut effects);
            }
            _ => replica.step(self.now_ms, self.event(), &mut effects),
        }
        effects.iter().map(describe).collect()
    }

    fn event(&self) -> Event {
        match self.verb {
            "lead" => Event::BecomeLeader {
                epoch: u32::try_from(self.number("epoch")).unwrap(),
                log_start_offset: self.values.get("log_start").map_or(0, |n| n.parse().unwrap()),
                log_end_offset: self.number("log_end"),
                flushed_offset: self.number("flushed"),
            },
            "flushed" => Event::Flushed { end_offset: self.number("end") },
            "set" => {
                let Config { durability, min_insync_replicas, .. } = self.config();
                Event::SetConfig { durability, min_insync_replicas }
            }
            "tick" => Event::Tick,
            "storage_failed" => Event::StorageFailed,
            "stop" => Event::Stop { reason: self.code("reason") },
            other => panic!("{}: no event {other}", self.line),
        }
    }

    fn config(&self) -> Config {
        let brokers = |key| {
            let list = self.values.get(key).copied().unwrap_or("1");
            list.split(',').map(|id| id.parse().unwrap()).collect()
        };
        Config {
            broker_id: 1,
            replicas: brokers("replicas"),
            isr: brokers("isr"),
            durability: match self.values.get("durability") {
                Some(&"memory") => StorageDurability::Memory,
                _ => StorageDurability::Disk,
            },
            min_insync_replicas: self.values.get("min_insync").map_or(1, |n| n.parse().unwrap()),
        }
    }

    fn acks(&self) -> Acks {
        match self.values.get("acks") {
            Some(&"none") => Acks::None,
            Some(&"leader") => Acks::Leader,
            Some(&"all") => Acks::All,
            other => panic!("{}: acks {other:?}", self.line),
        }
    }

    fn code(&self, key: &str) -> ErrorCode {
        let name = self.values[key];
        let code = ErrorCode::ALL.iter().find(|code| code.name() == name);
        *code.unwrap_or_else(|| panic!("{}: no code {name}", self.line))
    }

    fn number(&self, key: &str) -> u64 {
        let value = self.values.get(key).unwrap_or_else(|| panic!("{}: no {key}", self.line));
        value.parse().unwrap_or_else(|_| panic!("{}: {key} is no number", self.line))
    }
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::SetHighWatermark { offset } => format!("high watermark {offset}"),
        Effect::RequestFlush { end_offset } => format!("flush up to {end_offset}"),
        Effect::Reply { token, outcome: Err(code) } => format!("reply {token}: {}", code.name()),
        Effect::Reply { token, outcome: Ok(receipt) } => format!(
            "reply {token}: {}..{} in epoch {}, {:?}, memory on {}, disk on {}",
            receipt.base_offset,
            receipt.end_offset,
            receipt.leader_epoch,
            receipt.durability,
            receipt.replicas_memory,
            receipt.replicas_durable,
        ),
    }
}
