//! How a session hears of its coins: by the account, one key for all its addresses, and by the scripts of addresses
//! that were given out further ahead than nodes look; or by every script, if a server has no room for the account.
//!
//! A wallet that comes back asks for what has changed since it was last told everything, and not for its whole life.
//! If a coin that it has is not among what comes then, it was told too little before: it asks for everything.

use super::{Session, pending::Pending};
use crate::{
    wallet::SettledUntil,
    wire::{ClientMessage, KeyResult, SubscriptionKey, UtxoRecord, WireError, limits},
};
use bitcoin::{OutPoint, ScriptBuf};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a session is subscribed to.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The server does not follow this account.
    by_script: bool,
    /// Scripts beyond those that nodes follow with the account.
    single: BTreeSet<ScriptBuf>,
    /// What it asked for.
    asked: Option<SettledUntil>,
    /// Addresses that were derived meanwhile.
    derived: Vec<ScriptBuf>,
    /// What was told of scripts that this wallet does not know yet: news of one address can overtake those of another
    /// one before it.
    early: BTreeMap<OutPoint, UtxoRecord>,
}

/// Records that wait for their address.
const EARLY_MAX: usize = 1_000;

impl Session {
    /// After a connect: subscribes to everything.
    pub(super) fn follow_all(&mut self) {
        self.following = Following::default();
        self.follow_account(self.wallet.settled_until());
        self.follow_new();
    }

    fn account_key(&self) -> SubscriptionKey {
        SubscriptionKey::Account(self.wallet.account().id())
    }

    fn follow_account(&mut self, known: SettledUntil) {
        self.following.asked = Some(known);
        self.subscribe_keys(vec![self.account_key()]);
    }

    /// After a gap: subscribes again, to what has changed since all was known.
    pub(super) fn follow_again(&mut self, mut keys: Vec<SubscriptionKey>) {
        let account = self.account_key();
        if keys.contains(&account) {
            keys.retain(|key| *key != account);
            self.follow_account(self.wallet.settled_until());
        }
        self.subscribe_keys(keys);
    }

    /// Subscribes to scripts that were not subscribed to before, and ends subscriptions that the account's is in the
    /// place of by now.
    pub(super) fn follow_new(&mut self) {
        if !self.is_live() {
            return;
        }
        let mut new = std::mem::take(&mut self.following.derived);
        new.extend(self.wallet.take_unwatched());
        if self.following.by_script {
            return self.subscribe(new);
        }
        let wanted = self.wallet.beyond_account();
        let more: Vec<ScriptBuf> = wanted.difference(&self.following.single).cloned().collect();
        let over: Vec<ScriptBuf> = self.following.single.difference(&wanted).cloned().collect();
        self.following.single = wanted;
        self.subscribe(more);
        let over: Vec<_> = over.into_iter().map(SubscriptionKey::Script).collect();
        for keys in over.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            let message = ClientMessage::UTXOUnsubscribe { keys: keys.to_vec() };
            self.request(Pending::Unsubscribe, &message);
        }
    }

    /// Whether this session has a use for an account or a script that a server names.
    pub(super) fn follows(&self, key: &SubscriptionKey) -> bool {
        let SubscriptionKey::Script(script) = key else {
            return !self.following.by_script && *key == self.account_key();
        };
        if self.following.by_script {
            self.wallet.owns(script)
        } else {
            self.following.single.contains(script)
        }
    }

    /// A subscription to some keys.
    pub(super) fn subscription(&self, keys: &[SubscriptionKey]) -> ClientMessage {
        let record = || (self.wallet.account().id(), self.wallet.account().record().clone());
        let account = keys.contains(&self.account_key());
        ClientMessage::UTXOSubscribe {
            keys: keys.to_vec(),
            accounts: account.then(record).into_iter().collect::<BTreeMap<_, _>>(),
            since: self.following.asked.filter(|_| account).and_then(|known| known.height()),
        }
    }

    /// The server refuses a key for good. Of the account: its scripts are subscribed to one by one. `false` if it was
    /// another key.
    pub(super) fn follow_scripts(&mut self, key: &SubscriptionKey, error: &WireError) -> bool {
        if *key != self.account_key() || error.retry {
            return false;
        }
        if !self.following.by_script {
            self.following = Following { by_script: true, ..Following::default() };
            let _among_all = self.wallet.take_unwatched();
            self.subscribe(self.wallet.scripts());
        }
        true
    }

    /// Takes in what was told of outputs. One may lead to the address of the next: they come in any order.
    pub(super) fn take_records(&mut self, records: Vec<UtxoRecord>) {
        let early = std::mem::take(&mut self.following.early).into_values();
        let mut by_script: HashMap<ScriptBuf, Vec<UtxoRecord>> = HashMap::new();
        for record in early.chain(records) {
            by_script.entry(record.script_pubkey.clone()).or_default().push(record);
        }
        let mut known: Vec<ScriptBuf> =
            by_script.keys().filter(|script| self.wallet.owns(script)).cloned().collect();
        while let Some(script) = known.pop() {
            let records = by_script.remove(&script).unwrap_or_default();
            records.iter().for_each(|record| self.take_record(record));
            let new = self.wallet.take_unwatched();
            known.extend(new.iter().filter(|script| by_script.contains_key(*script)).cloned());
            self.following.derived.extend(new);
        }
        let early = by_script.into_values().flatten().take(EARLY_MAX);
        self.following.early = early.map(|record| (record.outpoint, record)).collect();
    }

    /// An answer has come, if it was asked for. Coins of this wallet that it should name and does not have been spent,
    /// and this wallet was not told.
    pub(super) fn compare(&mut self, id: Option<u64>, results: &[KeyResult]) {
        let account = self.account_key();
        let asked = id.is_some_and(|id| self.pending.contains_key(&id));
        let answer = results.iter().find(|result| asked && result.key == account);
        let Some(utxos) = answer.and_then(KeyResult::utxos) else { return };
        let named: BTreeSet<OutPoint> = utxos.iter().map(|utxo: &UtxoRecord| utxo.outpoint).collect();
        let asked_for_less = self.following.asked.is_some_and(|known| known.height().is_some());
        if asked_for_less && self.wallet.confirmed_coins().any(|outpoint| !named.contains(&outpoint)) {
            self.follow_account(SettledUntil::default());
        }
    }

    /// Everything that was asked for has been answered.
    pub(super) fn note_synced(&mut self) {
        let whole =
            self.following.by_script || self.following.asked.is_some_and(|known| known.height().is_none());
        self.wallet.settle_until_now(whole);
    }
}

#[cfg(test)]
#[path = "following_tests.rs"]
mod tests;
