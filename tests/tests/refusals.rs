//! A broker that cannot start says why and what to do, with exit code 1, and harms nothing.

use std::{fs, net::TcpListener, process::Output};

use anyhow::Result;
use tidemark_tests::{
    process::BrokerConfig,
    raw::{Raw, batch},
};

/// Fails unless the broker refused with exit code `code` and a message that has all the words.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn a_port_in_use_is_named_with_the_setting_that_changes_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = BrokerConfig::new(dir.path())?;
    let data_port = TcpListener::bind(config.listen)?;
    assert_refused(
        &config.start_refused()?,
        1,
        &[&config.listen.to_string(), "another process", "--listen"],
    );
    drop(data_port);
    let _http_port = TcpListener::bind(config.http_listen)?;
    let words = [&config.http_listen.to_string()[..], "another process", "--http-listen"];
    assert_refused(&config.start_refused()?, 1, &words);
    Ok(())
}

#[test]
fn a_data_directory_has_one_broker_at_a_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = BrokerConfig::new(dir.path())?.start()?;
    let second = BrokerConfig::new(dir.path())?;
    let path = dir.path().display().to_string();
    assert_refused(&second.start_refused()?, 1, &[&path, "another process"]);
    assert!(first.terminate()?.success());
    // The lock goes with the process, however it ended.
    second.start()?.kill()?.start()?.terminate()?;
    Ok(())
}

#[test]
fn a_read_only_data_directory_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = BrokerConfig::new(dir.path())?.mount("ro");
    assert_refused(&config.start_refused()?, 1, &["Read-only file system"]);
    Ok(())
}

#[test]
fn a_directory_of_another_node_or_of_something_else_is_refused_and_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = BrokerConfig::new(dir.path())?;
    let broker = config.start()?;
    let mut raw = Raw::open(&broker)?;
    let partition = raw.create_topic("mine", 1, &[])?[0];
    raw.produce(partition, &batch(&[b"kept"]))??;
    broker.terminate()?;

    let other = config.clone().flag("node-id", "7");
    assert_refused(&other.start_refused()?, 1, &["node", "7"]);

    let format = dir.path().join("format");
    let intact = fs::read(&format)?;
    fs::write(&format, b"some notes of mine")?;
    assert_refused(&config.start_refused()?, 1, &["format"]);
    fs::write(&format, &intact)?;

    // Nothing was lost by being refused.
    let broker = config.start()?;
    let (fetched, _) = Raw::open(&broker)?.fetch(partition, 0)??;
    assert_eq!(fetched.high_watermark, 1);
    Ok(())
}

#[test]
fn a_directory_full_of_other_files_is_not_taken_over() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("thesis.tex"), b"chapter one")?;
    let config = BrokerConfig::new(dir.path())?;
    assert_refused(&config.start_refused()?, 1, &["thesis.tex", "empty directory"]);
    assert_eq!(fs::read_dir(dir.path())?.count(), 1, "and nothing was written into it");
    Ok(())
}

#[test]
fn settings_that_do_not_exist_or_do_not_fit_are_refused_with_the_nearest_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("tidemark.toml");
    fs::write(&file, "listn = \"127.0.0.1:1\"\n")?;
    let file = file.display().to_string();
    let config = BrokerConfig::new(&dir.path().join("data"))?;
    assert_refused(&config.clone().flag("config", &file).start_refused()?, 2, &["listn", "listen"]);
    let bad = config.flag("checkpoint-interval", "5 parsecs");
    assert_refused(&bad.start_refused()?, 2, &["checkpoint", "5 parsecs"]);
    Ok(())
}
