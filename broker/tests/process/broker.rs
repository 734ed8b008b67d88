//! A `tidemarkd` of a test's own: started, watched, asked over HTTP, stopped.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Far more than a refusal to start takes, even on a machine that is busy with other tests.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A running broker with ports of its own. Killed when the test ends, however it ends.
pub(crate) struct Broker {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
    pub(crate) banner: String,
}

pub(crate) fn tidemarkd(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemarkd"));
    command.args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(data_dir).env_remove("TIDEMARK_LOG").stdin(Stdio::null());
    command
}

impl Broker {
    /// Starts it and reads the banner, which is there when it is ready.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("Ctrl-C") {
            let read = output.read_line(&mut banner).unwrap();
            assert!(read > 0, "tidemarkd ended before it was ready; it said:\n{banner}");
        }
        Self { child, output, banner }
    }

    /// The address in the banner's line that starts with `label`.
    pub(crate) fn address(&self, label: &str) -> SocketAddr {
        let line = self.banner.lines().find(|line| line.trim_start().starts_with(label)).unwrap();
        let word = line.split_whitespace().last().unwrap();
        word.trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address("metrics and health")).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; `None` when a signal ended it, which is this when it does not end by itself.
    pub(crate) fn exit_code(mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        let (ended, has_ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            let is_late = has_ended.recv_timeout(END_TIMEOUT) == Err(RecvTimeoutError::Timeout);
            if is_late {
                kill_process(pid, Signal::KILL).ok();
            }
        });
        // Its output must be taken, or it could block on a full pipe.
        io::copy(&mut self.output, &mut io::sink()).unwrap();
        let code = self.child.wait().unwrap().code();
        drop(ended);
        code
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a command that should end by itself; one that does not is killed and fails the test.
pub(crate) fn outcome(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (ended, has_ended) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        ended.send(()).unwrap();
        output
    });
    let in_time = has_ended.recv_timeout(END_TIMEOUT);
    if in_time.is_err() {
        kill_process(pid, Signal::KILL).unwrap();
    }
    let output = waiting.join().unwrap();
    assert!(in_time.is_ok(), "did not end; it said:\n{}", said(&output));
    output
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
