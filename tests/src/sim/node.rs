//! A node: a disk, and on it one process after the other. A process is a controller (on some nodes) and a broker, both
//! the shipped machines; the files below this one are what the network code of the real broker is, as faithfully as a
//! simulation can model it.
//!
//! A node that is paused takes nothing in; everything waits for it, and comes in order when it goes on.

mod commands;
mod controller;
mod coordination;
mod member;
mod metadata;
mod peers;
mod process;
mod serve;
mod sessions;
mod streams;

use std::{collections::VecDeque, path::Path};

use tidemark_broker::steered::FlushId;
use tidemark_protocol::{BrokerId, DirectoryId, NodeId, PartitionIndex, messages::VoterId};
use tidemark_storage::disk::{Disk as _, Mishaps, SimDisk};

pub use self::{
    commands::CommandId,
    controller::Seen,
    coordination::ToldEnded,
    process::{Boot, Process, StartError},
};
use super::{
    core::{Core, Event, Micros},
    message::{Correlation, Message},
    network::{Address, ConnectionId, Delivery, Ending, Network},
    shape::Shape,
    trace::Who,
};

/// Where a node keeps everything.
pub const ROOT: &str = "/data";

/// Something a process reminds itself of.
#[derive(Debug)]
pub enum NodeTimer {
    /// The quorum's and the controller's clock.
    Tick,
    /// The quorum has something to flush.
    FlushQuorum,
    /// The shards have something to do.
    Wake,
    /// A flush of a log has come so far that it can be run.
    Flush(FlushId),
    /// The newest image has arrived at the broker.
    Image,
    Beat,
    /// An attempt, or the pause after one.
    Command(CommandId),
    AskTimeout {
        connection: ConnectionId,
        correlation: Correlation,
    },
    /// The isr changes that have come together are sent.
    AlterIsr,
    SendPositions {
        leader: BrokerId,
    },
    Follow {
        leader: BrokerId,
    },
    Push {
        follower: BrokerId,
    },
    Ping,
    Feed,
    Upkeep,
    Checkpoint,
    /// Another attempt to make a partition part of a transaction.
    Join(coordination::JobId),
    /// Another attempt to get producer ids for a coordinator.
    Ids(PartitionIndex),
}

/// Something that comes to a process from outside.
#[derive(Debug)]
pub enum Input {
    Delivery(Delivery),
    Timer(NodeTimer),
}

/// What a node is doing.
#[derive(Debug)]
enum State {
    Down,
    Up(Box<Process>),
}

/// One node.
#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    pub directory: DirectoryId,
    /// How many processes there have been: the number of the present or the last one.
    pub life: u64,
    /// Its last process ended with a clean shutdown.
    pub has_stopped: bool,
    /// Milliseconds its wall clock is ahead of simulated time.
    pub wall_skew_ms: i64,
    state: State,
    paused: bool,
    backlog: VecDeque<Input>,
    /// How long a flush takes, at most.
    pub flush_us: Micros,
    /// Those of its disk that are counted already.
    mishaps: Mishaps,
}

/// What a process acts through.
pub struct Io<'a> {
    pub core: &'a mut Core,
    pub net: &'a mut Network,
    pub shape: &'a Shape,
    pub address: Address,
    disk: &'a SimDisk,
    flush_us: Micros,
}

impl Io<'_> {
    pub fn node(&self) -> NodeId {
        let Address::Node { node, .. } = self.address else {
            unreachable!("a process is a node's")
        };
        node
    }

    /// Whether the process was killed in the middle of what it is doing: nothing gets out of it any more.
    pub fn is_dead(&self) -> bool {
        self.disk.is_stopped()
    }

    pub fn send(&mut self, connection: ConnectionId, message: Message) {
        if !self.is_dead() {
            self.net.send(self.core, connection, self.address, message);
        }
    }

    pub fn dial(&mut self, to: NodeId) -> ConnectionId {
        self.net.dial(self.core, self.address, to)
    }

    pub fn close(&mut self, connection: ConnectionId) {
        self.net.close(self.core, connection, self.address);
    }

    pub fn timer(&mut self, delay_us: Micros, timer: NodeTimer) {
        let Address::Node { node, life } = self.address else {
            unreachable!("a process is a node's")
        };
        self.core.after(delay_us, Event::Node { node, life, timer });
    }

    /// How long a flush takes this time.
    pub fn flush_takes_us(&mut self) -> Micros {
        self.core.draw(20, self.flush_us.max(21))
    }

    pub fn note(&mut self, label: &'static str, figures: [u64; 2], text: impl FnOnce() -> String) {
        let who = Who::Node(self.node());
        self.core.note(who, label, figures, text);
    }
}

impl Node {
    pub fn new(id: NodeId, core: &mut Core, flush_us: Micros) -> Self {
        let disk = SimDisk::new(core.random.next_u64());
        Self {
            id,
            disk,
            directory: draw_directory(core),
            life: 0,
            has_stopped: false,
            wall_skew_ms: 0,
            state: State::Down,
            paused: false,
            backlog: VecDeque::new(),
            flush_us,
            mishaps: Mishaps::default(),
        }
    }

    pub fn voter(&self) -> VoterId {
        VoterId { node: self.id, directory: self.directory }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn process(&self) -> Option<&Process> {
        match &self.state {
            State::Up(process) => Some(process),
            State::Down => None,
        }
    }

    pub fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            State::Up(process) => Some(process),
            State::Down => None,
        }
    }

    /// Starts a process. One that cannot start (a damaged disk, one that stops) leaves the node down.
    pub fn start(
        &mut self,
        core: &mut Core,
        net: &mut Network,
        shape: &Shape,
        boot: &Boot,
    ) -> Result<(), StartError> {
        assert!(!self.is_up(), "a node runs one process at a time");
        self.life += 1;
        self.has_stopped = false;
        if core.chance(300) {
            // Between two processes much may be read into memory that is not a log.
            self.disk.evict();
        }
        let address = Address::Node { node: self.id, life: self.life };
        net.listen(self.id, self.life);
        let flush_us = self.flush_us;
        let mut io = Io { core, net, shape, address, disk: &self.disk, flush_us };
        match Process::start(self, boot, &mut io) {
            Ok(process) => {
                core.figures.happened("starts");
                self.state = State::Up(Box::new(process));
                Ok(())
            }
            Err(error) => {
                net.process_ended(core, self.id, self.life, Ending::Process);
                Err(error)
            }
        }
    }

    /// Takes something in, now or when the node goes on.
    pub fn take_in(&mut self, input: Input, core: &mut Core, net: &mut Network, shape: &Shape) {
        if self.paused {
            self.backlog.push_back(input);
            return;
        }
        let State::Up(process) = &mut self.state else { return };
        let address = Address::Node { node: self.id, life: self.life };
        let mut io = Io { core, net, shape, address, disk: &self.disk, flush_us: self.flush_us };
        process.handle(input, &mut io);
    }

    /// Has the process do something from outside.
    pub fn act(
        &mut self,
        core: &mut Core,
        net: &mut Network,
        shape: &Shape,
        act: impl FnOnce(&mut Process, &mut Io<'_>),
    ) {
        let State::Up(process) = &mut self.state else { return };
        let address = Address::Node { node: self.id, life: self.life };
        let mut io = Io { core, net, shape, address, disk: &self.disk, flush_us: self.flush_us };
        act(process, &mut io);
    }

    /// Kills the process. What the page cache holds stays.
    pub fn crash(&mut self, core: &mut Core, net: &mut Network) {
        self.end(core, net, Ending::Process);
        self.disk.crash();
    }

    /// Cuts the power.
    pub fn lose_power(&mut self, core: &mut Core, net: &mut Network) {
        self.end(core, net, Ending::Host);
        self.disk.power_loss();
    }

    /// Counts what has gone wrong on its disk since the last time. Says whether a flush has failed.
    pub fn count_mishaps(&mut self, core: &mut Core) -> bool {
        let (before, now) = (self.mishaps, self.disk.mishaps());
        if before == now {
            return false;
        }
        self.mishaps = now;
        for (what, times) in [
            ("syncs failed", now.failed_syncs - before.failed_syncs),
            ("operations refused by a full disk", now.refused_full - before.refused_full),
            ("pages lost", now.lost_pages - before.lost_pages),
            ("pages torn", now.torn_pages - before.torn_pages),
        ] {
            core.figures.fault_times(what, times);
        }
        now.failed_syncs > before.failed_syncs
    }

    /// Puts an empty disk in place of the old one.
    pub fn wipe(&mut self, core: &mut Core) {
        assert!(!self.is_up(), "a disk is replaced when nobody uses it");
        self.count_mishaps(core);
        self.mishaps = Mishaps::default();
        self.disk = SimDisk::new(core.random.next_u64());
        self.directory = draw_directory(core);
        self.has_stopped = false;
    }

    /// Stops the process in order, when it has nothing left to do for others.
    pub fn stop(&mut self, core: &mut Core, net: &mut Network) {
        let State::Up(process) = std::mem::replace(&mut self.state, State::Down) else { return };
        self.paused = false;
        self.backlog.clear();
        let (epoch, is_clean) = process.close();
        net.process_ended(core, self.id, self.life, Ending::Process);
        self.disk.crash();
        // The mark of a clean shutdown is written when every log is closed, and counts as soon as it is there: that its own
        // flush fails takes nothing back.
        let is_marked = || self.disk.exists(&root().join("clean")).unwrap_or(false);
        self.has_stopped = epoch.is_some() && (is_clean || is_marked());
    }

    fn end(&mut self, core: &mut Core, net: &mut Network, ending: Ending) {
        let was_up = self.is_up();
        // Before the disk forgets its handles.
        self.state = State::Down;
        self.paused = false;
        self.backlog.clear();
        if was_up {
            net.process_ended(core, self.id, self.life, ending);
        }
    }

    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Goes on. What has come meanwhile is given back, to be taken in now.
    pub fn resume(&mut self) -> VecDeque<Input> {
        self.paused = false;
        std::mem::take(&mut self.backlog)
    }
}

fn draw_directory(core: &mut Core) -> DirectoryId {
    let halves = [core.random.next_u64().to_be_bytes(), core.random.next_u64().to_be_bytes()];
    DirectoryId(halves.concat().try_into().expect("twice eight bytes"))
}

/// Where everything of a node is.
pub fn root() -> &'static Path {
    Path::new(ROOT)
}
