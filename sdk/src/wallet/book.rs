//! What happened to a wallet's coins, and the history of it.

use super::{
    coin_set::CoinSet,
    coins::{Balance, Claim, Coin, CoinState, Demands, HistoryEntry},
};
use crate::{
    account::{Address, KeychainIndex},
    finality::FinalityKind,
    headers::HeaderChain,
    proposal::CheckedProposal,
    relay_policy::bounded_sum,
    wire::{BlockRef, ConfirmedSpend, UtxoRecord},
};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, Txid};
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Debug, Default)]
pub(super) struct CoinBook {
    coins: CoinSet,
    history: Vec<HistoryEntry>,
    index: HashMap<Txid, usize>,
    /// What of the history is in no block.
    unplaced: BTreeSet<usize>,
    conflicts: Vec<(Txid, ConfirmedSpend)>,
    touched_history: BTreeSet<usize>,
}

type Addresses = BTreeMap<ScriptBuf, Address>;

impl CoinBook {
    pub(super) fn coins(&self) -> &CoinSet {
        &self.coins
    }

    pub(super) fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(super) fn history(&self) -> &[HistoryEntry] {
        &self.history
    }

    /// What of the history is in no block and may come into one.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &HistoryEntry> {
        let unplaced = self.unplaced.iter().filter_map(|index| self.history.get(*index));
        unplaced.filter(|entry| entry.conflicted.is_none())
    }

    /// Coins and history entries that changed since this was last called.
    pub(super) fn take_touched(&mut self) -> (BTreeSet<OutPoint>, BTreeSet<usize>) {
        (self.coins.take_touched(), std::mem::take(&mut self.touched_history))
    }

    /// What was saved, once for all.
    pub(super) fn restore(&mut self, coins: Vec<Coin>, history: Vec<HistoryEntry>) {
        coins.into_iter().for_each(|coin| self.coins.restore(coin));
        self.index = history.iter().map(|entry| entry.txid).zip(0..).collect();
        let unplaced = history.iter().zip(0..).filter(|(entry, _)| entry.block.is_none());
        self.unplaced = unplaced.map(|(_, index)| index).collect();
        let dead = history.iter().filter(|entry| entry.conflicted.is_some()).map(|entry| entry.txid);
        self.coins.reopen(dead.collect());
        self.history = history;
    }

    /// Coins that nothing verified spends, with their state.
    pub(super) fn unspent<'a>(
        &'a self,
        demands: Demands<'a>,
    ) -> impl Iterator<Item = (&'a Coin, CoinState)> + 'a {
        let unspent = self.coins.open().filter(|coin| self.is_unspent(coin));
        debug_assert_eq!(
            unspent.clone().map(|coin| coin.outpoint).collect::<Vec<_>>(),
            self.coins
                .all()
                .filter(|coin| self.is_unspent(coin))
                .map(|coin| coin.outpoint)
                .collect::<Vec<_>>(),
        );
        unspent.map(move |coin| (coin, coin.state(&demands)))
    }

    /// Nothing verified spends it, or only what can be in no block any more.
    pub(super) fn is_unspent(&self, coin: &Coin) -> bool {
        let dead = |txid| self.entry(txid).is_some_and(|entry| entry.conflicted.is_some());
        coin.spent_by.is_none_or(dead)
    }

    pub(super) fn balance(&self, demands: Demands<'_>) -> Balance {
        let mut balance = Balance::default();
        for (coin, state) in self.unspent(demands) {
            let bucket = match state {
                CoinState::Spendable { .. } => &mut balance.spendable,
                CoinState::Incoming => &mut balance.incoming,
                CoinState::Immature => &mut balance.immature,
                CoinState::Locked => &mut balance.locked,
                CoinState::Expired { .. } => &mut balance.expired,
                CoinState::Conflicted { .. } => continue,
            };
            *bucket = bounded_sum([*bucket, coin.value]);
        }
        balance
    }

    pub(super) fn knows_final(&self, txid: Txid) -> bool {
        self.entry(txid).is_some_and(|entry| entry.finality.is_some())
    }

    pub(super) fn entry(&self, txid: Txid) -> Option<&HistoryEntry> {
        self.history.get(*self.index.get(&txid)?)
    }

    fn entry_mut(&mut self, transaction: &Transaction, addresses: &Addresses) -> Option<&mut HistoryEntry> {
        let txid = transaction.compute_txid();
        if !self.index.contains_key(&txid) {
            let own = |output: &&bitcoin::TxOut| addresses.contains_key(&output.script_pubkey);
            let received = bounded_sum(transaction.output.iter().filter(own).map(|output| output.value));
            let inputs = transaction.input.iter().filter_map(|input| self.coins.get(&input.previous_output));
            // What is only claimed of a coin counts for nothing.
            let verified = inputs.filter(|coin| coin.finality.is_some() || coin.block.is_some());
            let spent = bounded_sum(verified.map(|coin| coin.value));
            if received == Amount::ZERO && spent == Amount::ZERO {
                return None;
            }
            self.index.insert(txid, self.history.len());
            self.unplaced.insert(self.history.len());
            self.history.push(HistoryEntry {
                txid,
                received,
                spent,
                finality: None,
                block: None,
                conflicted: None,
            });
        }
        let index = *self.index.get(&txid)?;
        self.touched_history.insert(index);
        self.history.get_mut(index)
    }

    pub(super) fn propose(&mut self, checked: &CheckedProposal, addresses: &Addresses) {
        self.hold(checked);
        let _entry = self.entry_mut(&checked.transaction, addresses);
    }

    /// Reserves the coins of a payment.
    pub(super) fn hold(&mut self, checked: &CheckedProposal) {
        let txid = checked.plan.txid;
        for input in &checked.transaction.input {
            self.coins.change(&input.previous_output, |coin| coin.locked_by = Some(txid));
        }
    }

    pub(super) fn abandon(&mut self, txid: Txid) {
        self.coins.change_all(&|coin| {
            if coin.held_by() == Some(txid) {
                (coin.locked_by, coin.claim.holder) = (None, None);
            }
        });
    }

    /// Forgets what a server said of coins that nobody can prove.
    pub(super) fn forget_claims(&mut self) {
        self.coins.forget_claims();
    }

    /// Coins that nothing verified shows, and that the present server does not tell of.
    pub(super) fn unclaimed(&self) -> Vec<OutPoint> {
        let shown = |coin: &Coin| coin.finality.is_some() || coin.block.is_some() || coin.claim.made;
        let open = self.coins.open().filter(|coin| coin.spent_by.is_none() && coin.locked_by.is_none());
        open.filter(|coin| !shown(coin)).map(|coin| coin.outpoint).collect()
    }

    /// Forgets them.
    pub(super) fn drop_unclaimed(&mut self) {
        for outpoint in self.unclaimed() {
            self.coins.remove(&outpoint);
        }
    }

    /// Takes in claims; gives transactions that should be proven to be in a block.
    pub(super) fn apply_record(
        &mut self,
        record: &UtxoRecord,
        position: KeychainIndex,
        chain: &HeaderChain,
    ) -> Vec<Txid> {
        if record.value > Amount::MAX_MONEY {
            return Vec::new();
        }
        if self.coins.get(&record.outpoint).is_none() {
            let script = record.script_pubkey.clone();
            self.coins.add(Coin::new(record.outpoint, record.value, script, position));
        }
        let made = record.created.is_some() || record.final_parent.is_some();
        let said = Claim { made, round: record.round.0, holder: record.lock.map(|lock| lock.txid) };
        self.coins.change(&record.outpoint, |coin| {
            if said.round >= coin.claim.round {
                coin.claim = said;
            }
            coin.claim.made = made;
        });
        let Some(coin) = self.coins.get(&record.outpoint) else { return Vec::new() };
        let proven = coin.block.is_some_and(|block| chain.contains(&block));
        let dead = coin.conflicted.is_some();
        let placed = record.created.is_some() || record.conflicted.is_some_and(|_| !dead);
        let created = Some(record.outpoint.txid).filter(|_| placed && !proven);
        let spent = record.spent.map(|spent| spent.txid);
        let spent = spent.filter(|txid| self.entry(*txid).is_none_or(|entry| entry.block.is_none()));
        created.into_iter().chain(spent).collect()
    }

    /// Marks a transaction that can be in no block any more, and all of this wallet that descends from it. One in a
    /// block of the chain is not.
    pub(super) fn apply_conflict(&mut self, txid: Txid, by: ConfirmedSpend) {
        let mut open = vec![txid];
        let mut seen = BTreeSet::new();
        while let Some(txid) = open.pop() {
            if !seen.insert(txid) {
                continue;
            }
            // Coins of a transaction that counts for nothing yet have no entry.
            if let Some((index, entry)) =
                self.index.get(&txid).and_then(|index| Some((*index, self.history.get_mut(*index)?)))
            {
                if entry.block.is_some() || entry.conflicted.is_some() {
                    continue;
                }
                entry.conflicted = Some(by);
                self.touched_history.insert(index);
                self.conflicts.push((txid, by));
                self.coins.reopen(BTreeSet::from([txid]));
            }
            let outputs: Vec<OutPoint> = self.coins.of(txid).map(|coin| coin.outpoint).collect();
            for outpoint in outputs {
                self.coins.change(&outpoint, |coin| {
                    coin.conflicted = Some(by);
                    open.extend(coin.spent_by.or(coin.locked_by));
                });
            }
        }
    }

    /// What was found to be dead since this was last called.
    pub(super) fn take_conflicts(&mut self) -> Vec<(Txid, ConfirmedSpend)> {
        std::mem::take(&mut self.conflicts)
    }

    pub(super) fn apply_final(
        &mut self,
        transaction: &Transaction,
        kind: FinalityKind,
        deadline: Option<u32>,
        addresses: &Addresses,
    ) -> bool {
        let Some(entry) = self.entry_mut(transaction, addresses) else { return false };
        entry.finality = Some(kind);
        self.apply_outputs(transaction, addresses, |coin| {
            (coin.finality, coin.deadline) = (Some(kind), deadline);
        });
        true
    }

    pub(super) fn apply_block(
        &mut self,
        transaction: &Transaction,
        block: BlockRef,
        addresses: &Addresses,
    ) -> bool {
        let Some(entry) = self.entry_mut(transaction, addresses) else { return false };
        let news = entry.block != Some(block);
        entry.block = Some(block);
        if let Some(index) = self.index.get(&transaction.compute_txid()) {
            self.unplaced.remove(index);
        }
        let coinbase = transaction.is_coinbase();
        self.apply_outputs(transaction, addresses, |coin| {
            (coin.block, coin.coinbase) = (Some(block), coinbase);
        });
        news
    }

    /// A verified transaction is the truth about its outputs and inputs, whatever was claimed before.
    fn apply_outputs(&mut self, transaction: &Transaction, addresses: &Addresses, mark: impl Fn(&mut Coin)) {
        let txid = transaction.compute_txid();
        let mut spenders = BTreeSet::new();
        for (output, vout) in transaction.output.iter().zip(0..) {
            let outpoint = OutPoint { txid, vout };
            let Some(address) = addresses.get(&output.script_pubkey) else {
                self.coins.remove(&outpoint);
                continue;
            };
            let script = &output.script_pubkey;
            if self.coins.get(&outpoint).is_none() {
                self.coins.add(Coin::new(outpoint, output.value, script.clone(), address.position));
            }
            self.coins.change(&outpoint, |coin| {
                (coin.value, coin.script_pubkey) = (output.value, script.clone());
                coin.position = address.position;
                let was_known = coin.finality.is_some() || coin.block.is_some();
                mark(coin);
                spenders.extend(coin.spent_by.filter(|_| !was_known));
            });
        }
        for spender in spenders {
            self.count_spent(spender);
        }
        let place = |book: &Self, txid: Txid| book.entry(txid).and_then(|entry| entry.block);
        let mut contradicted = Vec::new();
        for input in &transaction.input {
            let Some(coin) = self.coins.get(&input.previous_output) else { continue };
            let other = coin.spent_by.or(coin.locked_by).filter(|other| *other != txid);
            let mut spender = txid;
            match (place(self, txid), other.map(|other| (other, place(self, other)))) {
                (Some(block), Some((other, None))) => {
                    contradicted.push((other, ConfirmedSpend { txid, block }))
                }
                (None, Some((other, Some(block)))) => {
                    contradicted.push((txid, ConfirmedSpend { txid: other, block }));
                    spender = other;
                }
                (_, Some(_) | None) => {}
            }
            self.coins.change(&input.previous_output, |coin| {
                (coin.spent_by, coin.locked_by) = (Some(spender), None);
            });
        }
        let inputs = transaction.input.iter().filter_map(|input| self.coins.get(&input.previous_output));
        if let Some(by) = inputs.filter_map(|coin| coin.conflicted).next() {
            contradicted.push((txid, by));
        }
        for (txid, by) in contradicted {
            self.apply_conflict(txid, by);
        }
    }

    /// A coin is verified that a transaction of the history spends, which was there first and did not count it.
    fn count_spent(&mut self, spender: Txid) {
        let of = self.coins.all().filter(|coin| coin.spent_by == Some(spender));
        let verified = of.filter(|coin| coin.finality.is_some() || coin.block.is_some());
        let spent = bounded_sum(verified.map(|coin| coin.value));
        if let Some(index) = self.index.get(&spender).copied()
            && let Some(entry) = self.history.get_mut(index)
            && entry.spent < spent
        {
            entry.spent = spent;
            self.touched_history.insert(index);
        }
    }

    /// Whether a transaction spends a coin that is this wallet's by what somebody says, at least.
    pub(super) fn may_spend_own(&self, transaction: &Transaction) -> bool {
        transaction.input.iter().any(|input| self.coins.get(&input.previous_output).is_some())
    }

    /// Forgets blocks that a reorganisation took; gives the transactions that were in them.
    pub(super) fn drop_blocks_outside(&mut self, chain: &HeaderChain) -> Vec<Txid> {
        let mut lost = BTreeSet::new();
        for (index, entry) in self.history.iter_mut().enumerate() {
            if entry.block.is_some_and(|block| !chain.contains(&block)) {
                self.touched_history.insert(index);
                self.unplaced.insert(index);
                entry.block = None;
                lost.insert(entry.txid);
            }
            if entry.conflicted.is_some_and(|by| !chain.contains(&by.block)) {
                self.touched_history.insert(index);
                entry.conflicted = None;
                self.coins.revive(&entry.txid);
                // Another block may contradict it now.
                lost.insert(entry.txid);
            }
        }
        let (index, history) = (&self.index, &self.history);
        // A spend that was only in a lost block is open again; a final one stands.
        let still = |txid: &Txid| {
            let entry = index.get(txid).and_then(|index| history.get(*index));
            entry.is_some_and(|entry| entry.finality.is_some() || entry.block.is_some())
        };
        self.coins.change_all(&|coin| {
            if coin.block.is_some_and(|block| !chain.contains(&block)) {
                // It may be in no other one.
                (coin.block, coin.claim.made) = (None, false);
            }
            coin.conflicted = coin.conflicted.filter(|by| chain.contains(&by.block));
            coin.spent_by = coin.spent_by.filter(still);
        });
        lost.into_iter().collect()
    }

    /// A final transaction spends its coins, whatever a block that was undone had spent them with.
    pub(super) fn restore_spends(&mut self, txid: Txid, outpoints: impl IntoIterator<Item = OutPoint>) {
        for outpoint in outpoints {
            self.coins.change(&outpoint, |coin| coin.spent_by = coin.spent_by.or(Some(txid)));
        }
    }
}
