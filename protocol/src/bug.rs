//! Known bugs that can be put back, to see whether the tests and the simulator find them.
//!
//! `TIDEMARK_BUG=name cargo test …` compiles the crates that ask with that one bug in. `TIDEMARK_BUG=any` compiles all of
//! them in, and the process says which one it has by the same variable when it starts: one build for all hunts. Without
//! the variable at compile time every question is `false` to the compiler, and nothing of this is in the program.

use std::sync::OnceLock;

/// What the build was told.
const COMPILED: Option<&str> = option_env!("TIDEMARK_BUG");
/// Builds with this in place of a name have all bugs in them.
const ANY: &str = "any";
/// Whether the process is asked which bug it has. A constant: where it is `false`, that code is gone.
const IS_ANY: bool = match COMPILED {
    Some(chosen) => is_same(chosen.as_bytes(), ANY.as_bytes()),
    None => false,
};

/// Whether the bug of that name is in this program.
#[inline]
pub fn is_put_back(name: &str) -> bool {
    match COMPILED {
        None => false,
        Some(_) if IS_ANY => chosen_at_start() == Some(name),
        Some(chosen) => chosen == name,
    }
}

/// The bug that this program has, if it has one.
pub fn put_back() -> Option<&'static str> {
    if IS_ANY { chosen_at_start() } else { COMPILED }
}

/// Whether this build has all bugs in it, to be chosen when a process starts.
pub const fn is_chosen_at_start() -> bool {
    IS_ANY
}

/// Read once: a process does not change its mind. This is the one piece of global state in the workspace, and it is in no
/// program that is not built for hunting bugs.
fn chosen_at_start() -> Option<&'static str> {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("TIDEMARK_BUG").ok());
    chosen.as_deref().filter(|name| *name != ANY)
}

const fn is_same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}
