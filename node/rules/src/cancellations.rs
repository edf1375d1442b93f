//! Payments that their owners cancelled, as far as this node has seen the signed word. No node votes for one, nor asks
//! others to, unless a release forces it: then it may be final, and all that is left is to finish it.
//!
//! Kept in memory only: what is cancelled is released as well, and the release is durable.

use bitcoin::{OutPoint, Txid};
use quorate_protocol::AccountId;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Cancellations remembered, the latest ones, each with the coins for which it has counted.
const CANCELS_MAX: usize = 65_536;
/// Of these, of one account, so that nobody's push out another's.
const CANCELS_PER_ACCOUNT_MAX: usize = 256;

/// What this node has seen cancelled.
#[derive(Debug, Default)]
pub(crate) struct Cancellations {
    payments: HashMap<Txid, Cancelled>,
    /// By when they came.
    order: BTreeMap<u64, Txid>,
    accounts: HashMap<AccountId, VecDeque<u64>>,
    last: u64,
    /// Coins for which they have counted, all together.
    used: usize,
}

#[derive(Debug)]
struct Cancelled {
    account: AccountId,
    /// Its coins that were released without a lock because of it, once each.
    used: BTreeSet<OutPoint>,
}

impl Cancellations {
    pub(crate) fn contains(&self, txid: &Txid) -> bool {
        self.payments.contains_key(txid)
    }

    /// Whether a cancellation counts for a coin that nothing locks here: once, so that an old one does not end what the
    /// owner did later.
    pub(crate) fn is_fresh(&mut self, txid: &Txid, outpoint: OutPoint) -> bool {
        let fresh = self.payments.get_mut(txid).is_some_and(|cancelled| cancelled.used.insert(outpoint));
        self.used += usize::from(fresh);
        self.make_room();
        fresh
    }

    pub(crate) fn remember(&mut self, account: AccountId, txid: Txid) {
        if self.contains(&txid) {
            return;
        }
        self.last += 1;
        self.payments.insert(txid, Cancelled { account, used: BTreeSet::new() });
        self.order.insert(self.last, txid);
        let own = self.accounts.entry(account).or_default();
        own.push_back(self.last);
        if own.len() > CANCELS_PER_ACCOUNT_MAX {
            let oldest = own.front().copied();
            self.forget(oldest);
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.order.len() + self.used > CANCELS_MAX {
            let oldest = self.order.keys().next().copied();
            self.forget(oldest);
        }
    }

    /// The oldest one, of all or of its account: it is its account's oldest in either case.
    fn forget(&mut self, number: Option<u64>) {
        let txid = number.and_then(|number| self.order.remove(&number));
        let Some(Cancelled { account, used }) = txid.and_then(|txid| self.payments.remove(&txid)) else {
            return;
        };
        self.used -= used.len();
        let Some(own) = self.accounts.get_mut(&account) else { return };
        own.pop_front();
        if own.is_empty() {
            self.accounts.remove(&account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash as _;

    fn txid(number: usize) -> Txid {
        Txid::hash(&number.to_be_bytes())
    }

    #[test]
    fn the_oldest_go_and_nobodys_push_out_anothers() {
        let mut cancelled = Cancellations::default();
        let [quiet, busy] = [1, 2].map(|byte| AccountId([byte; 32]));
        cancelled.remember(quiet, txid(0));
        for number in 1..=CANCELS_MAX * 2 {
            cancelled.remember(busy, txid(number));
        }
        assert!(cancelled.contains(&txid(0)), "of another account");
        let kept = (1..=CANCELS_MAX * 2).filter(|number| cancelled.contains(&txid(*number)));
        let latest = CANCELS_MAX * 2 - CANCELS_PER_ACCOUNT_MAX + 1..=CANCELS_MAX * 2;
        assert_eq!(kept.collect::<Vec<_>>(), latest.collect::<Vec<_>>());
        for number in 0..CANCELS_MAX {
            let mut account = [3; 32];
            account[..8].copy_from_slice(&number.to_be_bytes());
            cancelled.remember(AccountId(account), txid(usize::MAX - number));
        }
        assert!(!cancelled.contains(&txid(0)), "it was the oldest");
        assert_eq!((cancelled.payments.len(), cancelled.order.len()), (CANCELS_MAX, CANCELS_MAX));
        assert_eq!(cancelled.accounts.values().map(VecDeque::len).sum::<usize>(), CANCELS_MAX);
    }

    #[test]
    fn for_a_coin_without_a_lock_it_counts_once() {
        let mut cancelled = Cancellations::default();
        let coin = OutPoint::null();
        assert!(!cancelled.is_fresh(&txid(0), coin), "nobody cancelled it");
        cancelled.remember(AccountId([1; 32]), txid(0));
        assert!(cancelled.is_fresh(&txid(0), coin) && !cancelled.is_fresh(&txid(0), coin));
        assert!(cancelled.is_fresh(&txid(0), OutPoint { vout: 1, ..coin }));
        // What has counted takes room, too.
        for number in 1..CANCELS_MAX / 2 {
            let mut account = [3; 32];
            account[..8].copy_from_slice(&number.to_be_bytes());
            cancelled.remember(AccountId(account), txid(number));
            assert!((0..4).all(|vout| cancelled.is_fresh(&txid(number), OutPoint { vout, ..coin })));
        }
        assert!(!cancelled.contains(&txid(0)));
        assert_eq!(cancelled.used, cancelled.payments.values().map(|one| one.used.len()).sum::<usize>());
        assert!(cancelled.order.len() + cancelled.used <= CANCELS_MAX);
    }
}
