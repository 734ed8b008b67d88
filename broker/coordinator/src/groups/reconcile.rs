//! One member's way from what it has to what it is to have, one heartbeat at a time (KIP-848). A pure function.
//!
//! ```text
//!             nothing to give up, all free ┌──────────┐
//!             ┌──────────────────────────► │  stable  │ ◄─────────────┐
//!             │                            └────┬─────┘               │ all free
//!      ┌──────┴──────┐   has given it up        │ new target   ┌──────┴───────┐
//!      │  unrevoked  │ ◄────────────────────────┼────────────► │  unreleased  │
//!      └─────────────┘   must give up           │   must wait  └──────────────┘
//! ```
//!
//! A member moves to the target's epoch only when it holds nothing that the target does not give it. It gets a
//! partition only when nobody else may be consuming it.

use std::collections::BTreeSet;

use tidemark_protocol::{TopicPartition, bug};

use super::record::{Current, MemberState};

/// The target of one member and its epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal<'a> {
    pub(super) epoch: i32,
    pub(super) partitions: &'a BTreeSet<TopicPartition>,
}

/// What becomes of a member that has just said that it may be consuming `owned` (`None`: as much as before).
/// `is_free` says whether no other member may be consuming a partition.
pub(super) fn reconcile(
    current: &Current,
    goal: Goal<'_>,
    owned: Option<&BTreeSet<TopicPartition>>,
    is_free: impl Fn(&TopicPartition) -> bool,
) -> Current {
    let owns_any = |partitions: &BTreeSet<TopicPartition>| match owned {
        Some(owned) => !owned.is_disjoint(partitions),
        None => !partitions.is_empty(),
    };
    match current.state {
        MemberState::Stable if current.epoch == goal.epoch => current.clone(),
        MemberState::Unrevoked if owns_any(&current.revoking) => current.clone(),
        // The member leaves the epoch in which it held what it has given up: a commit made in that epoch and
        // still on its way must not count for a partition that is somebody else's by then.
        MemberState::Unrevoked => next(current, current.epoch + 1, goal, &owns_any, &is_free),
        MemberState::Stable | MemberState::Unreleased => {
            next(current, current.epoch, goal, &owns_any, &is_free)
        }
    }
}

fn next(
    current: &Current,
    epoch: i32,
    goal: Goal<'_>,
    owns_any: &impl Fn(&BTreeSet<TopicPartition>) -> bool,
    is_free: &impl Fn(&TopicPartition) -> bool,
) -> Current {
    let revoking: BTreeSet<_> = current.assigned.difference(goal.partitions).copied().collect();
    let mut assigned: BTreeSet<_> =
        current.assigned.intersection(goal.partitions).copied().collect();
    let at = |epoch: i32, state, assigned, revoking| Current {
        epoch,
        previous_epoch: if epoch == current.epoch { current.previous_epoch } else { current.epoch },
        state,
        assigned,
        revoking,
    };
    if owns_any(&revoking) {
        return at(epoch, MemberState::Unrevoked, assigned, revoking);
    }
    let mut state = MemberState::Stable;
    for partition in goal.partitions.difference(&current.assigned) {
        if is_free(partition) || bug::is_put_back("partition-given-before-revoked") {
            assigned.insert(*partition);
        } else {
            state = MemberState::Unreleased;
        }
    }
    at(goal.epoch, state, assigned, BTreeSet::new())
}
