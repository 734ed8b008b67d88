//! Watching moves until all have arrived: a bar on a terminal, a line now and then elsewhere, on standard error.
//!
//! Nothing here changes the cluster. Interrupting it stops the watching and nothing else.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidemark_client::Admin;

use super::tracker::{Look, Tracker, View};
use crate::{
    exit::{CliError, Exit},
    output,
    placement::{self, Partition},
};

/// How often the cluster is asked.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How long the cluster may fail to answer: a failover in the middle of a move is nothing to give up for.
const PATIENCE: Duration = Duration::from_mins(1);
/// Without any byte copied for this long somebody should know.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Returns when no partition is left that `wanted` says is not where it should be.
pub(crate) async fn until_arrived(
    admin: &Admin,
    wanted: impl Fn(&Partition) -> bool,
) -> Result<(), CliError> {
    let started = Instant::now();
    let mut tracker = Tracker::default();
    let mut display = Display::new();
    let mut heard = started;
    let mut moved = (0, started);
    loop {
        match look(admin, &wanted).await {
            Ok(looks) => {
                heard = Instant::now();
                let view = tracker.observe(started.elapsed(), &looks);
                if looks.is_empty() {
                    display.end(&view);
                    return Ok(());
                }
                if view.bytes_done != moved.0 || looks.iter().any(|look| look.bytes.is_none()) {
                    moved = (view.bytes_done, heard);
                }
                display.update(&view, heard - moved.1 >= STALLED_AFTER);
            }
            Err(error) if heard.elapsed() < PATIENCE => display.missing(&error),
            Err(error) => {
                let hint =
                    "the moves go on without this command; run it again to see how far they are";
                return Err(error.context("lost sight of the moves").with_hint(hint));
            }
        }
        // Another process has to change; there is nothing here to be woken by.
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

async fn look(admin: &Admin, wanted: &impl Fn(&Partition) -> bool) -> Result<Vec<Look>, CliError> {
    let topics = admin.list_topics().await?;
    let mut going = placement::partitions(&topics);
    going.retain(wanted);
    let seen = match super::progress(admin, &going).await {
        Ok(seen) => seen,
        // That moves are under way is known even when nobody says how far they are.
        Err(error) if error.exit == Exit::Error => std::collections::BTreeMap::new(),
        Err(error) => return Err(error),
    };
    Ok(going.iter().map(|it| Look::of(it, seen.get(&it.id()))).collect())
}

/// Where progress is shown.
struct Display {
    is_terminal: bool,
    /// On a terminal, from the first time on that there is something to show.
    bar: Option<ProgressBar>,
    written: Option<Instant>,
    stalled: bool,
}

impl Display {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { is_terminal, bar: None, written: None, stalled: false }
    }

    fn begin() -> ProgressBar {
        output::note("Ctrl-C ends the watching, not the moves; run this again to watch.");
        let style = ProgressStyle::with_template("[{bar:30}] {percent:>3}% {msg}");
        let style = style.expect("the template is a constant").progress_chars("=> ");
        ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr()).with_style(style)
    }

    fn update(&mut self, view: &View, stalled: bool) {
        if stalled && !std::mem::replace(&mut self.stalled, true) {
            self.say("nothing has been copied for a while; see `tidemark cluster health`");
        }
        self.stalled &= stalled;
        self.show(view);
    }

    fn show(&mut self, view: &View) {
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(Self::begin);
            bar.set_length(view.bytes_total.max(1));
            bar.set_position(view.bytes_done);
            bar.set_message(view.line());
            bar.tick();
        } else if self.written.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.written = Some(Instant::now());
            output::note(view.line());
        }
    }

    fn missing(&self, error: &CliError) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("the cluster does not answer: {error}"));
            bar.tick();
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => output::note(line),
        }
    }

    fn end(&mut self, view: &View) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if self.written.take().is_some() {
            self.show(view);
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
