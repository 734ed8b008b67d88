//! The `tidemark` command against a real broker: what goes in comes out, and every refusal has its exit code and a way on.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;
use tidemark_tests::{
    cli::Cli,
    process::{Broker, BrokerConfig},
};

/// A broker of the test's own, and the command line that talks to it.
struct Bench {
    cli: Cli,
    broker: Broker,
    _dir: TempDir,
}

fn bench() -> Result<Bench> {
    bench_with(|config| config)
}

fn bench_with(change: impl FnOnce(BrokerConfig) -> BrokerConfig) -> Result<Bench> {
    let dir = tempfile::tempdir()?;
    let broker = change(BrokerConfig::new(dir.path())?).start()?;
    Ok(Bench { cli: Cli::new(&broker), broker, _dir: dir })
}

/// With a disk of its own that has room: how full the machine's is decides nothing.
fn bench_in_health() -> Result<Bench> {
    bench_with(|config| config.mount("size=256m").flag("disk-reserve-bytes", "8MiB"))
}

/// Each on a line of its own.
fn lines(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().fold(String::new(), |mut text, item| {
        fmt::Write::write_fmt(&mut text, format_args!("{item}\n")).expect("into memory");
        text
    })
}

/// A topic of one partition with the numbers from 0 on as values, so that a record's value is its offset.
fn numbers(cli: &Cli, topic: &str, count: u32) {
    cli.done(&["topic", "create", topic]);
    let lines = lines(0..count);
    cli.pipe(&["produce", topic, "--quiet"], lines.as_bytes()).exits(0).says_nothing();
}

// ---- Exit codes and what to do next -------------------------------------------------------------------------------------

#[test]
fn what_is_not_there_is_exit_code_3_with_the_nearest_name() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "orders", "payments"]);
    for verb in
        [&["consume", "ordres", "-e"][..], &["produce", "ordres"], &["topic", "describe", "ordres"]]
    {
        cli.run(verb).exits(3).says(&["no topic `ordres`", "did you mean `orders`?"]);
    }
    cli.run(&["topic", "delete", "ordres", "--yes"]).exits(3).says(&["`orders`"]);
    cli.run(&["topic", "trim", "ordres", "--before", "end", "--yes"]).exits(3).says(&["`orders`"]);
    cli.run(&["consume", "telemetry"]).exits(3).says(&["tidemark topic create telemetry"]);
    cli.run(&["consume", "orders", "-p", "1"]).exits(3).says(&["no partition 1", "it has 1"]);
    cli.run(&["produce", "orders", "-p", "1"]).exits(3).says(&["no partition 1"]);
    cli.run(&["produce", "orders", "no/such/file"]).exits(3).says(&["no/such/file"]);
    cli.run(&["consume", "orders", ":end"]).exits(3).says(&["--offset :end"]);
    Ok(())
}

#[test]
fn wrong_usage_is_exit_code_2_and_changes_nothing() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    numbers(cli, "orders", 3);
    cli.run(&["tpoic"]).exits(2).says(&["tpoic"]);
    cli.run(&["topic", "create", "two words"]).exits(2).says(&["letters, digits"]);
    cli.run(&["topic", "create", "t", "--partitions", "0"]).exits(2).says(&["1 to 100000"]);
    let typo = ["topic", "create", "t", "--set", "retention_sm=7d"];
    cli.run(&typo).exits(2).says(&["Did you mean \"retention_ms\"?"]);
    cli.run(&["topic", "alter", "orders", "--set", "retention_ms=soon"]).exits(2).says(&["7d"]);
    cli.run(&["consume", "orders", "--offset", "yesterday"]).exits(2).says(&["@-1h"]);
    cli.run(&["consume", "orders", "--offset", "9:3"]).exits(2).says(&["ends before it begins"]);
    cli.run(&["consume", "orders", "-f", "%q"]).exits(2).says(&["%v value"]);
    cli.run(&["consume", "orders", "-o", "yaml"]).exits(2).says(&["-o json"]);
    cli.run(&["bench", "produce", "--json", "-"]).exits(2).says(&["-o json"]);
    cli.run(&["-b", "here", "topic", "list"]).exits(2).says(&["host:port"]);
    assert_eq!(cli.done(&["topic", "list", "-o", "name"]).text(), "orders\n");
    Ok(())
}

#[test]
fn a_conflict_is_exit_code_4_unless_the_flag_accepts_it() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "orders", "--partitions", "2"]);
    cli.run(&["topic", "create", "orders"]).exits(4).says(&["exists", "--if-not-exists"]);
    let accepted = cli.done(&["topic", "create", "orders", "--if-not-exists", "-o", "json"]).json();
    assert_eq!(accepted["topics"][0]["existed"], true);
    assert_eq!(accepted["topics"][0]["partitions"], 2);
    cli.run(&["topic", "delete", "nothing", "--yes"]).exits(3);
    cli.done(&["topic", "delete", "nothing", "--yes", "--if-exists"]).says_nothing();
    Ok(())
}

#[test]
fn what_cannot_be_undone_is_shown_and_needs_a_yes() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    numbers(cli, "orders", 10);
    let delete = cli.run(&["topic", "delete", "orders"]);
    delete.exits(4).says(&["10 records in 1 partition", "--yes"]);
    cli.run(&["topic", "trim", "orders", "--before", "4"]).exits(4).says(&["4 records", "--yes"]);
    cli.done(&["topic", "trim", "orders", "--before", "4", "--dry-run"]);
    assert_eq!(
        cli.done(&["consume", "orders", "-e", "-n", "1"]).text(),
        "0\n",
        "nothing is gone yet"
    );
    let trimmed =
        cli.done(&["topic", "trim", "orders", "--before", "4", "--yes", "-o", "json"]).json();
    assert_eq!(trimmed["partitions"][0]["records"], 4);
    assert_eq!(cli.done(&["consume", "orders", "-e", "-n", "1"]).text(), "4\n");
    cli.done(&["topic", "trim", "orders", "--before", "-2", "--yes"]);
    assert_eq!(cli.done(&["consume", "orders", "-e"]).text(), "8\n9\n");
    cli.done(&["topic", "delete", "orders", "--yes"]);
    assert_eq!(cli.done(&["topic", "list", "-o", "name"]).text(), "");
    Ok(())
}

#[test]
fn without_a_broker_it_says_how_to_get_one() -> Result<()> {
    // Taken and given back: nobody listens.
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let refused = Cli::at(free.as_str()).run(&["topic", "list"]);
    refused.exits(1).says(&[&free, "tidemarkd", "--brokers", "TIDEMARK_BROKERS"]);
    // Listens and never answers.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let address = silent.local_addr()?.to_string();
    let timed_out = Cli::at(address.as_str()).run(&["topic", "list", "--timeout", "200ms"]);
    timed_out.exits(5).says(&[&address, "200 ms"]);
    // Speaks something else.
    let Bench { cli, broker, .. } = &bench()?;
    let http = broker.http_address().to_string();
    cli.run(&["-b", &http, "topic", "list"]).exits(1).says(&["does not speak", "9092"]);
    Ok(())
}

#[test]
fn a_cluster_in_trouble_is_exit_code_6_with_the_reason() -> Result<()> {
    let Bench { cli, .. } = &bench_in_health()?;
    assert_eq!(cli.done(&["cluster", "health", "-o", "name"]).text(), "healthy\n");
    // No machine has this much free.
    let Bench { cli, .. } = &bench_with(|config| config.flag("disk-reserve-bytes", "1000TiB"))?;
    let degraded = cli.run(&["cluster", "health", "-o", "json"]);
    let problems = degraded.exits(6).json()["problems"].to_string();
    assert!(problems.contains("disk_reserve_bytes"), "{problems}");
    cli.run(&["topic", "create", "t"]).exits(1).says(&["disk is full", "reading still works"]);
    Ok(())
}

#[test]
fn what_was_done_in_part_is_exit_code_7() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "orders"]);
    let described = cli.run(&["topic", "describe", "orders", "nothing", "-o", "name"]);
    assert_eq!(described.exits(7).says(&["no topic `nothing`"]).text(), "orders\n");
    let produced = cli.pipe(&["produce", "orders", "-K", "="], b"a=1\nb\nc=3\n");
    produced.exits(7).says(&["1 record ", "record 2 has no key delimiter"]);
    assert_eq!(cli.done(&["consume", "orders", "-e", "-f", "%k=%v\\n"]).text(), "a=1\n");
    // A batch that the topic does not take: those around it are in, and it is said which is not.
    let large = [b"small\n".to_vec(), vec![b'x'; 2 << 20], b"\n".to_vec()].concat();
    cli.pipe(&["produce", "orders"], &large).exits(7).says(&["1 record failed", "max_batch_bytes"]);
    Ok(())
}

// ---- Results for people and for programs --------------------------------------------------------------------------------

#[test]
fn every_result_has_a_form_for_people_for_programs_and_for_shell_loops() -> Result<()> {
    let Bench { cli, .. } = &bench_in_health()?;
    cli.done(&["topic", "create", "orders", "payments", "--partitions", "2"]);
    let table = cli.done(&["topic", "list"]);
    let mut lines = table.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().context("a header")?[..2], ["TOPIC", "PARTITIONS"]);
    assert_eq!(lines.next().context("a topic")?[..2], ["orders", "2"]);
    assert!(!table.text().contains('\x1b'), "no colour into a pipe");
    assert_eq!(cli.done(&["topic", "list", "--no-headers"]).text().lines().count(), 2);
    assert_eq!(cli.done(&["topic", "list", "pay*", "-o", "name"]).text(), "payments\n");
    let json = cli.done(&["topic", "list", "-o", "json"]).json();
    assert_eq!(json["schema"], "tidemark/topic.list/1");
    assert_eq!(json["topics"][1]["name"], "payments");
    let yaml = cli.done(&["topic", "list", "-o", "yaml"]);
    assert!(yaml.text().starts_with("schema: tidemark/topic.list/1\ntopics:\n- name: orders\n"));
    for verb in [
        &["topic", "describe", "orders"][..],
        &["broker", "describe"],
        &["cluster", "info"],
        &["cluster", "health"],
        &["version"],
    ] {
        let json = cli.done(&[verb, &["-o", "json"]].concat()).json();
        let schema = json["schema"].as_str().context("every form for programs names its schema")?;
        assert!(schema.starts_with("tidemark/") && schema.ends_with("/1"), "{schema}");
        assert!(cli.done(&[verb, &["-o", "yaml"]].concat()).text().contains(schema));
        assert!(!cli.done(verb).text().is_empty());
        assert!(!cli.done(&[verb, &["-o", "name"]].concat()).text().is_empty());
    }
    Ok(())
}

#[test]
fn settings_are_altered_and_go_back_to_their_defaults() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "orders", "--set", "segment_bytes=16MiB"]);
    let settings = || -> Result<BTreeMap<String, String>> {
        let described = cli.done(&["topic", "describe", "orders", "-o", "json"]).json();
        let settings = described["topics"][0]["settings"].as_array().context("settings")?;
        let text = |it: &Value, field: &str| it[field].as_str().unwrap_or("").to_owned();
        Ok(settings.iter().map(|it| (text(it, "name"), text(it, "value"))).collect())
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(settings()?, BTreeMap::from([pair("segment_bytes", "16777216")]));
    cli.done(&["topic", "alter", "orders", "--set", "retention_ms=2d", "--dry-run"]);
    assert_eq!(settings()?.len(), 1, "a dry run changes nothing");
    cli.done(&["topic", "alter", "orders", "--set", "retention_ms=2d", "--unset", "segment_bytes"]);
    assert_eq!(settings()?, BTreeMap::from([pair("retention_ms", "172800000")]));
    cli.done(&["topic", "add-partitions", "orders", "--total", "3"]);
    cli.done(&["consume", "orders", "-p", "2", "-e"]);
    Ok(())
}

// ---- Records in and out -------------------------------------------------------------------------------------------------

/// Topic, flags of `produce`, its input, a format, and what `consume` prints in that format.
type Case<'a> = (&'a str, &'a [&'a str], &'a [u8], &'a str, &'a [u8]);

#[test]
fn lines_come_back_as_they_went_in() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    let cases: &[Case<'_>] = &[
        ("empty-lines", &[], b"one\n\nthree\n", "%v\\n", b"one\n\nthree\n"),
        ("no-last-newline", &[], b"one\ntwo", "[%v]", b"[one][two]"),
        ("carriage-returns", &[], b"one\r\ntwo\n", "[%v]", b"[one\r][two]"),
        ("nothing", &[], b"", "[%v]", b""),
        ("bytes", &[], b"\xff\x00\xfe\n", "[%v]", b"[\xff\x00\xfe]"),
        ("nul", &["-0"], b"a\nb\0\0c", "[%v]", b"[a\nb][][c]"),
        ("blank-line", &["-D", "\\n\\n"], b"a\nb\n\nc\n", "[%v]", b"[a\nb][c\n]"),
        ("hex", &["-D", "\\x1e;"], b"a\x1e;b\x1ec", "[%v]", b"[a][b\x1ec]"),
        ("whole", &["--whole"], b"a\nb\n", "[%v]", b"[a\nb\n]"),
        ("keys", &["-K", "="], b"k=v=1\n=\nk=\n", "[%k:%v]", b"[k:v=1][:][k:]"),
        ("one-key", &["-k", "all"], b"a\nb\n", "[%k:%v]", b"[all:a][all:b]"),
        ("tombstones", &["-K", "=", "-Z"], b"k=\n", "%k=%v{json}", b"k=null"),
        ("headers", &["-H", "a=1", "-H", "b=x=y"], b"v\n", "%H %h{[%k|%v]}", b"2 [a|1][b|x=y]"),
    ];
    for (topic, flags, input, format, expected) in cases {
        cli.done(&["topic", "create", topic]);
        cli.pipe(&[&["produce", topic], *flags].concat(), input).exits(0);
        let back = cli.done(&["consume", topic, "-e", "-f", format]);
        assert_eq!(back.bytes(), *expected, "{topic}: {}", String::from_utf8_lossy(back.bytes()));
    }
    Ok(())
}

#[test]
fn files_are_read_in_order_and_every_codec_brings_the_same_back() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    let dir = tempfile::tempdir()?;
    let (first, second) = (lines(0..20_000), lines(20_000..40_000));
    let paths = ["first", "second"].map(|name| dir.path().join(name).display().to_string());
    std::fs::write(&paths[0], &first)?;
    std::fs::write(&paths[1], &second)?;
    let whole = first + &second;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        cli.done(&["topic", "create", codec]);
        let produced = cli.done(&["produce", codec, &paths[0], &paths[1], "-z", codec, "-v"]);
        produced.says(&["produced 40,000 records", "offsets 0 to 39999, acknowledged on disk"]);
        let back = cli.done(&["consume", codec, "-e"]);
        assert!(back.bytes() == whole.as_bytes(), "{codec} changed something");
    }
    Ok(())
}

#[test]
fn json_lines_make_the_round_trip_with_keys_headers_times_and_bytes() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "first", "second"]);
    let lines = concat!(
        r#"{"key":"k","value":"text \u00e9\n","headers":[{"key":"h","value":"1"},{"key":"h","value":null}],"timestamp_ms":1771065000000}"#,
        "\n",
        r#"{"key":"k","value":null,"timestamp":"2026-02-14T10:30:01Z"}"#,
        "\n",
        r#"{"key_base64":"/w==","value_base64":"AP8=","timestamp_ms":1771065002000}"#,
        "\n",
        r#"{"value":{"spelled":  1.50}}"#,
        "\n",
    );
    cli.pipe(&["produce", "first", "--json"], lines.as_bytes()).exits(0);
    let first = cli.done(&["consume", "first", "-e", "-o", "json"]);
    cli.pipe(&["produce", "second", "--json"], first.bytes()).exits(0);
    let second = cli.done(&["consume", "second", "-e", "-o", "json"]);
    assert_eq!(first.text().replace("\"first\"", "\"second\""), second.text());
    let records: Vec<Value> =
        first.text().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(records[0]["value"], "text é\n");
    assert_eq!(records[0]["headers"].as_array().map(Vec::len), Some(2));
    assert_eq!(records[0]["timestamp_ms"], 1_771_065_000_000_i64);
    assert_eq!(
        (&records[1]["value"], &records[1]["timestamp_ms"]),
        (&Value::Null, &1_771_065_001_000_i64.into())
    );
    assert_eq!(
        (&records[2]["key_base64"], &records[2]["value_base64"]),
        (&"/w==".into(), &"AP8=".into())
    );
    assert_eq!(records[3]["value"], r#"{"spelled":  1.50}"#);
    // A misspelt field is not a record without a value.
    cli.pipe(&["produce", "first", "--json"], b"{\"valu\":1}\n").exits(1).says(&["line 1", "valu"]);
    Ok(())
}

#[test]
fn positions_and_ranges_choose_the_records() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    numbers(cli, "n", 100);
    let values = |flags: &[&str]| {
        let ran = cli.done(&[&["consume", "n", "-f", "%v "], flags].concat());
        ran.text().trim_end().to_owned()
    };
    for (position, expected) in [
        ("97", "97 98 99"),
        ("-2", "98 99"),
        ("+98", "98 99"),
        ("end", ""),
        ("10:13", "10 11 12"),
        ("10:+2", "10 11"),
        (":+2", "0 1"),
        (":2", "0 1"),
        ("-5:-3", "95 96"),
        ("98:", "98 99"),
        ("98:200", "98 99"),
        ("200:300", ""),
    ] {
        // The end is where it stops, whether or not the range says so.
        assert_eq!(values(&["--offset", position, "-e"]), expected, "--offset {position}");
        if position.split_once(':').is_some_and(|(_, to)| !to.is_empty()) {
            assert_eq!(
                values(&["--offset", position]),
                expected,
                "--offset {position}, without -e"
            );
        }
    }
    assert_eq!(values(&["-n", "2"]), "0 1");
    assert_eq!(values(&["--offset", "50", "-n", "2"]), "50 51");
    assert_eq!(values(&["--grep", "9", "--offset", "80:95"]), "89 90 91 92 93 94");
    Ok(())
}

#[test]
fn a_range_is_taken_from_every_partition_and_no_more() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "n", "--partitions", "3"]);
    for (partition, count) in [("0", 60_000), ("1", 300), ("2", 5)] {
        cli.pipe(&["produce", "n", "-p", partition], lines(0..count).as_bytes()).exits(0);
    }
    let ran = cli.done(&["consume", "n", "--offset", "1:2000", "-f", "%p %v\\n"]);
    let mut by_partition = [0, 1, 2].map(|_| Vec::new());
    for line in ran.text().lines() {
        let (partition, value) = line.split_once(' ').context("both parts")?;
        by_partition[partition.parse::<usize>()?].push(value.parse::<u32>()?);
    }
    for (values, end) in by_partition.iter().zip([2_000, 300, 5]) {
        assert!(values.iter().copied().eq(1..end), "not 1 to {end}: {values:?}");
    }
    Ok(())
}

#[test]
fn times_choose_the_records() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "days", "--set", "retention_ms=unlimited"]);
    // One record at noon of each of the first nine days of a month.
    let days =
        (1..10).map(|day| format!(r#"{{"value":"{day}","timestamp":"2026-02-0{day}T12:00:00Z"}}"#));
    cli.pipe(&["produce", "days", "--json"], lines(days).as_bytes()).exits(0);
    let values = |position: &str| {
        let ran = cli.done(&["consume", "days", "-e", "-f", "%v ", "--offset", position]);
        ran.text().trim_end().to_owned()
    };
    assert_eq!(values("@2026-02-08"), "8 9");
    assert_eq!(values("@2026-02-08T12:00:00Z"), "8 9", "at that time or later");
    assert_eq!(values("@2026-02-08T12:00:00.001Z"), "9");
    assert_eq!(values("@2026-02-08T13:30:00+01:00"), "9");
    assert_eq!(values("@2026-02-03:@2026-02-05"), "3 4");
    assert_eq!(values("@2026-02-03:24h"), "3");
    assert_eq!(values("@1770206400:+1"), "4", "in Unix seconds");
    assert_eq!(values("@1770206400000:+1"), "4", "in Unix milliseconds");
    assert_eq!(values("@2026-03-01"), "");
    assert_eq!(values("@2025-12-31:+2"), "1 2");
    Ok(())
}

#[test]
fn a_format_prints_every_part_of_a_record() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "t", "--partitions", "3"]);
    let line = r#"{"key":"k","value":"hi","headers":{"a":"1"},"timestamp_ms":1771065000250}"#;
    cli.pipe(&["produce", "t", "--json", "-p", "2"], line.as_bytes()).exits(0);
    let format =
        r"%t/%p/%o #%n %k=%v %K+%V %T %d %d{%Y} %h %H %v{hex} %v{base64} %v{len}%%\t\x21\n";
    assert_eq!(
        cli.done(&["consume", "t", "-e", "-f", format]).text(),
        "t/2/0 #1 k=hi 1+2 1771065000250 2026-02-14T10:30:00.250Z 2026 a=1 1 6869 aGk= 2%\t!\n"
    );
    let placed = cli.done(&["consume", "t", "-e", "--meta-only"]);
    assert_eq!(placed.text(), "t 2 0 2026-02-14T10:30:00.250Z 1 2\n");
    Ok(())
}

// ---- In a pipeline ------------------------------------------------------------------------------------------------------

/// A command whose output is cut off after its first line.
fn first_line_only(cli: &Cli, arguments: &[&str]) -> Result<(String, Child)> {
    let mut child = cli.command(arguments).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    // The pipe is closed here.
    Ok((line, child))
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    numbers(cli, "n", 200_000);
    let cases = [
        &["consume", "n", "-e"][..],
        // Follows a topic to which nothing more comes: nothing will be written that could fail.
        &["consume", "n", "--offset", "199999"],
        &["completion", "bash"],
    ];
    for arguments in cases {
        let (line, child) = first_line_only(cli, arguments)?;
        assert!(!line.is_empty());
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn following_prints_what_arrives_as_it_arrives() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    cli.done(&["topic", "create", "t"]);
    let mut child = cli.command(&["consume", "t", "-n", "2"]).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    for word in ["one", "two"] {
        cli.pipe(&["produce", "t"], word.as_bytes()).exits(0);
        assert_eq!(lines.next().context("a line before the next is sent")??, word);
    }
    assert_eq!(child.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_pipeline_goes_on_over_a_kill_of_the_broker() -> Result<()> {
    let Bench { cli, broker, _dir } = bench()?;
    cli.done(&["topic", "create", "t"]);
    let mut producing = cli.command(&["produce", "t"]).stdin(Stdio::piped()).spawn()?;
    let mut input = producing.stdin.take().context("piped")?;
    let mut consuming = cli.command(&["consume", "t"]).spawn()?;
    let mut lines = BufReader::new(consuming.stdout.take().context("piped")?).lines();
    writeln!(input, "before")?;
    assert_eq!(lines.next().context("a line")??, "before");
    let _broker = broker.kill()?.start()?;
    writeln!(input, "after")?;
    // If the kill came between the record and its acknowledgement, it was sent once more.
    let next = lines.find(|line| !line.as_ref().is_ok_and(|line| line == "before"));
    assert_eq!(next.context("a line after the restart")??, "after");
    drop((input, lines));
    assert_eq!(producing.wait()?.code(), Some(0));
    assert_eq!(consuming.wait()?.code(), Some(0));
    Ok(())
}

// ---- The rest -----------------------------------------------------------------------------------------------------------

#[test]
fn benchmarks_report_throughput_and_percentiles_and_leave_nothing_behind() -> Result<()> {
    let Bench { cli, .. } = &bench()?;
    let dir = tempfile::tempdir()?;
    for what in ["produce", "consume", "e2e"] {
        let path = dir.path().join(what);
        let file = path.display().to_string();
        cli.done(&["bench", what, "--records", "2k", "--json", &file]).says_nothing();
        let report: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        assert_eq!((&report["benchmark"], &report["records"]), (&what.into(), &2_000.into()));
        assert!(report["records_per_second"].as_f64().is_some_and(|it| it > 0.0), "{report}");
        if what != "consume" {
            let of = |name: &str| report["latency"][name].as_f64().unwrap_or(f64::NAN);
            let rising = of("p50_ms") <= of("p99_ms") && of("p99_ms") <= of("max_ms");
            assert!(rising && of("p50_ms") > 0.0, "{report}");
        }
    }
    let printed = cli.done(&["bench", "produce", "--records", "1k", "-o", "json"]).json();
    assert_eq!(printed["schema"], "tidemark/bench/1");
    assert_eq!(cli.done(&["topic", "list", "-o", "name"]).text(), "");
    Ok(())
}

#[test]
fn completions_and_help_need_no_broker() {
    let cli = Cli::at("127.0.0.1:1");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(cli.done(&["completion", shell]).text().contains("tidemark"), "{shell}");
    }
    assert!(cli.done(&["--help"]).text().contains("Exit codes:"));
    assert!(cli.done(&["consume", "--help"]).text().contains("%t topic"));
    cli.run(&["topic"]).exits(2).says(&["create", "describe"]);
}
