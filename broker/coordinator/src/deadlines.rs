//! Which timer expires when: at most one deadline per name. Knows no clock and no meaning.

use std::collections::{BTreeMap, BTreeSet};

/// Deadlines by name, and in order.
#[derive(Clone, Debug)]
pub struct Deadlines<T> {
    by_name: BTreeMap<T, u64>,
    in_order: BTreeSet<(u64, T)>,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), in_order: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> Deadlines<T> {
    /// Sets the deadline of `name`, in place of the one it had.
    pub fn set(&mut self, name: T, at_ms: u64) {
        self.cancel(&name);
        self.by_name.insert(name.clone(), at_ms);
        self.in_order.insert((at_ms, name));
    }

    pub fn cancel(&mut self, name: &T) {
        if let Some(at_ms) = self.by_name.remove(name) {
            self.in_order.remove(&(at_ms, name.clone()));
        }
    }

    pub fn get(&self, name: &T) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// The earliest deadline.
    pub fn next_ms(&self) -> Option<u64> {
        self.in_order.first().map(|(at_ms, _)| *at_ms)
    }

    /// Takes out the earliest deadline if it is at `now_ms` or before.
    pub fn pop_expired(&mut self, now_ms: u64) -> Option<T> {
        let (at_ms, name) = self.in_order.first()?;
        if *at_ms > now_ms {
            return None;
        }
        let name = name.clone();
        self.cancel(&name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_deadline_and_they_expire_in_order() {
        let mut deadlines = Deadlines::default();
        deadlines.set("a", 30);
        deadlines.set("b", 20);
        deadlines.set("a", 10);
        deadlines.set("c", 10);
        deadlines.cancel(&"c");
        deadlines.cancel(&"never set");
        assert_eq!((deadlines.next_ms(), deadlines.get(&"a")), (Some(10), Some(10)));
        assert_eq!(deadlines.pop_expired(9), None);
        assert_eq!(deadlines.pop_expired(25), Some("a"));
        assert_eq!(deadlines.pop_expired(25), Some("b"));
        assert_eq!((deadlines.pop_expired(u64::MAX), deadlines.next_ms()), (None, None));
    }
}
