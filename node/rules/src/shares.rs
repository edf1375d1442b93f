//! What each of many holds of something that there is not enough of for all.

use crate::Party;
use quorate_protocol::AccountId;
use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
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

/// The tickets that each waits with. Who waits for nothing is not kept.
#[derive(Debug)]
pub(crate) struct Tickets<K>(HashMap<K, BTreeSet<u64>>);

impl<K> Default for Tickets<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tickets<K> {
    pub(crate) fn of(&self, who: &K) -> impl Iterator<Item = u64> + use<'_, K> {
        self.0.get(who).into_iter().flatten().copied()
    }

    pub(crate) fn count(&self, who: &K) -> usize {
        self.0.get(who).map_or(0, BTreeSet::len)
    }

    pub(crate) fn add(&mut self, who: K, ticket: u64) {
        self.0.entry(who).or_default().insert(ticket);
    }

    pub(crate) fn remove(&mut self, who: K, ticket: u64) {
        if let Entry::Occupied(mut tickets) = self.0.entry(who) {
            tickets.get_mut().remove(&ticket);
            if tickets.get().is_empty() {
                tickets.remove();
            }
        }
    }

    /// All of one, who has none from then on.
    pub(crate) fn take(&mut self, who: &K) -> BTreeSet<u64> {
        self.0.remove(who).unwrap_or_default()
    }
}

/// Whose accounts without a coin this node follows, of those that it began to follow when there was little room left
/// for such. What is not known any more after a start counts for nobody.
#[derive(Debug, Default)]
pub(crate) struct Newcomers {
    of: HashMap<AccountId, Party>,
    held: Counts<Party>,
}

impl Newcomers {
    /// Whether a party may have one more followed while so many have room. Who has many leaves as much room as it has:
    /// however many parties want all they can, there is some left for the next.
    pub(crate) fn has_room(&self, party: &Party, left: usize) -> bool {
        self.held.of(party) < left
    }

    pub(crate) fn add(&mut self, account: AccountId, party: Party) {
        if let Some(before) = self.of.insert(account, party) {
            self.held.take(before, 1);
        }
        self.held.add(party, 1);
    }

    /// Forgets those that have had a coin, or are gone.
    pub(crate) fn sweep(&mut self, is_without_coin: impl Fn(&AccountId) -> bool) {
        let Self { of, held } = self;
        of.retain(|account, party| {
            let stays = is_without_coin(account);
            held.take(*party, usize::from(!stays));
            stays
        });
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
    fn who_has_many_accounts_followed_leaves_as_much_room() {
        let mut newcomers = Newcomers::default();
        let (mut left, mut next) = (1_000_usize, 0_u32);
        let parties = [Party::Certificate(1), Party::Certificate(2), Party::Node(NodeId(1))];
        for (party, has) in parties.into_iter().zip([500, 250, 125]) {
            while newcomers.has_room(&party, left) {
                let mut id = [0; 32];
                id[..4].copy_from_slice(&next.to_be_bytes());
                newcomers.add(AccountId(id), party);
                (left, next) = (left - 1, next + 1);
            }
            assert_eq!(newcomers.held.of(&party), has);
        }
        assert_eq!(left, 125, "for the next");
        // One of the first comes again with another, and the others of the first get coins.
        newcomers.add(AccountId([0; 32]), parties[1]);
        assert_eq!((newcomers.held.of(&parties[0]), newcomers.held.of(&parties[1])), (499, 251));
        newcomers.sweep(|account| newcomers_second_half(account) || *account == AccountId([0; 32]));
        assert_eq!((newcomers.held.of(&parties[0]), newcomers.of.len()), (0, 376));
        assert!(newcomers.has_room(&parties[0], left));
    }

    fn newcomers_second_half(account: &AccountId) -> bool {
        account.0[..4] >= 500_u32.to_be_bytes()[..]
    }
}
