//! What was found out last, within a bound.

use std::collections::{BTreeMap, VecDeque};

/// Values by key, the oldest of which are dropped. Each costs something; all together cost at most so much.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    known: BTreeMap<K, (V, usize)>,
    /// The same, the oldest first.
    order: VecDeque<K>,
    held: usize,
    most: usize,
}

impl<K: Ord + Copy, V> Recent<K, V> {
    pub(crate) const fn new(most: usize) -> Self {
        Self { known: BTreeMap::new(), order: VecDeque::new(), held: 0, most }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key).map(|(value, _)| value)
    }

    /// Adds one, or puts it in the place of the one that is there.
    pub(crate) fn insert(&mut self, key: K, value: V, cost: usize) {
        match self.known.insert(key, (value, cost)) {
            Some((_, before)) => self.held -= before,
            None => self.order.push_back(key),
        }
        self.held += cost;
        while self.held > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.held -= self.known.remove(&oldest).map_or(0, |(_, cost)| cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_it_is_too_much() {
        let mut recent = Recent::new(10);
        for key in 0..5 {
            recent.insert(key, key, 2);
        }
        recent.insert(0, 7, 2);
        assert_eq!(recent.get(&0), Some(&7), "in the place of the one before");
        recent.insert(9, 9, 3);
        assert_eq!((recent.get(&0), recent.get(&1), recent.get(&2)), (None, None, Some(&2)));
        assert_eq!((recent.held, recent.known.len(), recent.order.len()), (9, 4, 4));
        recent.insert(8, 8, 11);
        assert_eq!((recent.held, recent.known.len(), recent.order.len()), (0, 0, 0), "too much by itself");
    }
}
