//! What the members of a group are to have in the end: a new group epoch, and the targets that belong to it.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::TopicId;

use super::{
    GroupCoordinator, Timer,
    assignor::{Assignor, Candidate},
    record::{Change, Epochs, SubscribedTopics, Target},
    state::Group,
    subscription,
};
use crate::topics::Topics;

/// Why targets may have to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Members came, went, or want something else.
    Members,
    /// The topics of the cluster changed, perhaps none of this group's.
    Topics,
}

impl GroupCoordinator {
    /// Looks at the targets of groups that something has happened to, as many as fit the decision.
    pub(super) fn settle(&mut self) {
        while !self.out.is_full() {
            let Some((group, cause)) = self.unsettled.pop_first() else { return };
            self.retarget(&group, cause);
        }
        if !self.unsettled.is_empty() {
            self.sweep_soon();
        }
    }

    /// Asks to be called again at once.
    pub(super) fn sweep_soon(&mut self) {
        self.deadlines.set(Timer::Sweep, 0);
    }

    /// Starts a new group epoch if the group is not as it was when its targets were computed, and computes them.
    pub(super) fn retarget(&mut self, name: &str, cause: Cause) {
        let Some(group) = self.state.group(name) else { return };
        if group.epochs.is_none() && cause == Cause::Topics {
            return;
        }
        let resolved = subscription::resolve(&group.members, &self.topics);
        let topics = subscribed_topics(resolved.values(), &self.topics);
        let topics = (!topics.partitions.is_empty()).then_some(topics);
        let same_topics = topics == group.topics;
        if same_topics && cause == Cause::Topics && is_covered(group) {
            return;
        }
        let assignor = preferred(group).unwrap_or(self.config.assignor);
        let targets = compute(group, &resolved, assignor, &self.topics);
        let epoch = group.epochs.map_or(1, |epochs| epochs.epoch + 1);
        let changed: Vec<(String, Target)> = targets
            .into_iter()
            .filter(|(id, target)| group.targets.get(id) != Some(target))
            .collect();

        let name = name.to_owned();
        if !same_topics {
            self.write(Change::Topics(name.clone(), topics));
        }
        for (member, target) in changed {
            self.nudge(&name, &member);
            self.write(Change::Target(name.clone(), member, Some(target)));
        }
        self.write(Change::Epochs(name, Some(Epochs { epoch, assignment: epoch })));
    }
}

fn subscribed_topics<'a>(
    subscriptions: impl Iterator<Item = &'a BTreeSet<TopicId>>,
    topics: &Topics,
) -> SubscribedTopics {
    let ids: BTreeSet<TopicId> = subscriptions.flatten().copied().collect();
    let counts = ids.into_iter().filter_map(|id| Some((id, topics.get(id)?.partitions)));
    SubscribedTopics { partitions: counts.collect() }
}

/// Whether the targets are of the members there are. A member may be gone whose group had not been looked at before
/// the coordinator failed.
fn is_covered(group: &Group) -> bool {
    let assigned: usize = group.targets.values().map(|target| target.partitions.len()).sum();
    let topics = group.topics.iter().flat_map(|topics| topics.partitions.values());
    assigned == topics.map(|count| *count as usize).sum::<usize>()
}

/// What most of those members want who want one; of equally many the first in the order of [`Assignor`].
fn preferred(group: &Group) -> Option<Assignor> {
    let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
    for assignor in group.members.values().filter_map(|member| member.assignor) {
        *votes.entry(assignor).or_default() += 1;
    }
    let most = votes.values().copied().max()?;
    votes.into_iter().find(|(_, count)| *count == most).map(|(assignor, _)| assignor)
}

fn compute(
    group: &Group,
    resolved: &BTreeMap<&str, BTreeSet<TopicId>>,
    assignor: Assignor,
    topics: &Topics,
) -> BTreeMap<String, Target> {
    let nothing = BTreeSet::new();
    let candidates: Vec<Candidate<'_>> = group
        .members
        .iter()
        .map(|(id, member)| Candidate {
            order: member.instance.as_deref().unwrap_or(id),
            rack: member.rack.as_deref(),
            topics: resolved[id.as_str()].clone(),
            before: group.targets.get(id).map_or(&nothing, |target| &target.partitions),
        })
        .collect();
    let assigned = assignor.assign(&candidates, topics);
    let targets = assigned.into_iter().map(|partitions| Target { partitions });
    group.members.keys().cloned().zip(targets).collect()
}
