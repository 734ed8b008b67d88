//! `tidemark up` for real: a cluster from one command, a node that dies, and nothing left behind.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use anyhow::{Context as _, Result};
use tidemark_protocol::frame::Preface;
use tidemark_tests::up::{PATIENCE, Up, signal};

#[test]
fn one_node_is_up_and_gone_again_with_its_data() -> Result<()> {
    let up = Up::start(&[])?;
    let dir = up.report["data_dir"].as_str().context("a directory")?.to_owned();
    assert!(Path::new(&dir).join("node-1").exists());
    let cli = up.cli();
    cli.done(&["topic", "create", "orders"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\nb\n").exits(0);
    assert_eq!(cli.done(&["consume", "orders", "-e"]).text(), "a\nb\n");
    assert_eq!(cli.done(&["broker", "list", "-o", "name"]).text(), "1\n");
    assert_eq!(up.interrupt()?.code(), Some(0));
    assert!(!Path::new(&dir).exists(), "{dir} is left behind");
    Ok(())
}

#[test]
fn a_directory_that_is_named_is_kept_and_brings_the_same_cluster_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("cluster");
    let data = data.to_str().context("UTF-8")?;
    let up = Up::start(&["--dir", data])?;
    let cli = up.cli();
    cli.done(&["topic", "create", "orders"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\n").exits(0);
    assert_eq!(up.interrupt()?.code(), Some(0));
    let up = Up::start(&["--dir", data])?;
    assert_eq!(up.cli().done(&["consume", "orders", "-e"]).text(), "a\n");
    Ok(())
}

#[test]
fn killed_it_takes_its_node_along() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let up = Up::start(&["--dir", dir.path().to_str().context("UTF-8")?])?;
    let mut connection = TcpStream::connect(up.node(0, "address"))?;
    connection.write_all(&Preface::OURS.encode())?;
    connection.set_read_timeout(Some(PATIENCE))?;
    signal("KILL", &up.pid())?;
    // The node closes an idle connection only when it stops; with a reset, when it had not read all of it yet.
    match connection.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            Err(error).context("the node goes on alone")
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

#[test]
fn of_three_nodes_one_may_die_and_the_others_go_on() -> Result<()> {
    let up = Up::start(&["--nodes", "3"])?;
    let cli = up.cli();
    cli.done(&["topic", "create", "orders", "--partitions", "3", "--replication-factor", "3"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\nb\n").exits(0);
    signal("KILL", &up.node(0, "pid"))?;
    up.says("node 1")?;
    cli.pipe(&["produce", "orders", "--quiet"], b"c\n").exits(0);
    let read = cli.done(&["consume", "orders", "-e"]);
    let mut read: Vec<&str> = read.text().lines().collect();
    read.sort_unstable();
    assert_eq!(read, ["a", "b", "c"]);
    let health = cli.run(&["cluster", "health", "-o", "json"]);
    health.exits(6);
    assert!(health.json()["problems"].to_string().contains("broker 1"), "{:?}", health.json());
    assert_eq!(up.interrupt()?.code(), Some(0));
    Ok(())
}
