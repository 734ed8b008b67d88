//! What goes wrong, one fault at a time, as the seed's plan says; and what mends it. A fault is skipped where it would
//! break a promise that nobody has made: a disk is wiped, or rots, only while somebody else who leads has everything.

mod ambushes;
mod promises;

use tidemark_controller::{
    AlterTopic, Command, DeleteTopic, ElectLeaders, Election, QuorumStatus, Reassign,
    ReassignPartition, SetDraining, VoterChange,
};
use tidemark_protocol::{NodeId, TopicPartition, messages::VoterId};
use tidemark_storage::disk::{Disk as _, Faults};

use super::{
    core::{Ambush, Event, MS, Mend, Micros, SECOND},
    network::Address,
    node::{Io, Node, Process},
    shape::FaultClass,
    trace::Who,
    world::World,
};
use crate::oracle::Verdict;

impl World {
    /// It is time for a fault.
    pub(super) fn fault(&mut self) -> Verdict {
        if !self.are_faults_on {
            return Ok(());
        }
        let pause_us = self.core.draw(50 * MS, self.shape.fault_pause_us);
        self.core.after(pause_us, Event::Fault);
        let faults = self.shape.faults.clone();
        if faults.is_empty() {
            return Ok(());
        }
        let class = *self.core.random.pick(&faults);
        let id = *self.core.random.pick(&self.shape.nodes);
        self.inject(class, id)
    }

    fn inject(&mut self, class: FaultClass, id: NodeId) -> Verdict {
        match class {
            FaultClass::Crash => self.crash_one(id),
            FaultClass::CrashMidway => {
                let disk = &self.nodes[&id].disk;
                if self.nodes[&id].is_up() {
                    disk.stop_at(disk.operations() + self.core.draw(0, 30));
                }
                Ok(())
            }
            FaultClass::PowerLoss => self.power_loss(id, class),
            FaultClass::PowerLossOfMany => {
                let count = self.core.draw(2, self.shape.nodes.len() as u64);
                for id in self.pick_nodes(count) {
                    self.power_loss(id, class)?;
                }
                Ok(())
            }
            FaultClass::CleanRestart => self.clean_restart(id),
            FaultClass::FsyncError => {
                if !self.may_lose_in_memory(id) {
                    return Ok(());
                }
                self.injected(class, id);
                let sound_syncs = u32::try_from(self.core.draw(0, 3)).expect("a few");
                let faults = self.disk_faults.entry(id).or_default();
                (faults.failing_syncs, faults.sound_syncs) = (1, sound_syncs);
                self.nodes[&id].disk.set_faults(faults.clone());
                (faults.failing_syncs, faults.sound_syncs) = (0, 0);
                Ok(())
            }
            FaultClass::BitRot => self.rot(id),
            FaultClass::FullDisk => self.fill(id),
            FaultClass::SlowDisk => {
                self.injected(class, id);
                self.nodes.get_mut(&id).expect("it is there").flush_us = self.core.draw(MS, SECOND);
                let until_us = self.core.draw(SECOND, 6 * SECOND);
                self.core.after(until_us, Event::Mend { mend: Mend::FastDisk { node: id } });
                Ok(())
            }
            FaultClass::BrokenConnection => self.break_connection(),
            FaultClass::Partition | FaultClass::OneWayCut => self.cut(class),
            FaultClass::Pause => self.pause(id),
            FaultClass::MetadataLag => self.miss_an_epoch(),
            FaultClass::Reassignment => self.reassign(),
            FaultClass::WipedDisk => self.wipe(id),
            FaultClass::RecreatedTopic => self.recreate(),
            FaultClass::Settings => self.change_settings(),
            FaultClass::Leadership => self.move_leadership(id),
            FaultClass::ThereAndBack => self.there_and_back(),
            FaultClass::Corruption => {
                self.injected(class, 0);
                let messages = self.core.draw(1, 4);
                self.net.corrupt(messages);
                Ok(())
            }
            FaultClass::LateChange => self.change_late(),
            FaultClass::LateAnswer => self.answer_late(),
        }
    }

    fn injected(&mut self, class: FaultClass, id: NodeId) {
        self.core.figures.fault(class.name());
        let who = if id == 0 { Who::World } else { Who::Node(id) };
        self.core.note(who, "fault", [u64::from(id), 0], || class.name().to_owned());
    }

    fn pick_nodes(&mut self, count: u64) -> Vec<NodeId> {
        let mut nodes = self.shape.nodes.clone();
        let mut picked = Vec::new();
        while (picked.len() as u64) < count && !nodes.is_empty() {
            let at = self.core.draw(0, nodes.len() as u64 - 1);
            picked.push(nodes.swap_remove(usize::try_from(at).expect("a few")));
        }
        picked
    }

    fn crash_one(&mut self, id: NodeId) -> Verdict {
        if self.nodes[&id].is_up() {
            self.injected(FaultClass::Crash, id);
            self.crash(id);
            // Now and then so long that the others forget what was removed meanwhile.
            let is_long = self.shape.forgets_removals() && self.core.chance(400);
            self.start_later(id, if is_long { 16 * SECOND } else { 4 * SECOND });
        }
        Ok(())
    }

    fn power_loss(&mut self, id: NodeId, class: FaultClass) -> Verdict {
        if !self.may_lose_in_memory(id) {
            return Ok(());
        }
        let in_memory = self.in_memory_on(id);
        self.injected(class, id);
        self.leaving.remove(&id);
        let node = self.nodes.get_mut(&id).expect("it is there");
        // Whoever has stopped in order has nothing to lose.
        let had_stopped = node.has_stopped;
        node.lose_power(&mut self.core, &mut self.net);
        if !had_stopped {
            self.ghost.ended(id);
            self.ghost.loss.lost(id, in_memory);
            self.judge_promises(id);
        }
        self.start_later(id, 5 * SECOND);
        Ok(())
    }

    fn clean_restart(&mut self, id: NodeId) -> Verdict {
        if !self.nodes[&id].is_up() || self.leaving.contains_key(&id) {
            return Ok(());
        }
        self.injected(FaultClass::CleanRestart, id);
        self.leaving.insert(id, self.core.now_us() + 5 * SECOND);
        self.with_process(id, Process::leave);
        Ok(())
    }

    /// Has a node's process do something from outside.
    pub(super) fn with_process(&mut self, id: NodeId, act: impl FnOnce(&mut Process, &mut Io<'_>)) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.act(&mut self.core, &mut self.net, &self.shape, act);
    }

    fn fill(&mut self, id: NodeId) -> Verdict {
        self.injected(FaultClass::FullDisk, id);
        let room = self.core.draw(0, 100_000);
        let node = &self.nodes[&id];
        let faults = self.disk_faults.entry(id).or_default();
        faults.capacity_bytes = Some(node.disk.used_bytes() + room);
        node.disk.set_faults(faults.clone());
        let until_us = self.core.draw(SECOND, 8 * SECOND);
        self.core.after(until_us, Event::Mend { mend: Mend::FreeDisk { node: id } });
        Ok(())
    }

    fn break_connection(&mut self) -> Verdict {
        let open = self.net.open_connections();
        if open.is_empty() {
            return Ok(());
        }
        self.injected(FaultClass::BrokenConnection, 0);
        for _ in 0..self.core.draw(1, 3) {
            let connection = *self.core.random.pick(&open);
            self.net.reset(&mut self.core, connection);
        }
        Ok(())
    }

    fn cut(&mut self, class: FaultClass) -> Verdict {
        let nodes = self.shape.nodes.clone();
        if nodes.len() < 2 {
            return Ok(());
        }
        let most = self.core.draw(1, (nodes.len() as u64 / 2).max(1));
        let inside = self.pick_nodes(most);
        let with_clients = self.core.chance(300);
        let both_ways = class == FaultClass::Partition;
        let mut pairs = Vec::new();
        for from in &inside {
            for to in nodes.iter().filter(|to| !inside.contains(to)) {
                if both_ways || self.core.chance(600) {
                    pairs.push((*from, *to));
                }
                if both_ways || self.core.chance(200) {
                    pairs.push((*to, *from));
                }
            }
            if with_clients {
                let links = self.client_links();
                pairs.extend(links.flat_map(|client| [(*from, client), (client, *from)]));
            }
        }
        self.injected(class, inside[0]);
        self.core.note(Who::World, "cut", [pairs.len() as u64, 0], || {
            format!("{inside:?} of {nodes:?}")
        });
        self.net.block(&pairs);
        let longest_us = if self.core.chance(400) { 400 * MS } else { 8 * SECOND };
        let until_us = self.core.draw(10 * MS, longest_us);
        self.core.after(until_us, Event::Mend { mend: Mend::Unblock { pairs } });
        Ok(())
    }

    /// Clients of any kind as the table of links has them, without the administrator.
    pub(super) fn client_links(&self) -> impl Iterator<Item = u32> + use<> {
        let Self { producers, consumers, transactors, readers, members, copiers, .. } = self;
        let plain = producers.keys().chain(consumers.keys());
        let coordinated = transactors.keys().chain(readers.keys()).chain(members.keys());
        let all: Vec<u32> = plain.chain(coordinated).chain(copiers.keys()).copied().collect();
        all.into_iter().map(|client| Address::Client(client).link())
    }

    fn pause(&mut self, id: NodeId) -> Verdict {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if node.is_up() && !node.is_paused() {
            node.pause();
            self.injected(FaultClass::Pause, id);
            let until_us = self.core.draw(50 * MS, 5 * SECOND);
            self.core.after(until_us, Event::Mend { mend: Mend::Resume { node: id } });
        }
        Ok(())
    }

    fn reassign(&mut self) -> Verdict {
        let partitions = self.partitions();
        if partitions.is_empty() {
            return Ok(());
        }
        self.injected(FaultClass::Reassignment, 0);
        if self.core.chance(150) {
            let broker_id = *self.core.random.pick(&self.shape.nodes);
            let draining = self.core.chance(500);
            self.wish(Command::SetDraining(SetDraining { broker_id, draining }));
            return Ok(());
        }
        let partition = *self.core.random.pick(&partitions);
        let replicas = if self.core.chance(150) {
            None
        } else {
            let size = self
                .ghost
                .metadata
                .partition(partition)
                .map_or(1, |it| it.target_replicas().count());
            Some(self.pick_nodes(size as u64))
        };
        let changes = vec![ReassignPartition { partition, replicas }];
        self.wish(Command::Reassign(Reassign { changes, throttle_bytes_per_second: None }));
        Ok(())
    }

    fn recreate(&mut self) -> Verdict {
        if !self.admin.is_idle() {
            return Ok(());
        }
        self.injected(FaultClass::RecreatedTopic, 0);
        let topic = self.core.random.pick(&self.shape.topics).clone();
        self.wish(Command::DeleteTopic(DeleteTopic { name: topic.name.clone(), id: None }));
        let command = topic.command(&mut self.core);
        self.wish(Command::CreateTopic(command));
        Ok(())
    }

    fn change_settings(&mut self) -> Verdict {
        self.injected(FaultClass::Settings, 0);
        let topic = self.core.random.pick(&self.shape.topics).clone();
        let min = self.core.draw(1, u64::from(topic.replication_factor));
        let set = [("min_insync_replicas".to_owned(), min.to_string())].into();
        let (name, unset) = (topic.name, Vec::new());
        self.wish(Command::AlterTopic(AlterTopic { name, set, unset, validate_only: false }));
        Ok(())
    }

    fn move_leadership(&mut self, id: NodeId) -> Verdict {
        self.injected(FaultClass::Leadership, id);
        if self.core.chance(500) {
            let command = ElectLeaders { election: Election::Preferred, partitions: None };
            self.wish(Command::ElectLeaders(command));
        } else {
            self.with_process(id, Process::transfer_leadership);
        }
        self.after_node(id)
    }

    fn rot(&mut self, id: NodeId) -> Verdict {
        let held = self.replicas_on(id);
        let may_rot: Vec<_> = held.into_iter().filter(|it| self.may_lose(id, *it)).collect();
        if may_rot.is_empty() {
            return Ok(());
        }
        let partition = *self.core.random.pick(&may_rot);
        let Some(dir) = self.log_dir(partition) else { return Ok(()) };
        let disk = self.nodes[&id].disk.clone();
        let entries = disk.list(&dir).unwrap_or_default();
        let logs: Vec<_> =
            entries.iter().filter(|it| it.name.ends_with(".log") && it.bytes > 0).collect();
        if logs.is_empty() {
            return Ok(());
        }
        let log = *self.core.random.pick(&logs);
        let written =
            self.ghost.replicas.get(&(id, partition)).map_or(0, |it| it.marks.len() as u64);
        if written == 0 {
            return Ok(());
        }
        self.injected(FaultClass::BitRot, id);
        self.ghost.damaged.insert((id, partition));
        self.ghost.loss.lost_replica(id, partition);
        let offset = self.core.draw(0, log.bytes.min(20_000) - 1);
        let bit = u8::try_from(self.core.draw(0, 7)).expect("one of eight");
        disk.bit_rot_on_medium(&dir.join(&log.name), offset, bit);
        Ok(())
    }

    fn wipe(&mut self, id: NodeId) -> Verdict {
        if self.core.chance(300) {
            self.ambush = Some(Ambush::Wipe);
            return Ok(());
        }
        let held = self.replicas_on(id);
        // Now and then the last one to have something.
        let may_lose =
            self.core.chance(150) || held.iter().all(|partition| self.may_lose(id, *partition));
        if may_lose {
            self.wipe_and_start(id, held, 3 * SECOND);
        }
        Ok(())
    }

    fn wipe_and_start(&mut self, id: NodeId, held: Vec<TopicPartition>, within_us: Micros) {
        if self.may_lose_voter(id) && self.nodes[&id].life > 0 {
            self.injected(FaultClass::WipedDisk, id);
            self.crash(id);
            self.replace_disk(id, held);
            self.start_later(id, within_us);
        }
    }

    /// Puts an empty disk into a node that is down.
    pub(super) fn replace_disk(&mut self, id: NodeId, held: Vec<TopicPartition>) {
        self.ghost.loss.lost(id, held.iter().copied());
        self.ghost.replaced.insert(id);
        self.judge_promises(id);
        for partition in held {
            self.ghost.removed((id, partition));
            self.ghost.wiped.insert(partition);
            if !self.has_complete_replica(partition) && self.ghost.lost.insert(partition) {
                self.core.figures.happened("partitions whose last replica was wiped");
            }
        }
        self.ghost.damaged.retain(|(of, _)| *of != id);
        if self.shape.controllers.contains(&id) {
            self.wiped.insert(id);
        }
        self.disk_faults.remove(&id);
        self.nodes.get_mut(&id).expect("it is there").wipe(&mut self.core);
    }

    /// Partitions that the controller has a replica of on this node, or that the node still holds.
    pub(super) fn replicas_on(&self, id: NodeId) -> Vec<TopicPartition> {
        let mut held = self.ghost.held_by(id);
        for partition in self.partitions() {
            let assigned = self.ghost.metadata.partition(partition);
            if assigned.is_some_and(|it| it.replicas.contains(&id)) && !held.contains(&partition) {
                held.push(partition);
            }
        }
        held
    }

    pub fn partitions(&self) -> Vec<TopicPartition> {
        let topics = self.ghost.metadata.image.topics();
        let of = |topic: &std::sync::Arc<tidemark_controller::Topic>| {
            let (topic_id, count) = (topic.id, topic.partition_count());
            (0..count).map(move |partition| TopicPartition { topic_id, partition })
        };
        topics.flat_map(of).collect()
    }

    fn may_lose_voter(&self, id: NodeId) -> bool {
        !self.shape.controllers.contains(&id)
            || (self.shape.controllers.len() >= 3 && self.wiped.is_empty())
    }

    /// Replaces the vote of a wiped disk by that of the new one, one step at a time, as an operator would.
    pub(super) fn tend_voters(&mut self) {
        let Some(id) = self.wiped.first().copied() else { return };
        let me = self.nodes[&id].voter();
        let Some((leader, status)) = self.leading_controller() else { return };
        let voters: Vec<VoterId> = status.voters.iter().map(|voter| voter.id).collect();
        let old = voters.iter().find(|voter| voter.node == id && **voter != me).copied();
        let change = match (voters.contains(&me), old) {
            (true, None) => {
                self.wiped.remove(&id);
                return;
            }
            (true, Some(old)) => VoterChange::Remove(old),
            (false, _) if status.learners.iter().any(|it| it.id == me) => return,
            (false, _) => VoterChange::Add(me),
        };
        self.core.note(Who::Node(leader), "voters", [0, 0], || format!("{change:?}"));
        self.with_process(leader, |process, io| process.change_voters(change, io));
    }

    /// The controller that leads the quorum, as far as it knows.
    fn leading_controller(&self) -> Option<(NodeId, QuorumStatus)> {
        let status = |node: &Node| Some((node.id, node.process()?.quorum()?));
        self.nodes.values().filter_map(status).find(|(_, status)| status.is_leader)
    }

    /// A fault ends.
    pub(super) fn mend(&mut self, mend: Mend) -> Verdict {
        match mend {
            Mend::Start { node } => self.start(node),
            Mend::Resume { node } => self.resume(node),
            Mend::Unblock { pairs } => {
                self.core.note(Who::World, "uncut", [pairs.len() as u64, 0], String::new);
                self.net.unblock(&mut self.core, &pairs);
                Ok(())
            }
            Mend::FreeDisk { node } => {
                let faults = self.disk_faults.entry(node).or_default();
                faults.capacity_bytes = None;
                self.nodes[&node].disk.set_faults(faults.clone());
                Ok(())
            }
            Mend::Transfer { .. }
            | Mend::Lead { .. }
            | Mend::Crash { .. }
            | Mend::Ambush { .. }
            | Mend::Overtake { .. }
                if !self.are_faults_on =>
            {
                Ok(())
            }
            Mend::Ambush { ambush: Ambush::Wipe, leader, newcomer } => {
                self.wipe_on_joining(leader, newcomer)
            }
            Mend::Ambush { ambush: Ambush::LateChange, leader, newcomer } => {
                self.hold_change(leader, newcomer)
            }
            Mend::Overtake { leader, controller, late_us } => {
                self.overtake_change((leader, controller), late_us)
            }
            Mend::Transfer { partition, from, to } => {
                let until_us = self.core.now_us() + self.core.draw(SECOND, 4 * SECOND);
                self.with_process(from, |process, _| process.hold_metadata(until_us));
                self.elect(partition, to);
                Ok(())
            }
            Mend::Lead { partition, to } => {
                self.elect(partition, to);
                Ok(())
            }
            Mend::Crash { node } => {
                if self.nodes[&node].is_up() {
                    self.crash(node);
                    self.start_later(node, 4 * SECOND);
                }
                Ok(())
            }
            Mend::FastDisk { node } => {
                self.nodes.get_mut(&node).expect("it is there").flush_us = self.shape.flush_us;
                Ok(())
            }
        }
    }

    fn elect(&mut self, partition: TopicPartition, to: NodeId) {
        let election = Election::Transfer { to };
        let command = ElectLeaders { election, partitions: Some(vec![partition]) };
        self.wish(Command::ElectLeaders(command));
    }

    pub(super) fn resume(&mut self, id: NodeId) -> Verdict {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if !node.is_paused() {
            return Ok(());
        }
        let life = node.life;
        for input in node.resume() {
            if self.nodes[&id].life == life {
                self.give(id, input)?;
            }
        }
        Ok(())
    }

    /// Ends every fault of a disk.
    pub(super) fn mend_disk(&mut self, id: NodeId) {
        self.disk_faults.remove(&id);
        let node = self.nodes.get_mut(&id).expect("it is there");
        node.disk.set_faults(Faults::default());
        node.flush_us = self.shape.flush_us;
    }

    /// The address of a node's present process.
    pub(super) fn address(&self, id: NodeId) -> Address {
        Address::Node { node: id, life: self.nodes[&id].life }
    }

    pub(super) fn is_quiet(&self, within_us: Micros) -> bool {
        self.core.now_us() >= within_us
    }
}
