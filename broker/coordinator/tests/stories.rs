//! Runs the stories in `tests/stories/`: each is a script of requests, and under every request, indented, what the
//! coordinator wrote, answered and wanted done. `TIDEMARK_STORIES=update cargo test -p tidemark-coordinator --test
//! stories` rewrites the indented lines; read the difference before it is committed.
//!
//! A line is `12ms verb name key=value ...`. The members' log is replayed after every line, and must say the same.

#![expect(clippy::unwrap_used, reason = "a story that cannot be read is a failed test")]

#[path = "stories/classic.rs"]
mod classic;
#[path = "stories/groups.rs"]
mod groups;
#[path = "stories/offsets.rs"]
mod offsets;
#[path = "stories/transactions.rs"]
mod transactions;
#[path = "stories/words.rs"]
mod words;

use std::{env, fmt::Write as _, fs, path::Path};

use words::Words;

/// What tells a story line by line.
trait Teller {
    fn tell(&mut self, words: &Words<'_>) -> Vec<String>;
}

#[test]
fn the_stories_of_groups_are_true() {
    check("groups", || Box::new(groups::Groups::new()));
}

#[test]
fn the_stories_of_transactions_are_true() {
    check("transactions", || Box::new(transactions::Transactions::new()));
}

fn check(folder: &str, teller: impl Fn() -> Box<dyn Teller>) {
    let update = env::var("TIDEMARK_STORIES").is_ok_and(|value| value == "update");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories").join(folder);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no stories found");
    for path in paths {
        let written = fs::read_to_string(&path).unwrap();
        let told = tell(&written, &mut *teller());
        if update {
            fs::write(&path, told).unwrap();
        } else {
            assert!(told == written, "{} goes differently:\n{told}", path.display());
        }
    }
}

/// The story with the transcript as it really is.
fn tell(story: &str, teller: &mut dyn Teller) -> String {
    let mut told = String::new();
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(told, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for event in teller.tell(&Words::parse(line)) {
            writeln!(told, "  {event}").unwrap();
        }
    }
    told
}
