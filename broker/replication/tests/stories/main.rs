//! Stories: scripts of events in the text files beside this one, with the effects that the replica asks for indented below each.
//!
//! A difference fails the test and prints the story as it would be now. `TIDEMARK_STORIES=update` writes it instead.

#![expect(clippy::unwrap_used, reason = "a story that cannot be read is a failed test")]

mod effects;
mod words;

use std::{env, fmt::Write as _, fs, path::Path};

use tidemark_protocol::Offset;
use tidemark_replication::{Answer, Assignment, EpochEnd, Event, LogState, Produced, Replica};
use tidemark_storage::EpochHistory;

use self::words::Words;

#[test]
fn the_stories_are_true() {
    let update = env::var("TIDEMARK_STORIES").is_ok_and(|value| value == "update");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
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
    let mut teller = None;
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(told, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words = Words::parse(line);
        if words.verb == "replica" {
            teller = Some(Teller::new(&words));
            continue;
        }
        let teller = teller.as_mut().unwrap_or_else(|| panic!("{line}: no replica yet"));
        for effect in teller.run(&words) {
            writeln!(told, "  {effect}").unwrap();
        }
    }
    told
}

/// The replica of a story, and the log that it is told about.
struct Teller {
    replica: Replica,
    assignment: Option<Assignment>,
    log: LogState,
    history: EpochHistory,
}

impl Teller {
    fn new(words: &Words<'_>) -> Self {
        let replica = Replica::new(words.config());
        let (log, history) = (LogState::default(), EpochHistory::default());
        Self { replica, assignment: None, log, history }
    }

    fn run(&mut self, words: &Words<'_>) -> Vec<String> {
        match words.verb {
            "admit" => {
                let admitted = self.replica.admit(words.acks());
                return vec![
                    admitted.map_or_else(tidemark_protocol::ErrorCode::name, |()| "yes").to_owned(),
                ];
            }
            "known" => {
                let known = self.replica.is_watermark_known();
                return vec![if known { "the watermark is known" } else { "not yet" }.to_owned()];
            }
            "followers" => return self.replica.followers().map(effects::status).collect(),
            _ => {}
        }
        let event = self.event(words);
        let mut asked = Vec::new();
        self.replica.step(words.now_ms, event, &mut asked);
        for effect in &asked {
            if let tidemark_replication::Effect::AssignEpoch { epoch, start_offset } = *effect {
                self.history.assign(epoch, start_offset);
                self.log.last_epoch = self.history.latest();
            }
        }
        asked.iter().map(effects::describe).collect()
    }

    fn event(&mut self, words: &Words<'_>) -> Event {
        match words.verb {
            "assigned" => {
                self.set_log(words);
                let assignment = words.assignment();
                self.assignment = Some(assignment.clone());
                let settings = words.settings(self.replica.config().settings());
                Event::Assigned { assignment, settings, log: self.log }
            }
            "produced" => self.produced(words),
            "repeated" => repeated(words),
            "flushed" => {
                let end_offset = words.number("end");
                self.log.flushed_offset = self.log.flushed_offset.max(end_offset);
                Event::Flushed { end_offset }
            }
            "position" => {
                let mut fetch = words.fetch();
                let last = fetch.position.last_fetched_epoch;
                fetch.epoch_end = last.and_then(|epoch| self.epoch_end(epoch));
                Event::FollowerFetched(fetch)
            }
            "lost" => Event::FollowerLost { follower: words.replica("from") },
            "isr_answered" => Event::IsrAnswered {
                partition_epoch: words.small("partition_epoch"),
                answer: words.has("code").then(|| words.code("code")).map_or(Ok(()), Err),
            },
            "batches" => Event::Fetched(words.fetched(Answer::Batches)),
            "watermark" => Event::Fetched(words.fetched(Answer::Watermark)),
            "diverging" => {
                let leader = words.epoch_end("ends");
                let own = self.epoch_end(leader.epoch);
                Event::Fetched(words.fetched(Answer::Diverging { leader, own }))
            }
            "out_of_range" => Event::Fetched(words.fetched(words.out_of_range())),
            "error" => Event::Fetched(words.fetched(Answer::Error { code: words.code("code") })),
            "appended" => self.appended(words),
            "truncated" => {
                self.truncate(words.number("end"));
                Event::Truncated { log: self.log }
            }
            "started_at" => {
                self.start_at(words.number("offset"));
                Event::Truncated { log: self.log }
            }
            "refused" => Event::EffectRefused,
            "trimmed" => {
                self.log.log_start_offset = words.number("start");
                Event::LogStartMoved { offset: self.log.log_start_offset }
            }
            "connected" => Event::LeaderConnected { leader: words.small("leader") },
            "set" => {
                let assignment = self.assignment.clone().unwrap();
                let settings = words.settings(self.replica.config().settings());
                Event::Assigned { assignment, settings, log: self.log }
            }
            "tick" => Event::Tick,
            "storage_failed" => Event::StorageFailed,
            "stop" => Event::Stop { reason: words.code("reason") },
            other => panic!("{}: no event {other}", words.line),
        }
    }

    fn start_at(&mut self, at: Offset) {
        self.history = EpochHistory::default();
        self.log = LogState {
            log_start_offset: at,
            log_end_offset: at,
            flushed_offset: at,
            last_epoch: None,
            damaged_from: None,
        };
    }

    /// The log is what the story has made of it, except for what this line says.
    fn set_log(&mut self, words: &Words<'_>) {
        for (epoch, start) in words.history() {
            self.history.assign(epoch, start);
        }
        self.log.last_epoch = self.history.latest();
        let log = &mut self.log;
        log.log_start_offset = words.number_or("log_start", log.log_start_offset);
        log.log_end_offset = words.number_or("log_end", log.log_end_offset);
        log.flushed_offset = words.number_or("flushed", log.flushed_offset);
        log.damaged_from =
            words.has("damaged").then(|| words.number("damaged")).or(log.damaged_from);
    }

    fn produced(&mut self, words: &Words<'_>) -> Event {
        let base_offset = self.log.log_end_offset;
        self.log.log_end_offset += words.number("records");
        Event::Produced(Produced {
            token: words.number("token"),
            acks: words.acks(),
            durability: words.durability(),
            deadline_ms: words.number_or("deadline", u64::MAX),
            base_offset,
            end_offset: self.log.log_end_offset,
        })
    }

    fn appended(&mut self, words: &Words<'_>) -> Event {
        let (end_offset, last_epoch) = (words.number("end"), words.small("epoch"));
        self.history.assign(last_epoch, self.log.log_end_offset);
        self.log.last_epoch = self.history.latest();
        self.log.log_end_offset = end_offset;
        Event::Appended { end_offset, last_epoch }
    }

    fn truncate(&mut self, end: u64) {
        self.history.truncate_from_end(end);
        let log = &mut self.log;
        log.log_end_offset = log.log_end_offset.min(end);
        log.flushed_offset = log.flushed_offset.min(end);
        log.last_epoch = self.history.latest();
        log.damaged_from = log.damaged_from.filter(|damaged| *damaged < end);
    }

    fn epoch_end(&self, epoch: u32) -> Option<EpochEnd> {
        let end = self.history.end_offset_for(epoch, self.log.log_end_offset)?;
        Some(EpochEnd { epoch: end.epoch, end_offset: end.end_offset })
    }
}

fn repeated(words: &Words<'_>) -> Event {
    Event::Repeated(Produced {
        token: words.number("token"),
        acks: words.acks(),
        durability: words.durability(),
        deadline_ms: words.number_or("deadline", u64::MAX),
        base_offset: words.number("base"),
        end_offset: words.number("end"),
    })
}
