//! What each of many holds of something that there is not enough of for all.

use crate::Party;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    time::Duration,
};

/// How much each holds. Who holds nothing is not kept.
#[derive(Debug)]
pub(crate) struct Counts<K>(HashMap<K, usize>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    pub(crate) fn of(&self, who: &K) -> usize {
        self.0.get(who).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, who: K, more: usize) {
        if more > 0 {
            *self.0.entry(who).or_default() += more;
        }
    }

    pub(crate) fn take(&mut self, who: K, less: usize) {
        if let Entry::Occupied(mut held) = self.0.entry(who) {
            *held.get_mut() = held.get().saturating_sub(less);
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// Accounts that a party may have this node follow at once, when half of the room for those without a coin is taken.
const NEWCOMERS_AT_ONCE: u32 = 4_096;
/// Time after which it may have one more followed. In the month that an account without a coin is followed, three who
/// want as many as they can do not fill the other half.
const NEWCOMER_EACH: Duration = Duration::from_secs(480);

/// Who had accounts followed that were not before.
#[derive(Debug, Default)]
pub(crate) struct Newcomers(HashMap<Party, Quota>);

/// What is left to a party.
#[derive(Clone, Copy, Debug)]
struct Quota {
    left: u32,
    /// When the next one is earned; nothing if all are there.
    next: Option<Duration>,
}

impl Newcomers {
    /// Takes one of a party's, if one is left.
    pub(crate) fn admit(&mut self, now: Duration, party: Party) -> bool {
        let quota = self.0.entry(party).or_insert(Quota { left: NEWCOMERS_AT_ONCE, next: None });
        quota.earn(now);
        let admitted = quota.left > 0;
        if admitted {
            quota.left -= 1;
            quota.next = quota.next.or(Some(now + NEWCOMER_EACH));
        }
        admitted
    }

    /// Forgets those to whom all are left.
    pub(crate) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, quota| {
            quota.earn(now);
            quota.left < NEWCOMERS_AT_ONCE
        });
    }
}

impl Quota {
    fn earn(&mut self, now: Duration) {
        while let Some(next) = self.next.filter(|next| now >= *next) {
            self.left += 1;
            self.next = (self.left < NEWCOMERS_AT_ONCE).then_some(next + NEWCOMER_EACH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::NodeId;

    #[test]
    fn who_holds_nothing_is_not_kept() {
        let mut counts = Counts::default();
        counts.add(1, 3);
        counts.add(2, 0);
        counts.take(1, 1);
        assert_eq!((counts.of(&1), counts.of(&2), counts.0.len()), (2, 0, 1));
        counts.take(1, 5);
        counts.take(2, 1);
        assert!(counts.0.is_empty());
    }

    #[test]
    fn each_has_so_many_accounts_followed_and_earns_more() {
        let mut newcomers = Newcomers::default();
        let (one, other, node) = (Party::Certificate(1), Party::Certificate(2), Party::Node(NodeId(1)));
        let fill = |newcomers: &mut Newcomers, now, party| {
            std::iter::from_fn(|| newcomers.admit(now, party).then_some(())).count()
        };
        let start = Duration::from_secs(100);
        for party in [one, other, node] {
            assert_eq!(fill(&mut newcomers, start, party), 4_096);
        }
        let later = start + Duration::from_secs(960);
        assert_eq!(fill(&mut newcomers, later, one), 2);
        assert_eq!(fill(&mut newcomers, later + Duration::from_secs(479), one), 0);
        newcomers.sweep(start + Duration::from_secs(4_096 * 480));
        assert!(newcomers.0.contains_key(&one) && !newcomers.0.contains_key(&other));
        let late = start + Duration::from_secs(9_000 * 480);
        newcomers.sweep(late);
        assert!(newcomers.0.is_empty());
        assert_eq!(fill(&mut newcomers, late, one), 4_096, "never more");
    }
}
