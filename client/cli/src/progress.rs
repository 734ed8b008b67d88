//! Progress on standard error: records, bytes, rate, time left. Silent when that is not a terminal, and for
//! whatever is over in a moment.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::quantity;

/// Work that is over sooner shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(400);
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// One bar, or nothing at all.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    redrawn: Instant,
    shown: bool,
}

impl Progress {
    /// `total` is in whatever unit [`Progress::update`] is told its position; `None` shows no time left.
    pub(crate) fn new(total: Option<u64>) -> Self {
        let (bar, template) = match total {
            Some(total) => {
                (ProgressBar::new(total.max(1)), "{msg} [{bar:30}] {percent:>3}% {eta} left")
            }
            None => (ProgressBar::no_length(), "{spinner} {msg} {elapsed}"),
        };
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        bar.set_style(style.progress_chars("=> "));
        let started = Instant::now();
        Self { bar, started, redrawn: started, shown: false }
    }

    /// Says how far the work is; cheap enough to call for every batch.
    pub(crate) fn update(&mut self, position: u64, records: u64, bytes: u64) {
        let now = Instant::now();
        if now - self.redrawn < REDRAW_EVERY {
            return;
        }
        self.redrawn = now;
        let elapsed = now - self.started;
        if !self.shown && elapsed >= SHOW_AFTER {
            self.shown = true;
            // Hides itself when standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(position);
        self.bar.set_message(format!(
            "{} records, {} ({}/s)",
            quantity::count(records),
            quantity::bytes(bytes),
            quantity::rate(quantity::per_second(records, elapsed)),
        ));
        self.bar.tick();
    }

    /// Takes the bar away, so that the summary starts on a clean line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
