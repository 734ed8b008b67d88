//! Every task and thread of the broker is started here, under a name, and waited for at the end.
//!
//! [`Tasks`] is a value that is passed down; [`Shutdown`] is the signal that all of them watch. Nothing here
//! aborts a task: a component stops because it saw the signal, and one that does not is named in the log.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The signal to stop. Clones share it; it is given once and cannot be taken back.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal. Idempotent.
    pub fn start(&self) {
        self.token.cancel();
    }

    pub fn has_started(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when the signal is given; at once if it was.
    pub async fn started(&self) {
        self.token.cancelled().await;
    }

    /// Runs `work` until it completes or the signal comes, whichever is first; `None` for the signal.
    pub async fn or_stop<F: Future>(&self, work: F) -> Option<F::Output> {
        self.token.run_until_cancelled(work).await
    }

    /// A signal that is given with this one, and that can be given alone (one connection, one partition).
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token() }
    }
}

/// Starts tasks and threads and knows which are still running. Clones share the register.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<String, usize>>>,
    shutdown: Shutdown,
    /// Where tasks run, whichever thread starts them.
    runtime: Option<Handle>,
}

/// Some tasks did not stop in time: their names, and how many of each.
#[derive(Debug, thiserror::Error)]
#[error("still running after {waited:?}: {running}")]
pub struct StillRunning {
    pub waited: Duration,
    pub running: RunningTasks,
}

/// Task names with the number of tasks that carry each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningTasks(pub BTreeMap<String, usize>);

impl fmt::Display for RunningTasks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, count)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(out, "{separator}{name}")?;
            if *count > 1 {
                write!(out, " x{count}")?;
            }
        }
        Ok(())
    }
}

impl Tasks {
    /// An empty register whose tasks are told to stop by `shutdown`, and run on the present tokio runtime.
    pub fn new(shutdown: Shutdown) -> Self {
        let runtime = Handle::try_current().ok();
        Self { tracker: TaskTracker::new(), running: Arc::default(), shutdown, runtime }
    }

    /// The signal these tasks watch.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task, from any thread. The task should end soon after [`Tasks::shutdown`] starts.
    ///
    /// Names are for people: one per kind of task (`connection`), not one per task.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the function the rest of the broker uses instead"
    )]
    pub fn spawn<F>(&self, name: &str, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let entry = self.enter(name);
        let tracked = self.tracker.track_future(async move {
            let _entry = entry;
            future.await
        });
        match &self.runtime {
            Some(runtime) => runtime.spawn(tracked),
            None => tokio::spawn(tracked),
        }
    }

    /// Starts an operating-system thread for work that blocks or that owns its data. The name is what
    /// `top -H` shows, so only its first 15 bytes are seen there.
    pub fn spawn_thread<F>(&self, name: &str, work: F) -> io::Result<thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let entry = self.enter(name);
        let tracked = self.tracker.token();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Dropped in reverse: who waits for the tracker must not find the name still in the register.
            let _tracked = tracked;
            let _entry = entry;
            work();
        })
    }

    /// What is running now.
    pub fn running(&self) -> RunningTasks {
        RunningTasks(self.running.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until everything started here has ended, for at most `timeout`. Does not give the signal.
    pub async fn finished(&self, timeout: Duration) -> Result<(), StillRunning> {
        self.tracker.close();
        match tokio::time::timeout(timeout, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(StillRunning { waited: timeout, running: self.running() }),
        }
    }

    fn enter(&self, name: &str) -> Entry {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running.entry(name.to_owned()).or_default() += 1;
        Entry { running: Arc::clone(&self.running), name: name.to_owned() }
    }
}

/// Removes a task from the register when it ends, however it ends.
struct Entry {
    running: Arc<Mutex<BTreeMap<String, usize>>>,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_and_threads_that_see_the_signal_are_waited_for() {
        let tasks = Tasks::new(Shutdown::new());
        let shutdown = tasks.shutdown().clone();
        let task = tasks.spawn("listener", async move { shutdown.started().await });
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        tasks
            .spawn_thread("shard-0", move || {
                stopped.recv().ok();
            })
            .unwrap();
        assert_eq!(tasks.running().to_string(), "listener, shard-0");

        tasks.shutdown().start();
        drop(stop);
        tasks.finished(Duration::from_secs(10)).await.unwrap();
        task.await.unwrap();
        assert_eq!(tasks.running().0.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_signal_is_named() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("deaf", std::future::pending::<()>());
        tasks.spawn("deaf", std::future::pending::<()>());
        tasks.shutdown().start();
        let error = tasks.finished(Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.to_string(), "still running after 2s: deaf x2");
    }
}
