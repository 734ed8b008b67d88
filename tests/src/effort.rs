//! How hard a suite tries: numbers from the environment, with modest ones for the ordinary run.

use anyhow::{Context, Result};

/// Faults to inject, where the ordinary run injects `default`.
pub fn faults(default: u64) -> Result<u64> {
    number("TIDEMARK_TEST_FAULTS", default)
}

/// Kills, where the ordinary run kills `default` times.
pub fn kills(default: u64) -> Result<u64> {
    number("TIDEMARK_TEST_KILLS", default)
}

/// The seed of random choices.
pub fn seed(default: u64) -> Result<u64> {
    number("TIDEMARK_TEST_SEED", default)
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_absent) => Ok(default),
    }
}
