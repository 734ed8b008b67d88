//! What an operator can write, rightly and wrongly, and what comes of it.

use std::{ffi::OsString, fs};

use super::*;

fn parse(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, UsageError> {
    let arguments =
        std::iter::once("tidemarkd").chain(arguments.iter().copied()).map(OsString::from);
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Invocation::parse(arguments, environment.iter().map(own).collect::<Vec<_>>())
}

fn problems(content: &str) -> Vec<String> {
    let mut written = Written::default();
    written.read_file(Path::new("t.toml"), content);
    written.resolve().unwrap_err().problems
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tidemark.toml");
    let content = "# ours\nmax_connections = 5\nnode_id = 5\nlog_level = \"warn\"\n";
    fs::write(&path, content).unwrap();
    let environment = [
        ("TIDEMARK_CONFIG", path.to_str().unwrap()),
        ("TIDEMARK_NODE_ID", "6"),
        ("TIDEMARK_LOG_LEVEL", "debug"),
        ("HOME", "/root"),
    ];
    let config = parse(&["--log-level", "error"], &environment).unwrap().config;
    assert_eq!(config.max_connections, 5);
    assert_eq!(config.node_id, 6);
    assert_eq!(config.log_level, value::LogLevel::Error);
    assert_eq!(config.listen, "127.0.0.1:9092");
    assert_eq!(config.warnings, Vec::<String>::new());

    let settings = config.settings();
    let source = |name: &str| {
        settings.iter().find(|setting| setting.name == name).map(|setting| setting.source.as_str())
    };
    assert_eq!(source("max_connections"), Some("file"));
    assert_eq!(source("node_id"), Some("environment"));
    assert_eq!(source("log_level"), Some("flag"));
    assert_eq!(source("listen"), Some("default"));
}

#[test]
fn what_is_printed_as_in_force_is_a_file_that_gives_the_same_again() {
    let config = Config::with(&[
        ("data_dir", "/srv/\"odd\" name"),
        ("max_frame_bytes", "1.5MiB"),
        ("send_timeout", "90s"),
    ]);
    let config = config.unwrap();
    let mut written = Written::default();
    written.read_file(Path::new("t.toml"), &config.to_toml());
    assert_eq!(written.resolve().unwrap().values, config.values);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
    let content = "node_id = 1\n\nmax_conections = 5\nzzz = 1\n";
    assert_eq!(
        problems(content),
        [
            "t.toml, line 3: unknown setting `max_conections`; did you mean `max_connections`?",
            "t.toml, line 4: unknown setting `zzz`; `tidemarkd --help` lists all of them",
        ]
    );
    assert!(problems("data-dir = \"x\"")[0].contains("did you mean `data_dir`?"));
    assert!(problems("[server]\nlisten = 1")[0].contains("line 1: unknown setting `server`"));
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    assert!(problems("node_id = 1\nlisten = \n")[0].starts_with("t.toml, line 2: "));
    assert_eq!(
        problems("listen = [1]"),
        ["t.toml, line 1: `listen` takes one text or number; this is of type array"]
    );
}

#[test]
fn every_problem_is_reported_at_once_with_bounds_and_source() {
    let environment = [("TIDEMARK_MAX_FRAME_BYTES", "1KiB"), ("TIDEMARK_SEND_TIMEOUT", "5")];
    let error = parse(&["--listen", "here"], &environment).unwrap_err().to_string();
    assert_eq!(
        error.lines().collect::<Vec<_>>(),
        [
            "`listen` must be host:port such as 127.0.0.1:9092, not `here` (in flag --listen)",
            "`max_frame_bytes` must be between 64KiB and 64MiB, not 1KiB (in environment variable \
             TIDEMARK_MAX_FRAME_BYTES)",
            "`send_timeout` must be a time with its unit such as 250ms, 5s or 12h, not `5` (in environment \
             variable TIDEMARK_SEND_TIMEOUT)",
        ]
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let error = Config::with(&[("max_frame_bytes", "2MiB"), ("connection_memory_bytes", "1MiB")]);
    assert!(error.unwrap_err().to_string().contains("must be at least `max_frame_bytes` (2MiB)"));
    let error = Config::with(&[("http_listen", "127.0.0.1:9092")]).unwrap_err();
    assert_eq!(error.to_string(), "`listen` and `http_listen` are both 127.0.0.1:9092");
    assert!(Config::with(&[("listen", "[::]:0"), ("http_listen", "[::]:0")]).is_ok());
}

#[test]
fn an_unknown_variable_is_a_warning_and_an_unknown_flag_an_error() {
    let config =
        parse(&[], &[("TIDEMARK_DATADIR", "x"), ("TIDEMARK_BROKERS", "b:1")]).unwrap().config;
    assert_eq!(
        config.warnings,
        ["environment variable TIDEMARK_DATADIR is not a setting; did you mean TIDEMARK_DATA_DIR?"]
    );
    let error = parse(&["--data-dri", "x"], &[]).unwrap_err().to_string();
    assert!(error.contains("--data-dir"), "{error}");
}

#[test]
fn a_missing_file_is_an_error_with_its_path() {
    let error = parse(&["--config", "/nowhere/t.toml"], &[]).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration file /nowhere/t.toml: "), "{error}");
}
