//! How a session hears of its coins: by the account, one key for all its addresses, and by the scripts of addresses
//! that were given out further ahead than nodes look; or by every script, if a server has no room for the account.
//!
//! A wallet that comes back asks for what has changed since it was last told everything, and not for its whole life.
//! If a coin that it has is not among what comes then, it was told too little before: it asks for everything.

use super::{Session, pending::Pending};
use crate::{
    finality::FinalityProof,
    wallet::SettledUntil,
    wire::{ClientMessage, Followed, KeyOutcome, KeyResult, SubscriptionKey, UtxoRecord, WireError, limits},
};
use bitcoin::{OutPoint, ScriptBuf};
use std::collections::{BTreeMap, BTreeSet};

/// Records that wait for their address.
const EARLY_MAX: usize = 1_000;

/// What a session is subscribed to.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The server does not follow this account.
    by_script: bool,
    /// Addresses that it follows with the account, once it has said so.
    followed: Option<Followed>,
    /// Scripts beyond them.
    single: BTreeSet<ScriptBuf>,
    /// What was asked for last.
    asked: SettledUntil,
    /// Whether what was told is everything, once something was.
    whole: Option<bool>,
    /// Something that should be watched is not.
    refused: bool,
    /// Coins that an answer to the question for everything did not name.
    absent: BTreeSet<OutPoint>,
    /// Addresses that were derived meanwhile.
    derived: Vec<ScriptBuf>,
    /// What was told of scripts that this wallet does not know yet: news of one address can overtake those of another
    /// one before it.
    early: BTreeMap<OutPoint, (UtxoRecord, Option<FinalityProof>)>,
}

impl Session {
    /// After a connect: subscribes to everything.
    pub(super) fn follow_all(&mut self) {
        self.following = Following::default();
        self.follow_account(self.wallet.settled_until());
    }

    fn account_key(&self) -> SubscriptionKey {
        SubscriptionKey::Account(self.wallet.account().id())
    }

    fn follow_account(&mut self, known: SettledUntil) {
        self.following.asked = known;
        self.subscribe_keys(vec![self.account_key()]);
    }

    /// After a gap: subscribes again, to what has changed since the same time as before.
    pub(super) fn follow_again(&mut self, mut keys: Vec<SubscriptionKey>) {
        let account = self.account_key();
        if keys.contains(&account) {
            keys.retain(|key| *key != account);
            self.follow_account(self.following.asked);
        }
        self.subscribe_keys(keys);
    }

    /// Addresses that the server follows with the account.
    pub(super) fn take_followed(&mut self, key: &SubscriptionKey, followed: Option<Followed>) {
        if *key == self.account_key() && followed.is_some() {
            self.following.followed = followed;
        }
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
        // Before the server has said how far it looks there is nothing to add.
        let Some(followed) = self.following.followed else { return };
        let wanted = self.wallet.beyond(followed);
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

    /// A subscription to some keys, and since when news of them is wanted.
    pub(super) fn subscription(&self, keys: &[SubscriptionKey]) -> (ClientMessage, Option<u32>) {
        let record = || (self.wallet.account().id(), self.wallet.account().record().clone());
        let account = keys.contains(&self.account_key());
        let since = self.following.asked.height().filter(|_| account);
        let accounts = account.then(record).into_iter().collect();
        (ClientMessage::UTXOSubscribe { keys: keys.to_vec(), accounts, since }, since)
    }

    /// The server refuses a key for good. If that is the account, its scripts are subscribed to one by one. `false` if
    /// it was another key.
    pub(super) fn follow_scripts(&mut self, key: &SubscriptionKey, error: &WireError) -> bool {
        if *key != self.account_key() || error.retry {
            self.following.refused = true;
            return false;
        }
        if !self.following.by_script {
            self.following = Following { by_script: true, ..Following::default() };
            let _among_all = self.wallet.take_unwatched();
            self.subscribe(self.wallet.scripts());
        }
        true
    }

    /// Takes in what was told of outputs, with proofs. One may lead to the address of the next: they come in any order.
    pub(super) fn take_records(&mut self, records: Vec<(UtxoRecord, Option<FinalityProof>)>) {
        let early = std::mem::take(&mut self.following.early).into_values();
        let mut by_script: BTreeMap<ScriptBuf, Vec<_>> = BTreeMap::new();
        for record in early.chain(records) {
            by_script.entry(record.0.script_pubkey.clone()).or_default().push(record);
        }
        let mut known: Vec<ScriptBuf> =
            by_script.keys().filter(|script| self.wallet.owns(script)).cloned().collect();
        loop {
            while let Some(script) = known.pop() {
                for (record, proof) in by_script.remove(&script).unwrap_or_default() {
                    self.take_record(&record);
                    if let Some(proof) = proof {
                        self.take_proof(&proof);
                    }
                }
                known.extend(self.take_derived(|script| by_script.contains_key(script)));
            }
            let unknown = !by_script.is_empty() && !self.following.by_script;
            let found = unknown
                && self.wallet.look_ahead(|script| by_script.contains_key(script)).unwrap_or_else(|error| {
                    self.misbehaved(&error);
                    false
                });
            if !found {
                break;
            }
            known.extend(self.take_derived(|script| by_script.contains_key(script)));
        }
        let early = by_script.into_values().flatten().take(EARLY_MAX);
        self.following.early = early.map(|(record, proof)| (record.outpoint, (record, proof))).collect();
    }

    /// Those of some scripts whose addresses have just been derived.
    fn take_derived(&mut self, is_wanted: impl Fn(&ScriptBuf) -> bool) -> Vec<ScriptBuf> {
        let new = self.wallet.take_unwatched();
        let wanted = new.iter().filter(|script| is_wanted(script)).cloned().collect();
        self.following.derived.extend(new);
        wanted
    }

    /// An answer has come, if it was asked for. Coins of this wallet that it should name and does not have been spent,
    /// and this wallet was not told.
    pub(super) fn compare(&mut self, id: Option<u64>, results: &[KeyResult]) {
        let pending = id.and_then(|id| self.pending.get(&id));
        let Some(Pending::Subscribe { since, .. }) = pending else { return };
        let (whole, account) = (since.is_none(), self.account_key());
        let mut named = BTreeSet::new();
        let mut answered = false;
        for result in results.iter().filter(|result| result.key == account) {
            let KeyOutcome::Snapshot { utxos, followed, .. } = &result.outcome else { return };
            answered = true;
            named.extend(utxos.iter().map(|utxo| utxo.outpoint));
            self.take_followed(&account, *followed);
        }
        if !answered {
            return;
        }
        let single = &self.following.single;
        let coins = self.wallet.confirmed_coins().filter(|(_, script)| !single.contains(*script));
        let missing: BTreeSet<OutPoint> =
            coins.map(|(outpoint, _)| outpoint).filter(|outpoint| !named.contains(outpoint)).collect();
        if whole {
            self.following.absent = missing;
        } else if !missing.is_subset(&self.following.absent) {
            return self.follow_account(SettledUntil::default());
        }
        self.following.whole = Some(self.following.whole == Some(true) || whole);
    }

    /// Everything that was asked for has been answered.
    pub(super) fn note_synced(&mut self) {
        let Following { by_script, whole, refused, early, .. } = &self.following;
        // What is not watched, or not understood, has to be asked for again.
        if let Some(whole) = whole.filter(|_| !by_script && !refused && early.is_empty()) {
            self.wallet.settle_until_now(whole);
        }
    }
}

#[cfg(test)]
#[path = "following_tests.rs"]
mod tests;
