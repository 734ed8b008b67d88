//! Known bugs that can be put back when compiling, to see whether the simulator finds them.
//!
//! `TIDEMARK_BUG=name cargo sim …` compiles the crates that ask with that one bug in. Without the variable every question
//! is `false` to the compiler, and nothing of this is in the program.

/// Whether this build has the bug of that name in it.
pub const fn is_put_back(name: &str) -> bool {
    match option_env!("TIDEMARK_BUG") {
        Some(chosen) => is_same(chosen.as_bytes(), name.as_bytes()),
        None => false,
    }
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
