//! `tidemarkd` as a process: what it prints, how it exits, what it says when it cannot start, what it exposes.

#![expect(
    clippy::unwrap_used,
    reason = "a broker that cannot be started or talked to fails its test"
)]

mod broker;
mod exposition;

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;

use self::broker::{Broker, outcome, said, tidemarkd};

#[test]
fn it_says_where_it_listens_and_stores_and_is_ready_when_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(tidemarkd(&data_dir));
    assert!(broker.banner.contains(&format!("stored in                 {}", data_dir.display())));
    let data_address = broker.address("data and administration");
    assert!(broker.banner.contains(&format!("--brokers {data_address} topic create")));
    TcpStream::connect(data_address).unwrap();
    assert!(broker.get("/health/ready").starts_with("HTTP/1.1 200"));
    assert!(broker.get("/metrics").contains("\ntidemark_ready 1\n"));
}

#[test]
fn either_signal_stops_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::start(tidemarkd(&dir.path().join("data")));
        broker.signal(signal);
        assert_eq!(broker.exit_code(), Some(0), "{signal:?}");
    }
}

#[test]
fn it_ends_with_its_standard_input_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tidemarkd(&dir.path().join("data"));
    command.arg("--stop-with-stdin").stdin(Stdio::piped());
    let mut broker = Broker::start(command);
    drop(broker.child.stdin.take());
    assert_eq!(broker.exit_code(), Some(0));
}

#[test]
fn it_goes_on_when_nobody_reads_its_log_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tidemarkd(&dir.path().join("data"));
    command.stderr(Stdio::piped());
    let mut broker = Broker::start(command);
    drop(broker.child.stderr.take());
    // Says so in its log before it does anything.
    broker.signal(Signal::TERM);
    assert_eq!(broker.exit_code(), Some(0));
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_chooses_another() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--http-listen"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemarkd"));
        let other = if flag == "--listen" { "--http-listen" } else { "--listen" };
        command
            .args([flag, &address, other, "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"));
        let output = outcome(command);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&address) && said.contains(flag), "{said}");
    }
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(tidemarkd(&data_dir));
    let output = outcome(tidemarkd(&data_dir));
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("in use by another process") && said.contains("--data-dir"), "{said}");
    assert!(broker.get("/health/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn another_nodes_directory_is_refused_with_both_names_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(tidemarkd(&data_dir));
    broker.signal(Signal::TERM);
    assert_eq!(broker.exit_code(), Some(0));

    let mut other = tidemarkd(&data_dir);
    other.args(["--node-id", "2"]);
    let output = outcome(other);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("node 1") && said.contains("node 2") && said.contains("--node-id"),
        "{said}"
    );
}

#[test]
fn a_data_directory_may_be_a_name_in_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tidemarkd(Path::new("data"));
    command.current_dir(dir.path());
    let broker = Broker::start(command);
    let stored = dir.path().canonicalize().unwrap().join("data");
    assert!(broker.banner.contains(&stored.display().to_string()), "{}", broker.banner);
    assert!(stored.join("topics").is_dir());
}

#[test]
fn a_directory_that_cannot_be_made_is_named_once() {
    let output = outcome(tidemarkd(Path::new("/proc/tidemark-data")));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("/proc/tidemark-data").count(), 1, "{said}");
    assert!(said.contains("--data-dir"), "{said}");
}

fn check_config(data_dir: &Path, flags: &[&str]) -> Output {
    let mut command = tidemarkd(data_dir);
    command.arg("--check-config").args(flags);
    outcome(command)
}

#[test]
fn a_check_of_the_configuration_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let output = check_config(&data_dir, &[]);
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed
            .lines()
            .any(|line| line.starts_with("max_connections = \"10000\"")
                && line.ends_with("# default"))
    );
    assert!(!data_dir.exists());

    let output = check_config(&data_dir, &["--node-id", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output)
            .contains("`node_id` must be between 1 and 2147483647, not 0 (in flag --node-id)")
    );
}

#[test]
fn log_lines_are_json_when_asked_and_never_on_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tidemarkd(&dir.path().join("data"));
    command.args(["--log-format", "json"]).stderr(Stdio::piped());
    let mut broker = Broker::start(command);
    let mut log = broker.child.stderr.take().unwrap();
    broker.signal(Signal::TERM);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(broker.exit_code(), Some(0));
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    assert!(text.contains("\"signal\":\"SIGTERM\""), "{text}");
}
