//! Messages that are well formed and make no sense: a node may drop them or believe them, and never panics.

use std::path::Path;

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use tidemark_protocol::{DirectoryId, messages::VoterId};
use tidemark_storage::testing::SimDisk;

use super::RaftQuorum;
use crate::{
    image::Image,
    quorum::{
        Quorum, QuorumAction, QuorumConfig, QuorumEvent,
        config::Chance,
        entry,
        members::raft_id,
        wire::{self, Got, Part},
    },
};

const DIR: &str = "/metadata";

fn voter(node: u32) -> VoterId {
    VoterId { node, directory: DirectoryId([u8::try_from(node).unwrap(); 16]) }
}

/// One of three; the others are what the test makes of them.
struct Node {
    quorum: RaftQuorum<SimDisk>,
    image: Image,
    actions: Vec<QuorumAction>,
}

impl Node {
    fn new() -> Self {
        Self::among(&[voter(1), voter(2), voter(3)])
    }

    fn among(all: &[VoterId]) -> Self {
        let disk = SimDisk::new(1);
        RaftQuorum::bootstrap(disk.clone(), Path::new(DIR), voter(1), all).unwrap();
        let opened = RaftQuorum::open(disk, Path::new(DIR), voter(1), QuorumConfig::default());
        let (quorum, image) = opened.unwrap();
        Self { quorum, image, actions: Vec::new() }
    }

    fn step(&mut self, event: QuorumEvent) {
        self.actions.clear();
        self.quorum.step(0, event, &mut self.actions);
        let failed =
            self.actions.iter().any(|action| matches!(action, QuorumAction::Failed { .. }));
        assert!(!failed, "{:?}", self.actions);
    }

    fn receive(&mut self, from: u32, message: Bytes) {
        self.step(QuorumEvent::Received { from: voter(from), message });
    }

    fn hear(&mut self, from: u32, change: impl FnOnce(&mut Message)) {
        let mut message = Message { to: raft_id(&voter(1)), ..Message::default() };
        change(&mut message);
        for message in wire::encode(&message) {
            self.receive(from, message);
        }
    }

    /// Ticks until it asks for votes, and gets them.
    fn elect(&mut self) {
        for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
            while self.quorum.node.raft.msgs.is_empty() && !self.asks_for_votes() {
                self.step(QuorumEvent::Tick);
            }
            let raft = &self.quorum.node.raft;
            let is_pre_vote = kind == MessageType::MsgRequestPreVoteResponse;
            let term = raft.term + u64::from(is_pre_vote);
            self.hear(2, |message| {
                message.set_msg_type(kind);
                message.term = term;
            });
        }
        assert!(self.quorum.status().is_leader);
    }

    fn asks_for_votes(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, QuorumAction::Send { .. }))
    }

    fn last(&self) -> u64 {
        self.quorum.node.raft.raft_log.last_index()
    }

    fn term(&self) -> u64 {
        self.quorum.node.raft.term
    }

    /// Follows node 2, with some entries.
    fn follow(&mut self, entries: u64) {
        self.hear(2, |message| {
            message.set_msg_type(MessageType::MsgAppend);
            (message.term, message.index, message.log_term, message.commit) = (2, 1, 1, 1);
            let entries = (2..2 + entries).map(|index| plain(index, 2));
            message.set_entries(entries.collect::<Vec<_>>().into());
        });
        assert_eq!(self.last(), 1 + entries);
    }
}

impl Node {
    /// Commits some entries with node 2, takes snapshots, and forgets what the older one stands for.
    fn lead_far(&mut self) {
        self.elect();
        let mut image = self.image.clone();
        for _ in 0..3 {
            for _ in 0..4 {
                self.quorum.propose(&[]).unwrap();
            }
            self.step(QuorumEvent::Flush);
            let (term, last) = (self.term(), self.last());
            self.hear(2, |message| {
                message.set_msg_type(MessageType::MsgAppendResponse);
                (message.term, message.index) = (term, last);
            });
            while image.metadata_index() < last {
                image.apply(image.metadata_index(), &[]).unwrap();
            }
            self.quorum.snapshot(&image).unwrap();
        }
        assert!(self.quorum.node.store().first() > 2);
    }
}

fn plain(index: u64, term: u64) -> Entry {
    entry::entry(index, term, entry::RECORDS, Bytes::new()).unwrap()
}

/// Numbers as they come up, and the ends of the range.
fn number(chance: &mut Chance, near: u64) -> u64 {
    match chance.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX / 2,
        3 => u64::from(u32::MAX),
        _ => near.saturating_add(chance.below(6) as u64).saturating_sub(3),
    }
}

fn nonsense(chance: &mut Chance, node: &Node) -> Vec<Bytes> {
    let (term, last, to) = (node.term(), node.last(), raft_id(&voter(1)));
    // Terms only go up: too many impossible ones would leave nothing else to try.
    let term = if chance.below(4) == 0 { number(chance, term) } else { term };
    match chance.below(12) {
        0 => {
            let part = Part {
                end: number(chance, last),
                total_bytes: number(chance, 10),
                at: number(chance, 0),
                bytes: vec![7; chance.below(12)],
            };
            return vec![wire::encode_part(to, term, part)];
        }
        1 => {
            let got = Got { end: number(chance, last), bytes: number(chance, 10) };
            return vec![wire::encode_got(to, term, got)];
        }
        _ => {}
    }
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
    ];
    let mut message = Message::default();
    message.set_msg_type(kinds[chance.below(kinds.len())]);
    (message.to, message.term) = (to, term);
    message.index = number(chance, last);
    message.log_term = number(chance, term);
    message.commit = number(chance, last);
    message.commit_term = number(chance, term);
    message.reject = chance.below(2) == 0;
    message.reject_hint = number(chance, last);
    if chance.below(4) == 0 {
        message.context = Bytes::from_static(b"CampaignTransfer");
    }
    let first = message.index.wrapping_add(1);
    let terms: Vec<u64> = (0..chance.below(4)).map(|_| number(chance, term)).collect();
    let entries = terms.iter().zip(0_u64..).map(|(term, place)| {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (first.wrapping_add(place), *term);
        entry
    });
    message.set_entries(entries.collect::<Vec<_>>().into());
    wire::encode(&message)
}

#[test]
fn nothing_that_comes_in_makes_a_node_panic() {
    for seed in 0..300 {
        let mut chance = Chance::new(seed);
        let mut node = if seed % 6 == 0 { Node::among(&[]) } else { Node::new() };
        match seed % 6 {
            1 => node.elect(),
            2 => node.follow(5),
            3 => (0..40).for_each(|_| node.step(QuorumEvent::Tick)),
            4 => node.lead_far(),
            _ => {}
        }
        for _ in 0..200 {
            for message in nonsense(&mut chance, &node) {
                let from = u32::try_from(2 + chance.below(3)).unwrap();
                node.receive(from, message);
            }
            match chance.below(10) {
                0 => node.step(QuorumEvent::Tick),
                1 => drop(node.quorum.propose(&[])),
                _ => {}
            }
        }
    }
}

#[test]
fn a_rejection_that_was_overtaken_takes_nobody_back() {
    let mut node = Node::new();
    node.elect();
    let term = node.term();
    for _ in 0..5 {
        node.quorum.propose(&[]).unwrap();
    }
    node.step(QuorumEvent::Flush);
    let last = node.last();
    let answer = |message: &mut Message| {
        message.set_msg_type(MessageType::MsgAppendResponse);
        message.term = term;
        message.index = last;
    };
    node.hear(2, answer);
    // Something is lost on the way, and the leader begins to probe.
    node.step(QuorumEvent::PeerLost { node: 2 });
    let progress = |node: &Node| {
        let progress = node.quorum.node.raft.prs().get(raft_id(&voter(2))).unwrap();
        (progress.matched, progress.next_idx)
    };
    assert_eq!(progress(&node), (last, last + 1));
    // What the follower said before it had anything arrives last.
    for (index, hint) in [(last, 0), (last, 1), (last + 1, 0), (last - 1, 0)] {
        node.hear(2, |message| {
            answer(message);
            (message.index, message.reject, message.reject_hint) = (index, true, hint);
            message.log_term = 1;
        });
        let (matched, next) = progress(&node);
        assert!(matched == last && next > matched, "{matched} {next}");
    }
}

#[test]
fn what_was_never_sent_cannot_have_arrived() {
    let mut node = Node::new();
    node.elect();
    let (term, last, committed) =
        (node.term(), node.last(), node.quorum.node.raft.raft_log.committed);
    node.hear(2, |message| {
        message.set_msg_type(MessageType::MsgAppendResponse);
        (message.term, message.index) = (term, last + 100);
    });
    for _ in 0..10 {
        node.quorum.propose(&[]).unwrap();
    }
    node.step(QuorumEvent::Flush);
    assert_eq!(node.quorum.node.raft.raft_log.committed, committed);
}

#[test]
fn a_message_for_another_disk_of_this_node_is_refused() {
    let mut node = Node::new();
    let old = VoterId { node: 1, directory: DirectoryId([99; 16]) };
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    (message.to, message.term) = (raft_id(&old), 7);
    for message in wire::encode(&message) {
        node.receive(2, message);
    }
    assert_eq!(node.term(), 1);
}
