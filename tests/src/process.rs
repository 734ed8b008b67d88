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
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// How long a broker may take to say that it is ready, or to end when told to, before a test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The folder of the programs that belong to this test's build.
pub fn programs_dir() -> PathBuf {
    let test = env::current_exe().expect("a test is a program");
    let deps = test.parent().expect("in a folder");
    deps.parent().expect("`deps` lies in the folder of the profile").to_owned()
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
    /// Options of a small file system, in memory and of its own, that is mounted on the data directory.
    pub mount: Option<String>,
    /// The network namespace to run in, as a file; that of the test when absent.
    pub namespace: Option<PathBuf>,
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

    /// Gives the broker a file system of its own with these mount options (`size=64m`, `ro`), gone when it ends.
    #[must_use]
    pub fn mount(mut self, options: &str) -> Self {
        self.mount = Some(options.to_owned());
        self
    }

    fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            let mut net = OsString::from("--net=");
            net.push(namespace);
            words.extend(["nsenter".into(), net, "--".into()]);
        }
        // A user and mount namespace of its own: works with and without root, and nobody else sees the mount.
        if let Some(options) = &self.mount {
            let script = "mount -t tmpfs -o \"$1\" tidemark \"$2\" && shift 2 && exec \"$@\"";
            words.extend(["unshare", "-r", "-m", "sh", "-c", script, "sh"].map(OsString::from));
            words.extend([options.into(), self.data_dir.clone().into()]);
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
