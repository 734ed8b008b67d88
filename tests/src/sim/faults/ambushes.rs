//! Faults that wait for their moment: what no random time would hit often enough.

use tidemark_controller::Command;

use super::{
    Ambush, Event, FaultClass, MS, Mend, Micros, NodeId, Process, SECOND, TopicPartition, Verdict,
    World,
};
use crate::sim::message::{Message, Request};

impl World {
    /// A leader is to miss an epoch: it goes on while another one leads, who lacks some of what it has, and when that one dies
    /// too, it may lead again, and hears of both changes as one.
    pub(super) fn miss_an_epoch(&mut self) -> Verdict {
        let Some((partition, from, others)) = self.any_in_sync() else { return Ok(()) };
        if others.len() < 2 {
            return Ok(());
        }
        let to = *self.core.random.pick(&others);
        self.injected(FaultClass::MetadataLag, from);
        let pairs = vec![(from, to)];
        self.net.block(&pairs);
        let behind_us = self.core.draw(50 * MS, 300 * MS);
        let transfer = Mend::Transfer { partition, from, to };
        self.core.after(behind_us, Event::Mend { mend: transfer });
        let unblocked_us = self.core.draw(300 * MS, SECOND);
        self.core.after(unblocked_us, Event::Mend { mend: Mend::Unblock { pairs } });
        let crash_us = behind_us + self.core.draw(100 * MS, SECOND);
        self.core.after(crash_us, Event::Mend { mend: Mend::Crash { node: to } });
        Ok(())
    }

    /// Some partition, its leader, and those that are in sync besides, of whom there are some.
    fn any_in_sync(&mut self) -> Option<(TopicPartition, NodeId, Vec<NodeId>)> {
        let partitions = self.partitions();
        if partitions.is_empty() {
            return None;
        }
        let partition = *self.core.random.pick(&partitions);
        let assigned = self.ghost.metadata.partition(partition)?;
        let leader = assigned.leader?;
        let others: Vec<_> = assigned.isr.iter().copied().filter(|id| *id != leader).collect();
        (!others.is_empty()).then_some((partition, leader, others))
    }

    /// A leader is replaced by one that lacks some of what it has, cuts its log, and leads again before anybody has written to
    /// the other: what was cut is still to be written again, by whoever has sent it.
    pub(super) fn there_and_back(&mut self) -> Verdict {
        let Some((partition, from, others)) = self.any_in_sync() else { return Ok(()) };
        let to = *self.core.random.pick(&others);
        self.injected(FaultClass::ThereAndBack, from);
        let behind: Vec<_> = others.iter().map(|other| (from, *other)).collect();
        let clients: Vec<_> = self.client_links().map(|client| (client, to)).collect();
        self.net.block(&behind);
        self.net.block(&clients);
        let there_us = self.core.draw(20 * MS, 200 * MS);
        let back_us = there_us + self.core.draw(50 * MS, 500 * MS);
        let over_us = back_us + self.core.draw(0, 300 * MS);
        for (at_us, mend) in [
            (there_us, Mend::Lead { partition, to }),
            (there_us, Mend::Unblock { pairs: behind }),
            (back_us, Mend::Lead { partition, to: from }),
            (over_us, Mend::Unblock { pairs: clients }),
        ] {
            self.core.after(at_us, Event::Mend { mend });
        }
        Ok(())
    }

    /// A leader is replaced by one that lacks some of what it has. Before it hears what to cut, it leads again, and what was to
    /// be cut is committed. Then the other one leads once more, and now that answer arrives, over the same connection.
    pub(super) fn answer_late(&mut self) -> Verdict {
        let Some((partition, from, others)) = self.any_in_sync() else { return Ok(()) };
        let to = *self.core.random.pick(&others);
        self.injected(FaultClass::LateAnswer, from);
        let behind: Vec<_> = others.iter().map(|other| (from, *other)).collect();
        self.net.block(&behind);
        let there_us = self.core.draw(20 * MS, 200 * MS);
        let back_us = there_us + self.core.draw(30 * MS, 200 * MS);
        let again_us = back_us + self.core.draw(50 * MS, 300 * MS);
        let late_us = again_us + self.core.draw(20 * MS, 200 * MS);
        self.net.stall_streams((to, from), self.core.now_us() + late_us);
        for (at_us, mend) in [
            (there_us, Mend::Lead { partition, to }),
            (there_us, Mend::Unblock { pairs: behind }),
            (back_us, Mend::Lead { partition, to: from }),
            (again_us, Mend::Lead { partition, to }),
        ] {
            self.core.after(at_us, Event::Mend { mend });
        }
        Ok(())
    }

    /// A replica that is about to be let in loses its disk, and is back before the controller hears that it is to be let in.
    pub(super) fn wipe_on_joining(&mut self, leader: NodeId, newcomer: NodeId) -> Verdict {
        let held = self.replicas_on(newcomer);
        if !held.iter().all(|partition| self.may_lose(newcomer, *partition)) {
            return Ok(());
        }
        self.core.figures.fault("wiped on joining");
        let controllers = self.shape.controllers.iter().filter(|id| **id != leader);
        let pairs: Vec<_> = controllers.map(|id| (leader, *id)).collect();
        self.net.block(&pairs);
        let until_us = self.core.draw(200 * MS, 1_800 * MS);
        self.core.after(until_us, Event::Mend { mend: Mend::Unblock { pairs } });
        self.wipe_and_start(newcomer, held, 200 * MS);
        Ok(())
    }

    /// A follower falls out of sync. When it is to be let in again, that arrives late.
    pub(super) fn change_late(&mut self) -> Verdict {
        let Some((_, leader, others)) = self.any_in_sync() else { return Ok(()) };
        let follower = *self.core.random.pick(&others);
        self.injected(FaultClass::LateChange, leader);
        self.ambush = Some(Ambush::LateChange);
        let pairs = vec![(follower, leader)];
        self.net.block(&pairs);
        let behind_us = self.shape.replica_lag_ms * MS + self.core.draw(100 * MS, SECOND);
        self.core.after(behind_us, Event::Mend { mend: Mend::Unblock { pairs } });
        Ok(())
    }

    /// A leader's change is held up on its way to the controller. The leader gives up the connection and asks again over the
    /// next one: either the replica is let in then, and falls behind, or it is fenced for a moment, and refused. When
    /// the leader has gone on without it, the first copy arrives.
    pub(super) fn hold_change(&mut self, leader: NodeId, newcomer: NodeId) -> Verdict {
        let controller = self.leading_controller().map(|(id, _)| id);
        let Some(controller) = controller.filter(|id| *id != leader) else {
            // That change takes no way.
            self.ambush = Some(Ambush::LateChange);
            return Ok(());
        };
        let is_to_be_fenced = newcomer != controller && self.core.chance(500);
        let held_us = self.core.draw(20 * MS, 200 * MS);
        let mut late_us = self.core.draw(200 * MS, 1_500 * MS);
        if is_to_be_fenced {
            let others = self.shape.controllers.iter().filter(|id| **id != newcomer);
            let pairs: Vec<_> = others.map(|id| (newcomer, *id)).collect();
            self.net.block(&pairs);
            self.with_process(newcomer, Process::lose_session);
            let silent_us = held_us + self.core.draw(50 * MS, 200 * MS);
            self.core.after(silent_us, Event::Mend { mend: Mend::Unblock { pairs } });
        } else {
            late_us += self.shape.replica_lag_ms * MS + self.core.draw(0, SECOND);
        }
        self.net.block(&[(leader, controller)]);
        let overtake = Mend::Overtake { leader, controller, late_us };
        self.core.after(held_us, Event::Mend { mend: overtake });
        let pairs = vec![(newcomer, leader)];
        self.net.block(&pairs);
        let behind_us = held_us + late_us + self.core.draw(0, 200 * MS);
        self.core.after(behind_us, Event::Mend { mend: Mend::Unblock { pairs } });
        Ok(())
    }

    pub(super) fn overtake_change(&mut self, pair: (NodeId, NodeId), late_us: Micros) -> Verdict {
        let is_change = |message: &Message| {
            let Message::Request(_, request) = message else { return false };
            matches!(&**request, Request::Command(Command::AlterPartitions(_)))
        };
        if self.net.overtake(&mut self.core, pair, late_us, is_change) {
            self.core.figures.fault("changes of in-sync sets overtaken");
        }
        self.net.unblock(&mut self.core, &[pair]);
        Ok(())
    }
}
