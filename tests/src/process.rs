//! Real broker processes: started on free ports with a data directory of their own, killed, stopped and started again.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::image;

/// How long a broker may take to say that it is ready, or to end when told to, before a test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The folder of the programs that belong to the build of this test or program.
pub fn programs_dir() -> PathBuf {
    let test = env::current_exe().expect("this is a program");
    let dir = test.parent().expect("in a folder");
    match dir.parent() {
        // Where Cargo puts tests.
        Some(profile) if dir.ends_with("deps") => profile.to_owned(),
        _ => dir.to_owned(),
    }
}

/// A new folder for what a person needs to understand a failure, kept below the build's folder.
pub fn failure_dir() -> Result<PathBuf> {
    static FAILURES: AtomicU32 = AtomicU32::new(0);
    let number = FAILURES.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{number}", std::process::id());
    let dir = programs_dir().join("failures").join(name);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// `tidemarkd` or `tidemark`, as of the present source: built on first use, since Cargo does not build the programs of other
/// packages for a test.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let dir = programs_dir();
    BUILT.call_once(|| {
        let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--bin", "tidemarkd", "--bin", "tidemark"]);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs do not build");
    });
    dir.join(name)
}

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub http_listen: SocketAddr,
    /// Further flags, as `("log-level", "debug")`.
    pub flags: Vec<(String, String)>,
    /// A file system of its own that is mounted on the data directory.
    pub mount: Option<Mount>,
    /// The network namespace to run in, as a file; that of the test when absent.
    pub namespace: Option<PathBuf>,
}

/// A file system that only one broker sees, for as long as it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// In memory and empty, with these options (`size=64m`, `ro`); gone with its process. Works without root.
    Memory(String),
    /// In an image, see [`crate::image`].
    Image(PathBuf),
}

impl Mount {
    /// The words in front of a command that run it with this mounted on `dir`.
    pub(crate) fn wrap(&self, dir: &Path) -> Vec<OsString> {
        // A mount namespace of its own, and a user namespace with it where that is enough: nobody else sees the mount.
        let (namespaces, kind, options, source) = match self {
            Self::Memory(options) => ("-rm", "tmpfs", options.as_str(), Path::new("tidemark")),
            Self::Image(image) => ("-m", "ext4", image::MOUNT_OPTIONS, image.as_path()),
        };
        let script = "mount -t \"$1\" -o \"$2\" \"$3\" \"$4\" || exit 1
            rmdir \"$4/lost+found\" 2>/dev/null
            shift 4
            exec \"$@\"";
        let words = ["unshare", namespaces, "sh", "-c", script, "sh", kind, options];
        let mut words: Vec<OsString> = words.map(OsString::from).into();
        words.extend([source.into(), dir.into()]);
        words
    }
}

/// What a broker prints, both streams. Several runs of one node may share it.
pub type Log = Arc<Mutex<String>>;

impl BrokerConfig {
    /// Free ports, which stay the same over restarts of this configuration.
    pub fn new(data_dir: &Path) -> Result<Self> {
        // Held together, so that the two differ; whoever takes one in the moment after makes the start fail and say so.
        let (data, http) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        Ok(Self {
            data_dir: data_dir.to_owned(),
            listen: data.local_addr()?,
            http_listen: http.local_addr()?,
            flags: Vec::new(),
            mount: None,
            namespace: None,
        })
    }

    /// Adds a flag.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the broker a file system in memory with these mount options, gone when it ends.
    #[must_use]
    pub fn mount(mut self, options: &str) -> Self {
        self.mount = Some(Mount::Memory(options.to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            let mut net = OsString::from("--net=");
            net.push(namespace);
            words.extend(["nsenter".into(), net, "--".into()]);
        }
        if let Some(mount) = &self.mount {
            words.extend(mount.wrap(&self.data_dir));
        }
        words.push(program("tidemarkd").into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["--listen", &self.listen.to_string()]);
        command.args(["--http-listen", &self.http_listen.to_string()]);
        for (name, value) in &self.flags {
            command.arg(format!("--{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a broker and waits until it says that it is ready.
    pub fn start(&self) -> Result<Broker> {
        let mut broker = self.spawn(Log::default())?;
        broker.await_ready(PATIENCE)?;
        Ok(broker)
    }

    /// Starts a broker without waiting for it: nodes of a cluster need each other to become ready.
    pub fn spawn(&self, log: Log) -> Result<Broker> {
        let started = Instant::now();
        let mut child = self.command().spawn().context("start tidemarkd")?;
        let ready = collect(child.stdout.take().context("piped")?, &log, Some("is ready"));
        let said = collect(child.stderr.take().context("piped")?, &log, None);
        let (config, ready_after) = (self.clone(), Duration::ZERO);
        let (ready, shows_log) = (Some(ready), true);
        Ok(Broker { config, child, log, shows_log, started, ready_after, ready, said })
    }

    /// Starts a broker that is expected to refuse, and returns what it said.
    pub fn start_refused(&self) -> Result<Output> {
        let mut child = self.command().spawn().context("start tidemarkd")?;
        wait(&mut child)?;
        Ok(child.wait_with_output()?)
    }
}

/// Reads lines into the log; the receiver gets a message when one contains `signal`, and closes when the stream ends.
fn collect(
    stream: impl Read + Send + 'static,
    log: &Log,
    signal: Option<&'static str>,
) -> Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if signal.is_some_and(|signal| line.contains(signal)) {
                // Nobody listens any more after the first.
                let _first = sender.send(());
            }
            let mut log = log.lock().expect("no holder panics");
            log.push_str(&line);
            log.push('\n');
        }
    });
    receiver
}

/// A running broker; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    child: Child,
    log: Log,
    /// Whether the log is printed when a test panics.
    shows_log: bool,
    started: Instant,
    ready_after: Duration,
    /// Tells once that the broker is ready; `None` when it has told.
    ready: Option<Receiver<()>>,
    /// Closed once everything it said on standard error is in the log.
    said: Receiver<()>,
}

impl Broker {
    /// Waits until the broker says that it is ready; kills it when it does not.
    pub fn await_ready(&mut self, patience: Duration) -> Result<()> {
        let Some(ready) = &self.ready else { return Ok(()) };
        if ready.recv_timeout(patience).is_err() {
            self.child.kill()?;
            let ended = self.child.wait()?;
            let _closed = self.said.recv();
            bail!("the broker is not ready ({ended:?}):\n{}", self.log());
        }
        self.ready_after = self.started.elapsed();
        self.ready = None;
        Ok(())
    }

    /// Leaves it to somebody else to show the log when a test fails.
    pub fn keep_quiet(&mut self) {
        self.shows_log = false;
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn address(&self) -> String {
        self.config.listen.to_string()
    }

    pub fn http_address(&self) -> SocketAddr {
        self.config.http_listen
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From the start of the process to its word that it is ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The data directory as the broker sees it, from outside its namespace.
    pub fn data_dir(&self) -> PathBuf {
        let inside = self.config.data_dir.strip_prefix("/").unwrap_or(&self.config.data_dir);
        Path::new("/proc").join(self.pid().to_string()).join("root").join(inside)
    }

    /// Everything it has printed so far, both streams.
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// `kill -9`; the configuration to start it again with.
    pub fn kill(mut self) -> Result<BrokerConfig> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.config.clone())
    }

    /// SIGTERM, and the exit status that follows.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        wait(&mut self.child)
    }

    /// SIGSTOP; when this returns, none of its threads runs any more.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")?;
        let pid = Pid::from_child(&self.child);
        // Looks only, so that the end of the process stays for whoever waits for it.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(pid), options)?;
        ensure!(status.is_some_and(|status| status.stopped()), "it ended instead");
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status()?;
        ensure!(status.success(), "kill -{name}");
        Ok(())
    }

    /// A metric's value, by series as printed.
    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        Ok(crate::http::metric(&crate::http::get(self.http_address(), "/metrics")?.body, series))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        #[expect(
            clippy::print_stderr,
            reason = "what a person who reads a failed test wants to see"
        )]
        if self.shows_log && thread::panicking() {
            eprintln!("broker log:\n{}", self.log());
        }
    }
}

/// Waits for the end of a process without a busy loop: the standard library offers no timeout, so a thread kills it.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let (done, ended) = mpsc::channel::<()>();
    let pid = child.id().to_string();
    let guard = thread::spawn(move || {
        let timed_out = ended
            .recv_timeout(PATIENCE)
            .is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout);
        if timed_out {
            let _killed = Command::new("kill").args(["-9", &pid]).status();
        }
        timed_out
    });
    let status = child.wait()?;
    drop(done);
    ensure!(!guard.join().expect("the guard does not panic"), "still running after {PATIENCE:?}");
    Ok(status)
}
