//! Clusters of controllers in one thread, on simulated disks and a network that misbehaves, each decided by a seed.
//!
//! `TIDEMARK_QUORUM_SEED=7` runs one life, `TIDEMARK_QUORUM_SEEDS=5000` so many.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod chance;
mod chaos;
mod cluster;
mod network;
mod oracle;
mod stories;

use chaos::Life;

/// Lives in each of the tests that run them.
const LIVES: u64 = 50;

fn lives(part: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    if let Some(seed) = number("TIDEMARK_QUORUM_SEED") {
        return Life::new(seed).run();
    }
    let lives = number("TIDEMARK_QUORUM_SEEDS").map_or(LIVES, |seeds: u64| seeds / 4);
    for seed in part * lives..(part + 1) * lives {
        Life::new(seed).run();
    }
}

#[test]
fn random_lives_one() {
    lives(0);
}

#[test]
fn random_lives_two() {
    lives(1);
}

#[test]
fn random_lives_three() {
    lives(2);
}

#[test]
fn random_lives_four() {
    lives(3);
}

#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in 1_000..1_006 {
        let fingerprint = || {
            let mut life = Life::new(seed);
            life.run();
            life.cluster.fingerprint
        };
        assert_eq!(fingerprint(), fingerprint(), "seed {seed}");
    }
}
