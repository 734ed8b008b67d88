//! Members that wait to be asked for a heartbeat, and asking them. Soft: who is not asked comes by itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidemark_protocol::PartitionIndex;
use tokio::sync::Notify;

/// Group and member.
type Name = (String, String);

/// Who waits. Bounded by the requests that wait on connections.
#[derive(Debug, Default)]
pub(crate) struct Nudges {
    waiting: Mutex<HashMap<PartitionIndex, HashMap<Name, Arc<Notify>>>>,
}

/// A member that waits. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    nudges: &'a Nudges,
    partition: PartitionIndex,
    name: Name,
    notify: Arc<Notify>,
}

impl Nudges {
    /// From now on the member hears of nudges. A second wait of the same member takes the place of the first.
    pub(crate) fn wait(&self, partition: PartitionIndex, group: &str, member: &str) -> Waiting<'_> {
        let name = (group.to_owned(), member.to_owned());
        let notify = Arc::<Notify>::default();
        let before =
            self.lock().entry(partition).or_default().insert(name.clone(), Arc::clone(&notify));
        if let Some(before) = before {
            before.notify_one();
        }
        Waiting { nudges: self, partition, name, notify }
    }

    pub(crate) fn nudge(&self, partition: PartitionIndex, group: String, member: String) {
        let waiting = self.lock();
        if let Some(notify) = waiting.get(&partition).and_then(|all| all.get(&(group, member))) {
            notify.notify_one();
        }
    }

    /// Nudges everybody.
    pub(crate) fn nudge_all(&self, partition: PartitionIndex) {
        let waiting = self.lock();
        for notify in waiting.get(&partition).into_iter().flat_map(HashMap::values) {
            notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PartitionIndex, HashMap<Name, Arc<Notify>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Completes when the member was nudged since it began to wait.
    pub(crate) async fn nudged(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.nudges.lock();
        let Some(all) = waiting.get_mut(&self.partition) else { return };
        if all.get(&self.name).is_some_and(|notify| Arc::ptr_eq(notify, &self.notify)) {
            all.remove(&self.name);
        }
    }
}
