//! The network: connections that deliver in order or break, between nodes and clients, over links that are slow or cut.
//!
//! What TCP allows happens here: what was sent before a break may still arrive, and late, long after a newer connection
//! between the same two has been opened; a cut in one direction holds everything back and the sender gives up after a
//! while; the other side may not notice for a long time. What TCP rules out does not: nothing of one connection is
//! reordered, repeated, or missing in the middle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidemark_protocol::NodeId;

use super::{
    client::ClientId,
    core::{Core, Event, MS, Micros, SECOND},
    corruption::corrupt,
    message::Message,
};

/// Names a connection; none is ever used again.
pub type ConnectionId = u64;

/// How long accepting may take.
const DIAL_TIMEOUT_US: Micros = SECOND;
/// How long the other side's kernel may fail to acknowledge.
const UNACKNOWLEDGED_US: Micros = 2 * SECOND;
/// What comes later than this after a break may have been overtaken by what a new connection brings.
const LATE_US: Micros = 5 * MS;
/// So many of a thousand messages with batches are corrupted, while any are.
const CORRUPTED_PER_MILLE: u64 = 300;
/// How messages are counted that do.
const OVERTAKEN: &str = "messages overtaken by a new connection";
/// Client ids in the table of links start here; node ids are below.
const CLIENT_LINK: u32 = 1_000;

/// Who is at one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A node's process, in one of its lives.
    Node {
        node: NodeId,
        life: u64,
    },
    Client(ClientId),
}

impl Address {
    /// Its place in the table of links.
    pub fn link(self) -> u32 {
        match self {
            Self::Node { node, .. } => node,
            Self::Client(client) => CLIENT_LINK + client,
        }
    }
}

/// How a process ended, as far as its connections can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The kernel closes its connections at once.
    Process,
    /// Nobody is left to say anything.
    Host,
}

/// Something that arrives at one end.
#[derive(Debug)]
pub enum Parcel {
    /// For the listener: somebody connects.
    Open,
    /// For the dialler: it was accepted.
    Accepted,
    Message(Message),
    /// The connection is gone.
    Closed,
}

/// A parcel for somebody.
#[derive(Debug)]
pub struct Delivery {
    pub connection: ConnectionId,
    pub from: Address,
    pub to: Address,
    pub parcel: Parcel,
}

/// How slow links are.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    pub min_us: Micros,
    pub max_us: Micros,
    /// So many of a thousand messages take up to `spike_us`.
    pub spikes_per_mille: u64,
    pub spike_us: Micros,
}

#[derive(Debug, Default)]
struct Lane {
    /// On their way, with the time of arrival, in order.
    in_flight: VecDeque<(Micros, Parcel)>,
    /// Held back by a cut, since when.
    held: VecDeque<Parcel>,
    held_since_us: Micros,
    last_us: Micros,
    /// Its receiver has been told, or will be, that nothing more comes.
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    /// The dialler and the listener.
    ends: [Address; 2],
    /// From the dialler, and to the dialler.
    lanes: [Lane; 2],
    accepted: bool,
}

/// All connections and links.
#[derive(Debug)]
pub struct Network {
    delays: Delays,
    next: ConnectionId,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Directed links that are cut, with how many faults cut each.
    blocked: BTreeMap<(u32, u32), u32>,
    /// Hosts that do not answer at all.
    hosts_down: BTreeSet<NodeId>,
    /// Processes that accept, by node.
    listening: BTreeMap<NodeId, u64>,
    /// So many messages with batches are still to be corrupted.
    to_corrupt: u64,
    /// Directed links over which leaders' streams bring nothing before a time.
    stalled: BTreeMap<(u32, u32), Micros>,
}

impl Network {
    pub fn new(delays: Delays) -> Self {
        Self {
            delays,
            next: 1,
            connections: BTreeMap::new(),
            blocked: BTreeMap::new(),
            hosts_down: BTreeSet::new(),
            listening: BTreeMap::new(),
            to_corrupt: 0,
            stalled: BTreeMap::new(),
        }
    }

    pub fn set_delays(&mut self, delays: Delays) {
        self.delays = delays;
    }

    /// A process of this node accepts connections from now on.
    pub fn listen(&mut self, node: NodeId, life: u64) {
        self.hosts_down.remove(&node);
        self.listening.insert(node, life);
    }

    /// Connects. The dialler hears [`Parcel::Accepted`] or [`Parcel::Closed`].
    pub fn dial(&mut self, core: &mut Core, from: Address, to: NodeId) -> ConnectionId {
        let id = self.next;
        self.next += 1;
        let life = self.listening.get(&to).copied().unwrap_or(0);
        let ends = [from, Address::Node { node: to, life }];
        let connection = Connection { ends, lanes: Default::default(), accepted: false };
        self.connections.insert(id, connection);
        if !self.hosts_down.contains(&to) {
            self.push(core, id, 0, Parcel::Open);
        }
        core.after(DIAL_TIMEOUT_US, Event::DialTimeout { connection: id });
        id
    }

    /// Sends, from the end that `from` is. Dropped when the connection is gone.
    pub fn send(&mut self, core: &mut Core, id: ConnectionId, from: Address, mut message: Message) {
        if let Some(lane) = self.lane_from(id, from) {
            core.figures.messages += 1;
            let is_next = self.to_corrupt > 0 && core.chance(CORRUPTED_PER_MILLE);
            if is_next && corrupt(&mut message, core) {
                self.to_corrupt -= 1;
                core.figures.fault("messages corrupted");
            }
            self.push(core, id, lane, Parcel::Message(message));
        }
    }

    /// Closes a connection in order: what was sent before arrives before the end of it.
    pub fn close(&mut self, core: &mut Core, id: ConnectionId, from: Address) {
        let Some(lane) = self.lane_from(id, from) else { return };
        self.push(core, id, lane, Parcel::Closed);
        // Whoever closes hears nothing more.
        if let Some(connection) = self.connections.get_mut(&id) {
            let back = &mut connection.lanes[1 - lane];
            back.ended = true;
            back.in_flight.clear();
            back.held.clear();
        }
    }

    /// Breaks a connection: of what is on its way in each direction, the first part arrives, perhaps late, and then each
    /// end hears that it is gone.
    pub fn reset(&mut self, core: &mut Core, id: ConnectionId) {
        for lane in 0..2 {
            let late_us = lateness(core);
            self.break_lane(core, id, lane, late_us);
        }
    }

    fn break_lane(&mut self, core: &mut Core, id: ConnectionId, lane: usize, late_us: Micros) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let lane_state = &mut connection.lanes[lane];
        if lane_state.ended {
            return;
        }
        let held = lane_state.held.len() as u64;
        lane_state.held.clear();
        let in_flight = lane_state.in_flight.len() as u64;
        let kept = if core.chance(500) { in_flight } else { core.draw(0, in_flight) };
        core.figures.fault_times("messages lost", held + in_flight - kept);
        if late_us > LATE_US {
            core.figures.fault_times(OVERTAKEN, kept);
        }
        let lane_state = &mut connection.lanes[lane];
        lane_state.in_flight.truncate(usize::try_from(kept).expect("no more than there are"));
        self.end_lane(core, id, lane, late_us);
    }

    /// Lets what is on its way arrive `late_us` from now, and then the end of it.
    fn end_lane(&mut self, core: &mut Core, id: ConnectionId, lane: usize, late_us: Micros) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let lane_state = &mut connection.lanes[lane];
        let mut at_us = core.now_us() + late_us;
        for (arrives_us, _) in &mut lane_state.in_flight {
            at_us = at_us.max(*arrives_us);
            *arrives_us = at_us;
        }
        // Their events are queued for the old times; these are for the new ones.
        for _ in 0..=lane_state.in_flight.len() {
            core.after(at_us - core.now_us(), Event::Arrive { connection: id, lane });
        }
        lane_state.in_flight.push_back((at_us, Parcel::Closed));
        lane_state.ended = true;
    }

    /// Breaks the connections that a cut of this link holds something back of that is wanted: the sender gives up at once, and all that
    /// it has sent arrives `late_us` from now. Says whether there are any.
    pub fn overtake(
        &mut self,
        core: &mut Core,
        link: (u32, u32),
        late_us: Micros,
        is_wanted: impl Fn(&Message) -> bool,
    ) -> bool {
        let mut lanes = Vec::new();
        for (id, connection) in &mut self.connections {
            for lane in 0..2 {
                let pair = (connection.ends[lane].link(), connection.ends[1 - lane].link());
                let state = &mut connection.lanes[lane];
                let is_it = |held: &Parcel| matches!(held, Parcel::Message(it) if is_wanted(it));
                if pair == link && !state.ended && state.held.iter().any(is_it) {
                    let held = std::mem::take(&mut state.held);
                    state.in_flight.extend(held.into_iter().map(|parcel| (0, parcel)));
                    core.figures.fault_times(OVERTAKEN, state.in_flight.len() as u64);
                    lanes.push((*id, lane));
                }
            }
        }
        for (id, lane) in &lanes {
            self.break_lane(core, *id, 1 - lane, 0);
            self.end_lane(core, *id, *lane, late_us);
        }
        !lanes.is_empty()
    }

    /// A process is gone. Whatever was on its way to it is lost; what it has sent arrives, or not.
    pub fn process_ended(&mut self, core: &mut Core, node: NodeId, life: u64, ending: Ending) {
        self.listening.remove(&node);
        if ending == Ending::Host {
            self.hosts_down.insert(node);
        }
        let gone = Address::Node { node, life };
        let touched =
            self.connections.iter().filter(|(_, connection)| connection.ends.contains(&gone));
        let touched: Vec<_> = touched.map(|(id, connection)| (*id, connection.ends)).collect();
        for (id, ends) in touched {
            let from = usize::from(ends[1] == gone);
            let connection = self.connections.get_mut(&id).expect("it was just found");
            let towards = &mut connection.lanes[1 - from];
            towards.ended = true;
            let lost = towards.in_flight.len() + towards.held.len();
            core.figures.fault_times("messages lost", lost as u64);
            towards.in_flight.clear();
            towards.held.clear();
            if ending == Ending::Process {
                let late_us = lateness(core);
                self.break_lane(core, id, from, late_us);
            } else {
                // Nothing says so. The other side gives up when it has waited long enough.
                let lane = &mut connection.lanes[from];
                lane.in_flight.clear();
                lane.held.clear();
                let notices_us = core.draw(SECOND / 2, 3 * SECOND);
                lane.in_flight.push_back((core.now_us() + notices_us, Parcel::Closed));
                lane.ended = true;
                core.after(notices_us, Event::Arrive { connection: id, lane: from });
            }
            self.forget_ended(id);
        }
    }

    /// Corrupts so many of the messages with batches that are sent from now on.
    pub fn corrupt(&mut self, messages: u64) {
        self.to_corrupt = messages;
    }

    /// Lets nothing that leaders push over this link arrive before `until_us`, while other connections go on: a packet of one is
    /// lost again and again.
    pub fn stall_streams(&mut self, link: (u32, u32), until_us: Micros) {
        self.stalled.insert(link, until_us);
    }

    /// Cuts directed links.
    pub fn block(&mut self, pairs: &[(u32, u32)]) {
        for pair in pairs {
            *self.blocked.entry(*pair).or_insert(0) += 1;
        }
    }

    /// Ends one cut of these links; what was held back goes on its way.
    pub fn unblock(&mut self, core: &mut Core, pairs: &[(u32, u32)]) {
        for pair in pairs {
            if let Some(count) = self.blocked.get_mut(pair) {
                *count -= 1;
                if *count == 0 {
                    self.blocked.remove(pair);
                }
            }
        }
        self.release(core);
    }

    /// Ends every cut.
    pub fn unblock_all(&mut self, core: &mut Core) {
        self.blocked.clear();
        self.release(core);
    }

    pub fn is_blocked(&self, from: u32, to: u32) -> bool {
        self.blocked.contains_key(&(from, to))
    }

    fn release(&mut self, core: &mut Core) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            for lane in 0..2 {
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                let pair = (connection.ends[lane].link(), connection.ends[1 - lane].link());
                if self.blocked.contains_key(&pair) || connection.lanes[lane].held.is_empty() {
                    continue;
                }
                for parcel in std::mem::take(&mut connection.lanes[lane].held) {
                    self.push(core, id, lane, parcel);
                }
            }
        }
    }

    fn lane_from(&self, id: ConnectionId, from: Address) -> Option<usize> {
        let connection = self.connections.get(&id)?;
        let lane = connection.ends.iter().position(|end| *end == from)?;
        (!connection.lanes[lane].ended).then_some(lane)
    }

    fn push(&mut self, core: &mut Core, id: ConnectionId, lane: usize, parcel: Parcel) {
        let delay_us = self.delay(core);
        let connection = self.connections.get_mut(&id).expect("only connections that are there");
        let pair = (connection.ends[lane].link(), connection.ends[1 - lane].link());
        let ends = matches!(parcel, Parcel::Closed);
        let state = &mut connection.lanes[lane];
        if state.ended {
            return;
        }
        if self.blocked.contains_key(&pair) {
            if state.held.is_empty() {
                state.held_since_us = core.now_us();
                let since_us = state.held_since_us;
                let event = Event::Unacknowledged { connection: id, lane, since_us };
                core.after(UNACKNOWLEDGED_US, event);
            }
            state.held.push_back(parcel);
            return;
        }
        let is_pushed = matches!(parcel, Parcel::Message(Message::Push { .. }));
        let stalled_us = self.stalled.get(&pair).copied().filter(|_| is_pushed).unwrap_or(0);
        let at_us = state.last_us.max(core.now_us() + delay_us).max(stalled_us);
        state.last_us = at_us;
        state.in_flight.push_back((at_us, parcel));
        state.ended = ends;
        core.after(at_us - core.now_us(), Event::Arrive { connection: id, lane });
    }

    fn delay(&self, core: &mut Core) -> Micros {
        let Delays { min_us, max_us, spikes_per_mille, spike_us } = self.delays;
        if core.chance(spikes_per_mille) {
            core.figures.fault("messages delayed");
            return core.draw(max_us, max_us + spike_us);
        }
        core.draw(min_us, max_us)
    }

    /// What arrives now, if anything does: an event may be about what a break has thrown away.
    pub fn arrive(&mut self, core: &mut Core, id: ConnectionId, lane: usize) -> Option<Delivery> {
        let connection = self.connections.get_mut(&id)?;
        let (from, to) = (connection.ends[lane], connection.ends[1 - lane]);
        let (at_us, _) = connection.lanes[lane].in_flight.front()?;
        if *at_us > core.now_us() {
            return None;
        }
        let (_, parcel) = connection.lanes[lane].in_flight.pop_front()?;
        match parcel {
            Parcel::Open => {
                let Address::Node { node, life } = to else { return None };
                if self.listening.get(&node) != Some(&life) {
                    self.break_lane(core, id, 0, 0);
                    self.break_lane(core, id, 1, 0);
                    return None;
                }
                connection.accepted = true;
                self.push(core, id, 1, Parcel::Accepted);
            }
            Parcel::Closed => {
                // The other end may not know yet, and will not be told by this one.
                self.break_lane(core, id, 1 - lane, 0);
                self.forget_ended(id);
            }
            Parcel::Accepted | Parcel::Message(_) => {}
        }
        Some(Delivery { connection: id, from, to, parcel })
    }

    /// Ends a dial that has taken too long. The dialler is told.
    pub fn dial_timeout(&mut self, core: &mut Core, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        if !connection.accepted {
            self.break_lane(core, id, 0, 0);
            self.break_lane(core, id, 1, 0);
        }
    }

    /// Ends a connection one direction of which has been held up since then.
    pub fn unacknowledged(
        &mut self,
        core: &mut Core,
        id: ConnectionId,
        lane: usize,
        since_us: Micros,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        let state = &connection.lanes[lane];
        if !state.held.is_empty() && state.held_since_us == since_us {
            // The sender has waited long enough. The receiver cannot be told, and waits for longer.
            self.break_lane(core, id, 1 - lane, 0);
            let notices_us = core.draw(SECOND / 2, 5 * SECOND);
            self.break_lane(core, id, lane, notices_us);
        }
    }

    fn forget_ended(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        if connection.lanes.iter().all(|lane| lane.ended && lane.in_flight.is_empty()) {
            self.connections.remove(&id);
        }
    }

    /// Connections that are open at both ends, to break one of them.
    pub fn open_connections(&self) -> Vec<ConnectionId> {
        let open = |connection: &Connection| connection.lanes.iter().all(|lane| !lane.ended);
        self.connections
            .iter()
            .filter(|(_, connection)| open(connection))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Parcels on their way, for the oracle that wants queues to stay short.
    pub fn in_flight(&self) -> usize {
        let lanes = self.connections.values().flat_map(|connection| &connection.lanes);
        lanes.map(|lane| lane.in_flight.len() + lane.held.len()).sum()
    }
}

/// How long after a break its last parcels arrive: sometimes after whatever a newer connection will have brought.
fn lateness(core: &mut Core) -> Micros {
    if core.chance(300) { core.draw(0, 3 * SECOND) } else { core.draw(0, LATE_US) }
}
