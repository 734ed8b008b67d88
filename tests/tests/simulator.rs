//! A hundred short runs of the simulator, and that a seed is a run. The long ones are not for every test run: see
//! `docs/testing.md`.

use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_tests::sim::run::{Options, explain, keep_panics, run};

const SEEDS: u64 = 100;
const OPTIONS: Options =
    Options { seconds: 6, verbosity: tidemark_tests::sim::trace::Verbosity::Hash };

#[test]
fn a_hundred_seeds_are_clean() {
    keep_panics();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let worker = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= SEEDS {
                    return failed;
                }
                if run(seed, &OPTIONS).failed.is_some() {
                    failed.push(seed);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a run catches panics"))
            .collect()
    });
    if let Some(seed) = failed.first() {
        panic!("{}\nseeds that fail: {failed:?}", explain(*seed, &OPTIONS));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 7, 1_000_003] {
        let (first, second) = (run(seed, &OPTIONS), run(seed, &OPTIONS));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed} ran differently");
        assert_eq!(first.figures, second.figures);
        let other = run(seed + 1, &OPTIONS);
        assert_ne!(first.trace_hash, other.trace_hash, "two seeds are one run");
    }
}
