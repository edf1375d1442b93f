//! What happened to a wallet's coins, and the history of it.

use super::coins::{Balance, Claim, Coin, CoinState, Demands, HistoryEntry};
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
    coins: BTreeMap<OutPoint, Coin>,
    history: Vec<HistoryEntry>,
    index: HashMap<Txid, usize>,
    conflicts: Vec<(Txid, ConfirmedSpend)>,
    touched_coins: BTreeSet<OutPoint>,
    touched_history: BTreeSet<usize>,
}

type Addresses = BTreeMap<ScriptBuf, Address>;

impl CoinBook {
    pub(super) fn coins(&self) -> impl Iterator<Item = &Coin> + '_ {
        self.coins.values()
    }

    pub(super) fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(super) fn history(&self) -> &[HistoryEntry] {
        &self.history
    }

    /// Coins and history entries that changed since this was last called.
    pub(super) fn take_touched(&mut self) -> (BTreeSet<OutPoint>, BTreeSet<usize>) {
        (std::mem::take(&mut self.touched_coins), std::mem::take(&mut self.touched_history))
    }

    pub(super) fn restore_coin(&mut self, coin: Coin) {
        self.coins.insert(coin.outpoint, coin);
    }

    pub(super) fn restore_entry(&mut self, entry: HistoryEntry) {
        self.index.insert(entry.txid, self.history.len());
        self.history.push(entry);
    }

    fn coin_mut(&mut self, outpoint: &OutPoint) -> Option<&mut Coin> {
        let coin = self.coins.get_mut(outpoint)?;
        self.touched_coins.insert(*outpoint);
        Some(coin)
    }

    /// Coins that nothing verified spends, with their state.
    pub(super) fn unspent<'a>(
        &'a self,
        demands: Demands<'a>,
    ) -> impl Iterator<Item = (&'a Coin, CoinState)> + 'a {
        let unspent = self.coins.values().filter(|coin| self.is_unspent(coin));
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
            *bucket = bucket.checked_add(coin.value).unwrap_or(Amount::MAX_MONEY);
        }
        balance
    }

    pub(super) fn knows_final(&self, txid: Txid) -> bool {
        self.entry(txid).is_some_and(|entry| entry.finality.is_some())
    }

    fn entry(&self, txid: Txid) -> Option<&HistoryEntry> {
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
        let txid = checked.plan.txid;
        for input in &checked.transaction.input {
            if let Some(coin) = self.coin_mut(&input.previous_output) {
                coin.locked_by = Some(txid);
            }
        }
        let _entry = self.entry_mut(&checked.transaction, addresses);
    }

    pub(super) fn abandon(&mut self, txid: Txid) {
        for coin in self.coins.values_mut().filter(|coin| coin.held_by() == Some(txid)) {
            (coin.locked_by, coin.claim.holder) = (None, None);
            self.touched_coins.insert(coin.outpoint);
        }
    }

    /// Forgets what a server said of coins that nobody can prove.
    pub(super) fn forget_claims(&mut self) {
        for coin in self.coins.values_mut() {
            coin.claim = Claim::default();
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
        let before = self.coins.get(&record.outpoint).cloned();
        let coin = self.coins.entry(record.outpoint).or_insert_with(|| Coin {
            outpoint: record.outpoint,
            value: record.value,
            script_pubkey: record.script_pubkey.clone(),
            position,
            finality: None,
            deadline: None,
            block: None,
            coinbase: false,
            conflicted: None,
            spent_by: None,
            locked_by: None,
            claim: Claim::default(),
        });
        if record.round.0 >= coin.claim.round {
            coin.claim = Claim { round: record.round.0, holder: record.lock.map(|lock| lock.txid) };
        }
        if before.as_ref() != Some(&*coin) {
            self.touched_coins.insert(record.outpoint);
        }
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
            }
            for coin in self.coins.values_mut().filter(|coin| coin.outpoint.txid == txid) {
                coin.conflicted = Some(by);
                self.touched_coins.insert(coin.outpoint);
                open.extend(coin.spent_by.or(coin.locked_by));
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
                if self.coins.remove(&outpoint).is_some() {
                    self.touched_coins.insert(outpoint);
                }
                continue;
            };
            self.touched_coins.insert(outpoint);
            let coin = self.coins.entry(outpoint).or_insert_with(|| Coin {
                outpoint,
                value: output.value,
                script_pubkey: output.script_pubkey.clone(),
                position: address.position,
                finality: None,
                deadline: None,
                block: None,
                coinbase: false,
                conflicted: None,
                spent_by: None,
                locked_by: None,
                claim: Claim::default(),
            });
            (coin.value, coin.script_pubkey) = (output.value, output.script_pubkey.clone());
            coin.position = address.position;
            let was_known = coin.finality.is_some() || coin.block.is_some();
            mark(coin);
            spenders.extend(coin.spent_by.filter(|_| !was_known));
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
            if let Some(coin) = self.coin_mut(&input.previous_output) {
                (coin.spent_by, coin.locked_by) = (Some(spender), None);
            }
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
        let of = self.coins.values().filter(|coin| coin.spent_by == Some(spender));
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
        transaction.input.iter().any(|input| self.coins.contains_key(&input.previous_output))
    }

    /// Forgets blocks that a reorganisation took; gives the transactions that were in them.
    pub(super) fn drop_blocks_outside(&mut self, chain: &HeaderChain) -> Vec<Txid> {
        let mut lost = BTreeSet::new();
        for (index, entry) in self.history.iter_mut().enumerate() {
            if entry.block.is_some_and(|block| !chain.contains(&block)) {
                self.touched_history.insert(index);
                entry.block = None;
                lost.insert(entry.txid);
            }
            if entry.conflicted.is_some_and(|by| !chain.contains(&by.block)) {
                self.touched_history.insert(index);
                entry.conflicted = None;
                // Another block may contradict it now.
                lost.insert(entry.txid);
            }
        }
        for coin in self.coins.values_mut() {
            if coin.block.is_some_and(|block| !chain.contains(&block)) {
                coin.block = None;
                self.touched_coins.insert(coin.outpoint);
            }
            if coin.conflicted.is_some_and(|by| !chain.contains(&by.block)) {
                coin.conflicted = None;
                self.touched_coins.insert(coin.outpoint);
            }
            // A spend that was only in a lost block is open again; a final one stands.
            let still = |txid: &Txid| {
                let entry = self.index.get(txid).and_then(|index| self.history.get(*index));
                entry.is_some_and(|entry| entry.finality.is_some() || entry.block.is_some())
            };
            let open = coin.spent_by.filter(still);
            if coin.spent_by != open {
                coin.spent_by = open;
                self.touched_coins.insert(coin.outpoint);
            }
        }
        lost.into_iter().collect()
    }

    /// A final transaction spends its coins, whatever a block that was undone had spent them with.
    pub(super) fn restore_spends(&mut self, txid: Txid, outpoints: impl IntoIterator<Item = OutPoint>) {
        for outpoint in outpoints {
            if self.coins.get(&outpoint).is_some_and(|coin| coin.spent_by.is_none())
                && let Some(coin) = self.coin_mut(&outpoint)
            {
                coin.spent_by = Some(txid);
            }
        }
    }
}
