//! Single events in the life of a quorum, and what has to come of each.

use std::path::Path;

use tidemark_controller::{MetadataRecord, ProposeError, Quorum, QuorumEvent, VoterChange};
use tidemark_protocol::{
    NodeId, TopicId,
    messages::{TopicSettings, VoterId},
};
use tidemark_storage::{Disk, testing::Faults};

use crate::{cluster::Cluster, network::Weather};

/// A cluster with a leader, in good weather.
fn calm(seed: u64, voters: u32) -> (Cluster, NodeId) {
    calmed(Cluster::new(seed, voters))
}

/// The same for large decisions.
fn calm_and_large(seed: u64, voters: u32) -> (Cluster, NodeId) {
    calmed(Cluster::with_snapshots_every(1 << 20, seed, voters))
}

fn calmed(mut cluster: Cluster) -> (Cluster, NodeId) {
    cluster.network.weather = Weather { delay_max_ms: 3, ..Weather::default() };
    let leader = elected(&mut cluster);
    (cluster, leader)
}

/// Waits for a leader that everybody who runs follows, and that may act.
fn elected(cluster: &mut Cluster) -> NodeId {
    cluster.run_until(2_000, "a leader", |cluster| leads_all(cluster).is_some());
    leads_all(cluster).unwrap()
}

fn leads_all(cluster: &Cluster) -> Option<NodeId> {
    let leader = cluster.leader()?;
    let status = cluster.process(leader).quorum.status();
    let mut running = cluster.nodes().into_iter().filter(|node| cluster.is_running(*node));
    let is_followed = running.all(|node| {
        let other = cluster.process(node).quorum.status();
        other.leader == Some(leader) && other.committed_index == status.log_end_index
    });
    is_followed.then_some(leader)
}

fn others(cluster: &Cluster, than: NodeId) -> Vec<NodeId> {
    cluster.nodes().into_iter().filter(|node| *node != than).collect()
}

/// Decides, and waits until everybody who runs knows.
fn decide(cluster: &mut Cluster, leader: NodeId) {
    let id = cluster.propose(leader).unwrap();
    cluster.step(leader, QuorumEvent::Flush);
    cluster.run_until(1_000, "the decision is known", |cluster| {
        let mut running = cluster.nodes().into_iter().filter(|node| cluster.is_running(*node));
        running.all(|node| cluster.process(node).image.metadata_index() > id.index)
    });
}

#[test]
fn a_leader_whose_connections_close_is_replaced_at_once() {
    for seed in 0..20 {
        let (mut cluster, leader) = calm(seed, 3);
        cluster.kill(leader);
        for node in others(&cluster, leader) {
            cluster.step(node, QuorumEvent::PeerLost { node: leader });
        }
        // Well below the shortest election timeout, which silence would have to outlast.
        cluster.run_until(150, "another leader", |cluster| {
            cluster.leader().is_some_and(|other| other != leader)
        });
    }
}

#[test]
fn a_leader_that_falls_silent_is_replaced_in_time() {
    for seed in 0..20 {
        let (mut cluster, leader) = calm(seed, 3);
        cluster.kill(leader);
        cluster.run_until(1_200, "another leader", |cluster| {
            cluster.leader().is_some_and(|other| other != leader)
        });
    }
}

#[test]
fn a_node_that_lost_its_connection_does_not_disturb_the_others() {
    let (mut cluster, leader) = calm(1, 3);
    let term = cluster.process(leader).quorum.status().term;
    let node = others(&cluster, leader)[0];
    for _ in 0..10 {
        cluster.step(node, QuorumEvent::PeerLost { node: leader });
        cluster.run(100);
    }
    let far = others(&cluster, leader)[1];
    cluster.network.split(&[far], &[leader, node]);
    cluster.run(2_000);
    cluster.network.mend();
    cluster.run(500);
    let status = cluster.process(leader).quorum.status();
    assert!(status.is_leader && status.term == term, "{status:?}");
    assert!(status.voters.iter().all(|voter| voter.is_alive));
}

#[test]
fn a_leader_without_a_majority_steps_down() {
    let (mut cluster, leader) = calm(2, 3);
    let rest = others(&cluster, leader);
    cluster.network.split(&[leader], &rest);
    cluster
        .run_until(600, "it notices", |cluster| !cluster.process(leader).quorum.status().is_leader);
    assert_eq!(cluster.propose(leader), Err(ProposeError::NotLeader));
}

#[test]
fn a_disk_that_was_replaced_does_not_vote_again() {
    for seed in 0..10 {
        let (mut cluster, leader) = calm(seed, 3);
        let rest = others(&cluster, leader);
        let (near, far) = (rest[0], rest[1]);
        cluster.network.split(&[far], &[leader, near]);
        let id = cluster.propose(leader).unwrap();
        cluster.step(leader, QuorumEvent::Flush);
        cluster.run_until(500, "two of three have it", |cluster| {
            cluster.process(leader).image.metadata_index() > id.index
        });
        // Of the two, one loses its disk and comes back empty; the other cannot be reached.
        let old = cluster.hosts[&near].me;
        let new = cluster.add_passive(near);
        cluster.network.mend();
        cluster.network.split(&[leader], &[near, far]);
        cluster.run(3_000);
        for node in [near, far] {
            assert!(!cluster.process(node).quorum.status().is_leader, "seed {seed}");
        }
        // With the other, everything is there, and the new disk is given it.
        cluster.network.mend();
        cluster.run_until(1_000, "a leader", |cluster| cluster.leader().is_some());
        replace(&mut cluster, old, new);
        assert!(cluster.process(near).image.metadata_index() > id.index);
    }
}

/// Two of three have replaced their disks and lose their power in the moment that the last vote without a disk was taken away;
/// the third replaces its disk, too. The two are the majority of who votes now, and have to know it.
#[test]
fn who_does_not_vote_any_more_is_not_forgotten_with_the_power() {
    for seed in 0..10 {
        let (mut cluster, leader) = calm(seed, 3);
        for node in others(&cluster, leader) {
            let old = cluster.hosts[&node].me;
            let new = cluster.add_passive(node);
            replace(&mut cluster, old, new);
        }
        let rest = others(&cluster, leader);
        let voters = cluster.voters(rest[0]);
        assert!(rest.iter().all(|node| cluster.voters(*node) == voters && voters.len() == 3));
        for node in rest.iter().chain([&leader]) {
            cluster.lose_power(*node);
        }
        for node in &rest {
            cluster.start(*node);
            assert_eq!(cluster.voters(*node), voters, "seed {seed}");
        }
        cluster.run_until(2_000, "one of the two leads", |cluster| cluster.leader().is_some());
    }
}

/// Asks for a voter to be replaced until it is.
fn replace(cluster: &mut Cluster, old: VoterId, new: VoterId) {
    let limit_ms = cluster.now_ms + 5_000;
    loop {
        cluster.run(50);
        assert!(cluster.now_ms < limit_ms, "not replaced:\n{}", cluster.describe());
        let Some(leader) = cluster.leader() else { continue };
        let voters = cluster.voters(leader);
        if voters.contains(&old) {
            cluster.change_voters(VoterChange::Remove(old));
        } else if !voters.contains(&new) {
            cluster.change_voters(VoterChange::Add(new));
        } else if leads_all(cluster).is_some() {
            return;
        }
    }
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let (mut cluster, leader) = calm(3, 3);
    let to = others(&cluster, leader)[1];
    cluster.step(leader, QuorumEvent::TransferLeadership { to: Some(to) });
    assert_eq!(cluster.propose(leader), Err(ProposeError::NotLeader), "it takes nothing new");
    cluster.run_until(100, "it leads", |cluster| leads_all(cluster) == Some(to));
    cluster.step(to, QuorumEvent::TransferLeadership { to: None });
    cluster.run_until(100, "somebody else leads", |cluster| {
        leads_all(cluster).is_some_and(|leader| leader != to)
    });
    let leader = elected(&mut cluster);
    decide(&mut cluster, leader);
}

#[test]
fn leadership_that_nobody_takes_comes_back() {
    let (mut cluster, leader) = calm(4, 3);
    let to = others(&cluster, leader)[0];
    cluster.kill(to);
    cluster.step(leader, QuorumEvent::TransferLeadership { to: Some(to) });
    cluster.run(500);
    assert!(cluster.process(leader).quorum.status().is_leader);
    decide(&mut cluster, leader);
}

#[test]
fn one_controller_becomes_three_and_one_again() {
    let (mut cluster, leader) = calm(5, 1);
    decide(&mut cluster, leader);
    for node in [2, 3] {
        let me = cluster.add_passive(node);
        cluster.change_voters(VoterChange::Add(me));
        cluster.run_until(1_000, "it votes", |cluster| {
            leads_all(cluster).is_some() && cluster.voters(node).contains(&me)
        });
        decide(&mut cluster, leader);
    }
    // A leader that is to go hands over first; whoever leads then carries it out.
    let me = cluster.hosts[&leader].me;
    for _ in 0..20 {
        cluster.change_voters(VoterChange::Remove(me));
        cluster.run(100);
    }
    let next = cluster.leader().unwrap();
    assert!(next != leader && cluster.voters(next).len() == 2, "{}", cluster.describe());
    let other = 5 - next;
    let me = cluster.hosts[&other].me;
    cluster.change_voters(VoterChange::Remove(me));
    cluster.run_until(500, "it is alone", |cluster| cluster.voters(next).len() == 1);
    // Those that left want to lead and are not listened to.
    cluster.run(2_000);
    assert!(cluster.process(next).quorum.status().is_leader, "{}", cluster.describe());
    let id = cluster.propose(next).unwrap();
    cluster.step(next, QuorumEvent::Flush);
    assert!(cluster.process(next).image.metadata_index() > id.index, "it decides alone");
    let me = cluster.hosts[&next].me;
    cluster.change_voters(VoterChange::Remove(me));
    assert_eq!(cluster.voters(next), [me], "the last one stays");
}

#[test]
fn who_was_never_added_stays_out_of_it() {
    let (mut cluster, leader) = calm(6, 3);
    cluster.add_passive(4);
    cluster.run(2_000);
    let status = cluster.process(4).quorum.status();
    assert!(status.term == 0 && !status.is_leader && status.voters.is_empty(), "{status:?}");
    assert!(cluster.process(leader).quorum.status().is_leader);
}

/// Decisions of a hundred kilobytes each.
fn decide_large(cluster: &mut Cluster, leader: NodeId, count: u32) {
    for decision in 0..count {
        let records: Vec<_> = (0..1_000_u32)
            .map(|part| {
                let mut id = [0xff; 16];
                id[..4].copy_from_slice(&decision.to_be_bytes());
                id[4..8].copy_from_slice(&part.to_be_bytes());
                MetadataRecord::TopicCreated {
                    id: TopicId(id),
                    name: format!("large-{decision}-{part}-{}", "x".repeat(80)),
                    settings: TopicSettings::new(),
                }
            })
            .collect();
        let process = cluster.hosts.get_mut(&leader).unwrap().process.as_mut().unwrap();
        process.quorum.propose(&records).unwrap();
        cluster.step(leader, QuorumEvent::Flush);
        cluster.run(20);
    }
}

#[test]
fn who_was_away_for_long_is_sent_a_snapshot_in_pieces() {
    let (mut cluster, leader) = calm_and_large(7, 3);
    let away = others(&cluster, leader)[0];
    cluster.kill(away);
    decide_large(&mut cluster, leader, 40);
    let snapshot = cluster.process(leader).quorum.latest_snapshot().unwrap();
    assert!(snapshot.bytes.len() > 3 << 20, "several pieces: {}", snapshot.bytes.len());
    cluster.network.weather = Weather { lost_one_in: 5, doubled_one_in: 5, delay_max_ms: 20 };
    cluster.start(away);
    cluster.run_until(20_000, "it has everything", |cluster| {
        let end = cluster.process(leader).image.metadata_index();
        cluster.process(away).image.metadata_index() == end
    });
    let first = cluster.process(away).quorum.log().next();
    assert!(first.is_none_or(|first| first.index >= snapshot.index), "not entry by entry");
}

#[test]
fn power_lost_at_any_operation_of_taking_a_leaders_snapshot_is_survived() {
    let mut operation = 0;
    loop {
        let (mut cluster, leader) = calm(8, 3);
        let away = others(&cluster, leader)[0];
        cluster.kill(away);
        for _ in 0..60 {
            cluster.propose(leader).unwrap();
            cluster.step(leader, QuorumEvent::Flush);
            cluster.run(5);
        }
        let end = cluster.process(leader).image.metadata_index();
        let disk = cluster.hosts[&away].disk.clone();
        disk.stop_at(disk.operations() + operation);
        // It may not even start.
        if cluster.try_start(away).is_ok() {
            cluster.run(300);
        }
        let was_stopped = disk.stopped().is_some() || !cluster.is_running(away);
        cluster.lose_power(away);
        cluster.start(away);
        cluster.run_until(5_000, "it has everything", |cluster| {
            cluster.process(away).image.metadata_index() >= end
        });
        if !was_stopped {
            break;
        }
        operation += 1;
    }
    assert!(operation > 20, "the snapshot was taken in {operation} operations");
}

/// Leaves not a byte on a node's disk.
fn fill(cluster: &Cluster, node: NodeId) {
    const PLENTY_BYTES: u64 = 1 << 40;
    let disk = &cluster.hosts[&node].disk;
    disk.set_faults(Faults { capacity_bytes: Some(PLENTY_BYTES), ..Faults::default() });
    let used = PLENTY_BYTES - disk.space(Path::new("/")).unwrap().free_bytes;
    disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
}

#[test]
fn a_follower_with_a_full_disk_votes_and_catches_up_when_there_is_space() {
    let (mut cluster, leader) = calm_and_large(9, 3);
    let rest = others(&cluster, leader);
    let (full, other) = (rest[0], rest[1]);
    fill(&cluster, full);
    decide_large(&mut cluster, leader, 60);
    let end = cluster.process(leader).image.metadata_index();
    assert!(cluster.process(other).image.metadata_index() == end, "the others go on");
    assert!(cluster.process(full).image.metadata_index() < end, "it has no space for it");
    assert!(cluster.is_running(full), "which is no failure");
    // Its vote is needed, and can be had.
    cluster.kill(leader);
    cluster.run_until(3_000, "the other leads", |cluster| cluster.leader() == Some(other));
    cluster.hosts[&full].disk.set_faults(Faults::default());
    cluster.run_until(5_000, "it has caught up", |cluster| {
        cluster.process(full).image.metadata_index() > end
    });
}

#[test]
fn a_leader_with_a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let (mut cluster, leader) = calm(10, 3);
    fill(&cluster, leader);
    let mut refused = 0;
    for _ in 0..2_000 {
        match cluster.propose(leader) {
            Ok(_) => cluster.step(leader, QuorumEvent::Flush),
            Err(error) => {
                assert_eq!(error, ProposeError::Full);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the disk was not full");
    cluster.run(1_000);
    let leader = elected(&mut cluster);
    cluster.hosts[&leader].disk.set_faults(Faults::default());
    decide(&mut cluster, leader);
}

#[test]
fn nonsense_from_the_network_changes_nothing() {
    let (mut cluster, leader) = calm(11, 3);
    let rest = others(&cluster, leader);
    let from = cluster.hosts[&rest[0]].me;
    let stranger = VoterId { node: 9, ..from };
    for round in 0..3_000_usize {
        let mut bytes = vec![1_u8; round % 60];
        for byte in &mut bytes {
            *byte = u8::try_from(cluster.chance.below(256)).unwrap();
        }
        if let Some(first) = bytes.first_mut().filter(|_| round % 3 != 0) {
            *first = 1;
        }
        for (node, from) in [(leader, from), (rest[1], from), (leader, stranger)] {
            let message = bytes.clone().into();
            cluster.step(node, QuorumEvent::Received { from, message });
        }
    }
    decide(&mut cluster, leader);
}
