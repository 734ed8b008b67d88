//! One seed, from beginning to end, and what is told of it.

use std::{
    backtrace::Backtrace,
    cell::RefCell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{
    core::SECOND,
    figures::Figures,
    heal::Wrong,
    shape::Shape,
    trace::{Trace, Verbosity},
    world::World,
};

/// Lines of the trace that a failure shows.
const LINES_MAX: usize = 400;

/// What a run is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Simulated seconds with faults, before everything is healed.
    pub seconds: u64,
    pub verbosity: Verbosity,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 60, verbosity: Verbosity::Hash }
    }
}

/// How a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    Wrong(Wrong),
    /// Something in the cluster, or in the simulator, panicked.
    Panic {
        text: String,
        backtrace: String,
    },
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(Wrong::Safety(violation)) => write!(out, "SAFETY VIOLATION {violation}"),
            Self::Wrong(Wrong::Liveness(violation)) => write!(out, "LIVENESS FAILURE {violation}"),
            Self::Panic { text, .. } => write!(out, "PANIC {text}"),
        }
    }
}

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub failed: Option<Failed>,
    pub figures: Figures,
    /// Simulated time.
    pub simulated_us: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    pub shape: Option<Shape>,
    /// The latest of what happened, if it was asked for.
    pub lines: Vec<String>,
}

thread_local! {
    /// Where the last panic of this thread was, and how it came to be there, if `RUST_BACKTRACE` asks for it.
    static LAST_PANIC: RefCell<(String, String)> =
        const { RefCell::new((String::new(), String::new())) };
}

/// From now on panics are not printed where they happen: they are told with the seed they belong to.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let told = (panic.to_string().replace('\n', " "), Backtrace::capture().to_string());
        LAST_PANIC.with(|last| *last.borrow_mut() = told);
    }));
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = None;
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(seed, Trace::new(options.verbosity)));
        world.run(options.seconds * SECOND).map_err(Wrong::Safety)?;
        world.heal()
    }));
    let failed = match lived {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some(Failed::Wrong(wrong)),
        Err(_panic) => {
            let (text, backtrace) = LAST_PANIC.with(RefCell::take);
            Some(Failed::Panic { text, backtrace })
        }
    };
    let Some(mut world) = world else {
        let figures = Figures::default();
        let lines = Vec::new();
        return Outcome {
            seed,
            failed,
            figures,
            simulated_us: 0,
            trace_hash: 0,
            shape: None,
            lines,
        };
    };
    for node in world.nodes.values_mut() {
        node.count_mishaps(&mut world.core);
    }
    Outcome {
        seed,
        failed,
        simulated_us: world.core.now_us(),
        trace_hash: world.core.trace.hash(),
        lines: world.core.trace.latest().map(str::to_owned).collect(),
        figures: world.core.figures.clone(),
        shape: Some(world.shape),
    }
}

/// Runs a seed that has failed once more, and tells what led to it: the failure, the last of what happened on each
/// node, and the command that replays it.
pub fn explain(seed: u64, options: &Options) -> String {
    let verbosity = Verbosity::Latest(LINES_MAX);
    let outcome = run(seed, &Options { verbosity, ..*options });
    let failure = match outcome.failed {
        None => "it did not fail again".to_owned(),
        Some(Failed::Panic { text, backtrace }) => format!("{backtrace}\nPANIC {text}"),
        Some(wrong) => wrong.to_string(),
    };
    let lines = outcome.lines.join("\n");
    let shape = outcome.shape.map_or(String::new(), |shape| format!("{shape:?}"));
    format!("{lines}\n{shape}\n{failure}\nreplay: {}", replay(seed, options))
}

/// The command that replays a seed.
pub fn replay(seed: u64, options: &Options) -> String {
    let bug = tidemark_protocol::bug::put_back()
        .map_or(String::new(), |bug| format!("TIDEMARK_BUG={bug} "));
    format!("{bug}cargo sim -- --seed {seed} --sim-seconds {}", options.seconds)
}
