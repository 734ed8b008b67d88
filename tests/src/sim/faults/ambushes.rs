//! Faults that wait for their moment: what no random time would hit often enough.

use std::sync::Arc;

use tidemark_controller::Partition;

use super::{Event, FaultClass, MS, Mend, NodeId, SECOND, TopicPartition, Verdict, World};

impl World {
    /// A leader is to miss an epoch: it goes on while another one leads, who lacks some of what it has, and when that one dies
    /// too, it may lead again, and hears of both changes as one.
    pub(super) fn miss_an_epoch(&mut self) -> Verdict {
        let Some((partition, assigned)) = self.any_partition() else { return Ok(()) };
        let others: Vec<NodeId> =
            assigned.isr.iter().copied().filter(|id| Some(*id) != assigned.leader).collect();
        let (Some(from), true) = (assigned.leader, others.len() >= 2) else { return Ok(()) };
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

    fn any_partition(&mut self) -> Option<(TopicPartition, Arc<Partition>)> {
        let partitions = self.partitions();
        if partitions.is_empty() {
            return None;
        }
        let partition = *self.core.random.pick(&partitions);
        Some((partition, self.ghost.metadata.partition(partition)?.clone()))
    }

    /// A leader is replaced by one that lacks some of what it has, cuts its log, and leads again before anybody has written to
    /// the other: what was cut is still to be written again, by whoever has sent it.
    pub(super) fn there_and_back(&mut self) -> Verdict {
        let Some((partition, assigned)) = self.any_partition() else { return Ok(()) };
        let Some(from) = assigned.leader else { return Ok(()) };
        let others: Vec<NodeId> = assigned.isr.iter().copied().filter(|id| *id != from).collect();
        if others.is_empty() {
            return Ok(());
        }
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

    /// A replica that is about to be let in loses its disk, and is back before the controller hears that it is to be let in.
    pub(super) fn ambush(&mut self, leader: NodeId, newcomer: NodeId) -> Verdict {
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
}
