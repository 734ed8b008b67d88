//! The README's five minutes: with real data, in and out of a real broker, over a `kill -9`; and the README's own commands.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tidemark_tests::{
    cli::Cli,
    process::{BrokerConfig, program, programs_dir},
    up::{PATIENCE, Up, signal},
};

/// Lines of real text that the tour runs on; there are a million where `apt-cache` has its lists.
const LINES_MAX: usize = 100_000;
/// Fewer than this and it is not the lists, but what a bare container says of itself.
const LINES_MIN: usize = 20_000;

#[test]
fn what_was_piped_in_is_read_back_and_survives_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let cli = Cli::new(&broker);
    let text = real_text()?;
    let fields: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').filter(is_field).collect();

    cli.done(&["topic", "create", "packages"]);
    cli.pipe(&["produce", "packages"], &text).exits(0);
    ensure!(cli.done(&["consume", "packages", "-e"]).bytes() == text, "one partition, other bytes");

    cli.done(&["topic", "create", "fields", "--partitions", "4"]);
    cli.pipe(&["produce", "fields", "-K", ": "], &fields.concat()).exits(0);
    let back = cli.done(&["consume", "fields", "-e", "-f", "%p %k: %v\\n"]);
    check_order_by_key(&fields, back.bytes())?;

    for (topic, records) in [("packages", count_lines(&text)), ("fields", fields.len())] {
        // Out as often as in: what is read once is sent once, also when partitions end at different times.
        for way in ["in", "out"] {
            let labels = format!("{{topic=\"{topic}\",protocol=\"native\"}}");
            let counted = broker.metric(&format!("tidemark_records_{way}_total{labels}"))?;
            let counted = counted.map(|count| count.to_string());
            assert_eq!(counted, Some(records.to_string()), "{topic}, {way}");
        }
    }

    let broker = broker.kill()?.start()?;
    let again = Cli::new(&broker).done(&["consume", "packages", "-e"]);
    ensure!(again.bytes() == text, "not the same after a kill");
    let again = cli.done(&["consume", "fields", "-e", "-f", "%p %k: %v\\n"]);
    check_order_by_key(&fields, again.bytes())?;
    // And it goes on where it was.
    cli.pipe(&["produce", "packages"], b"one more\n").exits(0);
    let last = cli.done(&["consume", "packages", "--offset", "-1", "-e", "-f", "%o %v"]);
    assert_eq!(last.text(), format!("{} one more", count_lines(&text)));
    Ok(())
}

/// Fails unless `back`, lines of `PARTITION KEY: VALUE`, has the lines of `sent`, each key in one partition and in order.
fn check_order_by_key(sent: &[&[u8]], back: &[u8]) -> Result<()> {
    let mut sent_by_key: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for line in sent {
        sent_by_key.entry(key(line)).or_default().push(line);
    }
    let mut partitions: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    let mut back_by_key: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for line in back.split_inclusive(|byte| *byte == b'\n') {
        let at = line.iter().position(|byte| *byte == b' ').context("a partition")?;
        let (partition, line) = (&line[..at], &line[at + 1..]);
        back_by_key.entry(key(line)).or_default().push(line);
        let first = *partitions.entry(key(line)).or_insert(partition);
        ensure!(first == partition, "{} is in two partitions", String::from_utf8_lossy(key(line)));
    }
    for (key, lines) in &sent_by_key {
        let same = back_by_key.get(key) == Some(lines);
        ensure!(same, "records of {} are not as sent", String::from_utf8_lossy(key));
    }
    ensure!(sent_by_key.len() == back_by_key.len(), "keys that nobody sent");
    let used = partitions.values().collect::<std::collections::BTreeSet<_>>().len();
    ensure!(used > 1, "all keys in one partition prove nothing");
    Ok(())
}

#[test]
fn the_commands_of_the_readme_do_what_it_shows() -> Result<()> {
    let data_dir = tempfile::tempdir()?;
    let config = BrokerConfig::new(data_dir.path())?;
    let mut broker = Some(config.start()?);
    let Tour { one: steps, .. } = tour()?;
    assert!(steps.len() > 10, "the tour has shrunk to {} commands", steps.len());
    let mut terminal = Terminal::open(config.listen.to_string())?;
    for step in &steps {
        // Only these two cannot be run as they stand: the broker of this test is not the reader's.
        if step.command.starts_with("kill -9 ") {
            broker.take().context("a broker to kill")?.kill()?;
        } else if step.command == "cargo run --release" {
            ensure!(broker.is_none(), "the README starts a second broker");
            broker = Some(config.start()?);
        } else {
            terminal.run(step, |command| {
                command.replace("127.0.0.1:9644", &config.http_listen.to_string())
            })?;
        }
    }
    check_digests(&terminal.transcript, 2)
}

#[test]
fn the_readmes_three_nodes_lose_their_leader_and_nothing_else() -> Result<()> {
    let Tour { three: steps, .. } = tour()?;
    assert!(steps.len() > 7, "the tour has shrunk to {} commands", steps.len());
    // On a disk with room: how full the machine's is decides nothing.
    let dir = tempfile::tempdir()?;
    let arguments = ["--nodes", "3", "--set", "disk_reserve_bytes=8MiB"];
    let up = Up::start_in_memory(dir.path(), "size=500m", &arguments)?;
    let mut terminal = Terminal::open(up.addresses())?;
    let (mut killed, mut again) = (None, None);
    for step in &steps {
        // These are about processes of the reader's.
        if step.command.starts_with("cargo tidemark up") {
            ensure!(step.command.contains("--nodes 3"), "another cluster than this test's");
        } else if step.command.starts_with("kill -9 ") {
            let listed = up.cli().done(&["partition", "list", "ledger", "-o", "json"]).json();
            let leader = listed["partitions"][0]["leader"].as_u64().context("a leader")?;
            let at = usize::try_from(leader)? - 1;
            signal("KILL", &up.node(at, "pid"))?;
            up.says(&format!("node {leader}"))?;
            killed = Some(at);
        } else if step.command.starts_with("TIDEMARK_NODE_ID=") {
            let command = up.node(killed.context("nobody was killed")?, "command");
            // As the cluster sees its disk, which nobody else does.
            let (inside, pid) = (dir.path().display().to_string(), up.pid());
            let command = command.replace(&inside, &format!("/proc/{pid}/root{inside}"));
            again = Some(Background::start(&command)?);
        } else {
            terminal.run(step, str::to_owned)?;
        }
    }
    ensure!(again.is_some(), "nobody came back");
    let listed = up.cli().done(&["partition", "list", "ledger", "-o", "json"]).json();
    assert_eq!(listed["partitions"][0]["isr"].as_array().map(Vec::len), Some(3), "{listed}");
    check_digests(&terminal.transcript, 1)
}

#[test]
fn the_readmes_group_loses_a_member_and_no_work() -> Result<()> {
    let Tour { group: steps, .. } = tour()?;
    assert!(steps.len() > 10, "the tour has shrunk to {} commands", steps.len());
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let cli = Cli::new(&broker);
    let mut terminal = Terminal::open(broker.address())?;
    let mut jobs = Vec::new();
    let mut age_ms = u64::MAX;
    for step in &steps {
        // A quarter of the work is enough for a test.
        let adapt = |command: &str| command.replace("$(seq 600)", "$(seq 150)");
        if let Some(command) = step.command.strip_suffix(" &") {
            jobs.push(terminal.background(&adapt(command))?);
        } else if let Some(job) = step.command.strip_prefix("kill -9 %") {
            jobs.remove(job.parse::<usize>()? - 1);
        } else if step.command == "wait %1" {
            ensure!(jobs[0].0.wait()?.success(), "{}", step.command);
        } else if step.command.starts_with("sleep ") && jobs.len() == 1 {
            await_records(&cli, 3000)?;
        } else if step.command.starts_with("sleep ") {
            // Only so that somebody sees more of it.
        } else if step.command.ends_with("group lag crew") {
            // The first job is the one that makes work.
            age_ms = await_lag_below(&cli, age_ms, jobs.len() - 1)?;
            terminal.run(step, adapt)?;
        } else if step.command.ends_with("| wc -l") {
            terminal.run(step, adapt)?;
            ensure!(terminal.transcript.ends_with("\n15000\n"), "{}", terminal.transcript);
        } else {
            terminal.run(step, adapt)?;
        }
    }
    let described = cli.done(&["group", "describe", "crew", "-o", "json"]).json();
    assert_eq!(described["members"].as_array().map(Vec::len), Some(2), "{described}");
    assert_eq!(described["removals"][0]["reason"], "not heard of", "{described}");
    Ok(())
}

/// Waits until there is so much work.
fn await_records(cli: &Cli, count: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let described = cli.done(&["topic", "describe", "jobs", "-o", "json"]).json();
        if described["topics"][0]["records"].as_u64().context("a count")? >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{described}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until so many read, and what they have not read is younger than it was. How old it is.
fn await_lag_below(cli: &Cli, age_ms: u64, members: usize) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let described = cli.run(&["group", "describe", "crew", "-o", "json"]);
        // It is not there before its first member is.
        if described.is_done() {
            let described = described.json();
            let is_read = described["members"].as_array().map(Vec::len) == Some(members)
                && described["state"] == "stable";
            let age_now_ms = described["lag"]["age_ms"].as_u64().context("an age")?;
            if is_read && age_now_ms < age_ms {
                return Ok(age_now_ms);
            }
            ensure!(Instant::now() < deadline, "still {age_ms} ms: {described}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A process beside the test; killed when dropped.
struct Background(Child);

impl Background {
    fn start(command: &str) -> Result<Self> {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec env {command}")]);
        Ok(Self(shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Where the README's commands are run, and what they have said.
struct Terminal {
    work_dir: TempDir,
    path: OsString,
    brokers: String,
    transcript: String,
}

impl Terminal {
    fn open(brokers: String) -> Result<Self> {
        let work_dir = tempfile::tempdir()?;
        let path = path_with_apt_cache(work_dir.path())?;
        Ok(Self { work_dir, path, brokers, transcript: String::new() })
    }

    fn command(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", command]).current_dir(&self.work_dir);
        shell.env("PATH", &self.path).env("TIDEMARK_BROKERS", &self.brokers);
        shell
    }

    /// Starts a command that goes on beside the others.
    fn background(&mut self, command: &str) -> Result<Background> {
        let command = command.replace("cargo tidemark", "tidemark");
        writeln!(self.transcript, "$ {command} &")?;
        // One program is to be the process that is killed, and not the child of a shell.
        let exec = if command.starts_with("tidemark ") { "exec " } else { "" };
        let mut shell = self.command(&format!("{exec}{command}"));
        Ok(Background(shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Runs a command, with what `adapt` changes in it, and compares what it says with what is shown.
    fn run(&mut self, step: &Step, adapt: impl FnOnce(&str) -> String) -> Result<()> {
        let command = adapt(&step.command.replace("cargo tidemark", "tidemark"));
        let output = self.command(&command).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        write!(self.transcript, "$ {command}\n{said}")?;
        ensure!(output.status.success(), "{}\n{}", output.status, self.transcript);
        step.check(&said).with_context(|| self.transcript.clone())
    }
}

/// A command of the README and what it shows below.
struct Step {
    command: String,
    shown: Vec<String>,
}

impl Step {
    /// Numbers differ from machine to machine. Lines without any must be printed as shown, but for the width of columns.
    fn check(&self, said: &str) -> Result<()> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let said: Vec<_> = said.lines().map(words).collect();
        ensure!(
            said.is_empty() == self.shown.is_empty(),
            "shows output where there is none, or none"
        );
        for line in self.shown.iter().filter(|line| !line.contains(|c: char| c.is_ascii_digit())) {
            ensure!(said.contains(&words(line)), "the README shows `{line}`");
        }
        Ok(())
    }
}

/// The commands of the README's tour: those for one broker, for a group, and for three nodes.
struct Tour {
    one: Vec<Step>,
    group: Vec<Step>,
    three: Vec<Step>,
}

fn tour() -> Result<Tour> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let (_, tour) = readme.split_once("\n## Five minutes\n").context("the README has a tour")?;
    let tour = tour.split_once("\n## ").map_or(tour, |(tour, _)| tour);
    let (one, rest) = tour.split_once("\n**A group.**").context("a group, too")?;
    let (group, three) = rest.split_once("\n**Three nodes.**").context("a cluster, too")?;
    Ok(Tour { one: steps(one)?, group: steps(group)?, three: steps(three)? })
}

/// The commands in `console` blocks, in order.
fn steps(tour: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for block in tour.split("```console\n").skip(1) {
        let (block, _) = block.split_once("\n```").context("a block that is closed")?;
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    steps.push(Step { command: command.to_owned(), shown: Vec::new() });
                }
                None => steps.last_mut().context("a command first")?.shown.push(line.to_owned()),
            }
        }
    }
    Ok(steps)
}

/// Every checksum that the tour prints is there to be compared with another: none may stand alone. They are of so many texts.
fn check_digests(transcript: &str, texts: usize) -> Result<()> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in transcript.lines() {
        if let Some(digest) = line.strip_suffix("  -").filter(|digest| digest.len() == 64) {
            *seen.entry(digest).or_default() += 1;
        }
    }
    ensure!(seen.len() >= texts, "checksums of {texts} texts\n{transcript}");
    ensure!(seen.values().all(|times| *times >= 2), "checksums differ\n{transcript}");
    Ok(())
}

/// A `PATH` with the programs of this build, and an `apt-cache` that prints the tour's text on every machine.
fn path_with_apt_cache(dir: &Path) -> Result<OsString> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    fs::write(bin.join("text"), real_text()?)?;
    let script = bin.join("apt-cache");
    fs::write(&script, "#!/bin/sh\nexec cat \"$(dirname \"$0\")/text\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    // Built, if it is not yet.
    program("tidemark");
    let inherited = env::var_os("PATH").unwrap_or_default();
    let dirs = [bin, programs_dir()].into_iter().chain(env::split_paths(&inherited));
    Ok(env::join_paths(dirs)?)
}

/// Tens of thousands of lines that somebody wrote: what `apt-cache dumpavail` has, or else the source of this repository,
/// each line behind the name of its file, which makes the same kind of text: `Field: value`.
fn real_text() -> Result<Vec<u8>> {
    let packages = Command::new("apt-cache").arg("dumpavail").output();
    let packages = packages.map(|output| output.stdout).unwrap_or_default();
    if count_lines(&packages) >= LINES_MIN {
        let lines = packages.split_inclusive(|byte| *byte == b'\n').take(LINES_MAX);
        return Ok(lines.collect::<Vec<_>>().concat());
    }
    let mut text = String::new();
    for path in sources()? {
        let name =
            path.file_stem().context("a file has a name")?.to_string_lossy().replace('_', "-");
        for line in fs::read_to_string(&path)?.lines() {
            writeln!(text, "{name}: {line}")?;
        }
    }
    ensure!(count_lines(text.as_bytes()) >= LINES_MIN, "too little text to be worth a tour");
    Ok(text.into_bytes())
}

/// The Rust files of this repository, in an order that does not change.
fn sources() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> =
        ["protocol", "storage", "broker", "client", "tests"].map(|name| root.join(name)).into();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What `grep -E '^[A-Za-z0-9-]+: '` of the README lets through.
fn is_field(line: &&[u8]) -> bool {
    let name =
        line.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').count();
    name > 0 && line[name..].starts_with(b": ")
}

fn key(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b':').next().expect("split yields at least one")
}

fn count_lines(text: &[u8]) -> usize {
    text.split_inclusive(|byte| *byte == b'\n').count()
}
