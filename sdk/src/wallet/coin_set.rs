//! All coins that a wallet ever had, so that what it asks of them at each step takes as long as what it has now, and
//! not as long as its life.

use super::coins::{Claim, Coin};
use crate::account::KeychainIndex;
use bitcoin::{OutPoint, Txid, hashes::Hash as _};
use std::collections::{BTreeMap, BTreeSet};

/// A wallet's coins, spent or not.
#[derive(Debug, Default)]
pub(super) struct CoinSet {
    coins: BTreeMap<OutPoint, Coin>,
    /// Where each of them was paid to.
    places: BTreeSet<(KeychainIndex, OutPoint)>,
    /// All that is unspent, and maybe more.
    open: BTreeSet<OutPoint>,
    /// What can be in no block any more: what it spends is unspent.
    dead: BTreeSet<Txid>,
    touched: BTreeSet<OutPoint>,
}

impl CoinSet {
    pub(super) fn get(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Coin> {
        self.coins.values()
    }

    /// All that is unspent, and maybe some that were, since what spends them is alive again. The book knows which.
    pub(super) fn open(&self) -> impl Iterator<Item = &Coin> + Clone {
        self.open.iter().filter_map(|outpoint| self.coins.get(outpoint))
    }

    /// The outputs of a transaction.
    pub(super) fn of(&self, txid: Txid) -> impl Iterator<Item = &Coin> {
        let end = |vout| OutPoint { txid, vout };
        self.coins.range(end(0)..=end(u32::MAX)).map(|(_, coin)| coin)
    }

    /// What was ever paid to an address.
    pub(super) fn at(&self, position: KeychainIndex) -> impl Iterator<Item = &Coin> {
        let end = |byte, vout| (position, OutPoint { txid: Txid::from_byte_array([byte; 32]), vout });
        let there = self.places.range(end(0, 0)..=end(u8::MAX, u32::MAX));
        there.filter_map(|(_, outpoint)| self.coins.get(outpoint))
    }

    /// One of which the wallet learns.
    pub(super) fn add(&mut self, coin: Coin) {
        self.touched.insert(coin.outpoint);
        self.restore(coin);
    }

    /// One that was saved.
    pub(super) fn restore(&mut self, coin: Coin) {
        if coin.spent_by.is_none() {
            self.open.insert(coin.outpoint);
        }
        self.places.insert((coin.position, coin.outpoint));
        self.coins.insert(coin.outpoint, coin);
    }

    pub(super) fn remove(&mut self, outpoint: &OutPoint) {
        if let Some(coin) = self.coins.remove(outpoint) {
            self.places.remove(&(coin.position, *outpoint));
            self.open.remove(outpoint);
            self.touched.insert(*outpoint);
        }
    }

    /// Changes a coin, if there is one.
    pub(super) fn change(&mut self, outpoint: &OutPoint, change: impl FnOnce(&mut Coin)) {
        let Some(coin) = self.coins.get_mut(outpoint) else { return };
        let before = coin.clone();
        change(coin);
        self.file(&before);
    }

    /// Puts a coin where it belongs now.
    fn file(&mut self, before: &Coin) {
        let outpoint = before.outpoint;
        let Some(coin) = self.coins.get(&outpoint).filter(|coin| *coin != before) else { return };
        self.touched.insert(outpoint);
        if coin.spent_by != before.spent_by {
            if coin.spent_by.is_none_or(|spender| self.dead.contains(&spender)) {
                self.open.insert(outpoint);
            } else {
                self.open.remove(&outpoint);
            }
        }
    }

    /// Changes all coins; it takes as long as there are coins.
    pub(super) fn change_all(&mut self, change: &dyn Fn(&mut Coin)) {
        let all: Vec<OutPoint> = self.coins.keys().copied().collect();
        for outpoint in all {
            self.change(&outpoint, change);
        }
    }

    /// What these spend is unspent: they can be in no block any more.
    pub(super) fn reopen(&mut self, spenders: BTreeSet<Txid>) {
        if spenders.is_empty() {
            return;
        }
        let spends = |coin: &&Coin| coin.spent_by.is_some_and(|spender| spenders.contains(&spender));
        let again: Vec<OutPoint> = self.all().filter(spends).map(|coin| coin.outpoint).collect();
        self.open.extend(again);
        self.dead.extend(spenders);
    }

    /// It may be in a block after all. What it spends is closed when it is looked at.
    pub(super) fn revive(&mut self, spender: &Txid) {
        self.dead.remove(spender);
    }

    /// Forgets what a server said, which was not saved either.
    pub(super) fn forget_claims(&mut self) {
        for coin in self.coins.values_mut() {
            coin.claim = Claim::default();
        }
    }

    /// What changed since this was last called.
    pub(super) fn take_touched(&mut self) -> BTreeSet<OutPoint> {
        std::mem::take(&mut self.touched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Keychain, KeychainIndex};
    use bitcoin::{Amount, ScriptBuf};

    fn coin(number: u8) -> Coin {
        let outpoint = OutPoint { txid: Txid::from_byte_array([number; 32]), vout: 0 };
        let position = KeychainIndex { keychain: Keychain::Receive, index: number.into() };
        Coin::new(outpoint, Amount::ONE_BTC, ScriptBuf::from_bytes(vec![number]), position)
    }

    #[test]
    fn an_address_has_what_was_paid_to_it() {
        let mut coins = CoinSet::default();
        (0..100).for_each(|number| coins.add(coin(number)));
        let again = Coin { outpoint: OutPoint { vout: 7, ..coin(3).outpoint }, ..coin(3) };
        coins.add(again.clone());
        let at = |coins: &CoinSet| coins.at(coin(3).position).map(|coin| coin.outpoint).collect::<Vec<_>>();
        assert_eq!(at(&coins), [coin(3).outpoint, again.outpoint]);
        coins.change(&again.outpoint, |coin| coin.spent_by = Some(Txid::all_zeros()));
        coins.remove(&coin(3).outpoint);
        assert_eq!(at(&coins), [again.outpoint], "spent or not");
    }

    #[test]
    fn what_is_spent_is_not_looked_at_again_until_its_spender_is_dead() {
        let mut coins = CoinSet::default();
        (0..100).for_each(|number| coins.add(coin(number)));
        let spender = |number: u8| Txid::from_byte_array([number + 100; 32]);
        for number in 1..100 {
            coins.change(&coin(number).outpoint, |coin| coin.spent_by = Some(spender(number)));
        }
        let open = |coins: &CoinSet| coins.open().map(|coin| coin.position.index).collect::<Vec<_>>();
        assert_eq!(open(&coins), [0]);
        assert_eq!(coins.all().count(), 100);
        coins.reopen(BTreeSet::from([spender(7)]));
        assert_eq!(open(&coins), [0, 7]);
        // What else is learned of a coin closes none.
        coins.change(&coin(7).outpoint, |coin| coin.coinbase = true);
        assert_eq!(open(&coins), [0, 7]);
        coins.change(&coin(9).outpoint, |coin| coin.spent_by = None);
        coins.remove(&coin(0).outpoint);
        assert_eq!(open(&coins), [7, 9]);
        // One that is dead already closes nothing that it is found to spend.
        coins.change(&coin(9).outpoint, |coin| coin.spent_by = Some(spender(7)));
        assert_eq!(open(&coins), [7, 9]);
        coins.revive(&spender(7));
        coins.change(&coin(9).outpoint, |coin| coin.spent_by = None);
        coins.change(&coin(9).outpoint, |coin| coin.spent_by = Some(spender(7)));
        assert_eq!(open(&coins), [7]);
        // A saved wallet opens with the same.
        let mut again = CoinSet::default();
        coins.all().for_each(|coin| again.restore(coin.clone()));
        again.reopen(BTreeSet::from([spender(7)]));
        assert_eq!(open(&again), [7, 9], "both are of the dead one");
        assert!(again.take_touched().is_empty());
    }

    #[test]
    fn only_what_changed_is_saved_and_a_transaction_has_its_coins() {
        let mut coins = CoinSet::default();
        let one = coin(1);
        coins.add(one.clone());
        assert_eq!(coins.take_touched(), BTreeSet::from([one.outpoint]));
        coins.change(&one.outpoint, |coin| coin.coinbase = false);
        assert!(coins.take_touched().is_empty());
        coins.change_all(&|coin| coin.coinbase = true);
        assert_eq!(coins.take_touched(), BTreeSet::from([one.outpoint]));
        assert_eq!((coins.of(one.outpoint.txid).count(), coins.of(coin(2).outpoint.txid).count()), (1, 0));
        coins.remove(&one.outpoint);
        assert_eq!((coins.all().count(), coins.open().count()), (0, 0));
        assert_eq!(coins.take_touched(), BTreeSet::from([one.outpoint]), "that it is gone is saved, too");
    }
}
