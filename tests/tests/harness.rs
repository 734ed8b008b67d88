//! The tools of the suites themselves, as far as one broker can show that they work.

use anyhow::Result;
use tidemark_client::NewTopic;
use tidemark_tests::{
    cluster::{self, ClusterConfig},
    network::{End, Kind},
};

#[test]
fn a_node_is_killed_paused_cut_off_wiped_and_is_back_each_time() -> Result<()> {
    for network in [Kind::Best, Kind::Proxies] {
        cluster::with(ClusterConfig::nodes(1).network(network), |cluster| {
            cluster.create_topic(NewTopic::new("kept").partitions(2))?;
            assert_eq!(cluster.await_leader("kept", 1, None)?, 1);
            cluster.kill(1)?;
            assert!(cluster.metadata().is_err(), "nobody is there");
            cluster.heal()?;
            cluster.await_in_sync("kept")?;
            cluster.pause(1)?;
            assert!(cluster.metadata_of(1).is_err(), "it says nothing");
            cluster.heal()?;
            cluster.network().cut(End::Clients, End::Node(1))?;
            let listed = cluster.cli().run(&["topic", "list", "--timeout", "300ms"]);
            listed.exits(5);
            cluster.heal()?;
            assert!(cluster.cli().done(&["topic", "list"]).text().contains("kept"));
            cluster.terminate(1)?;
            cluster.wipe(1)?;
            cluster.heal()?;
            assert!(cluster.metadata()?.topics.is_empty(), "a new disk");
            cluster.check_processes()
        })?;
    }
    Ok(())
}

#[test]
fn a_disk_fills_and_empties() -> Result<()> {
    cluster::with(
        ClusterConfig::nodes(1).mount("size=48m").flag("disk-reserve-bytes", "8MiB"),
        |cluster| {
            cluster.fill_disk(1)?;
            let created = cluster.cli().run(&["topic", "create", "none", "--timeout", "2s"]);
            assert!(!created.text().contains("created"));
            cluster.empty_disk(1)?;
            cluster.cli().done(&["topic", "create", "some"]);
            Ok(())
        },
    )
}
