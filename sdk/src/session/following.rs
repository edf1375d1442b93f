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
    /// Scripts beyond them, or all.
    single: BTreeSet<ScriptBuf>,
    /// What was asked for last.
    asked: SettledUntil,
    /// Whether what was told is everything, once something was.
    whole: Option<bool>,
    /// Something that should be watched is not.
    refused: bool,
    /// Coins that an answer to the question for everything did not name. Each is asked for by itself.
    absent: BTreeSet<OutPoint>,
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

    /// Addresses that the server follows with the account: more than it said before.
    pub(super) fn take_followed(&mut self, key: &SubscriptionKey, followed: Option<Followed>) {
        if let (Some(known), Some(followed)) = (&mut self.following.followed, followed)
            && *key == SubscriptionKey::Account(self.wallet.account().id())
        {
            known.receive = known.receive.max(followed.receive);
            known.change = known.change.max(followed.change);
        }
    }

    /// Subscribes to scripts that were not subscribed to before, and ends subscriptions that the account's is in the
    /// place of by now.
    pub(super) fn follow_new(&mut self) {
        if !self.is_live() {
            return;
        }
        let _known_by_their_place = self.wallet.take_unwatched();
        if self.following.by_script {
            let mut new = self.wallet.scripts_in_order();
            new.retain(|script| self.following.single.insert(script.clone()));
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
        match key {
            SubscriptionKey::Script(script) => self.following.single.contains(script),
            SubscriptionKey::Account(id) => !self.following.by_script && *id == self.wallet.account().id(),
            SubscriptionKey::Address(_)
            | SubscriptionKey::Outpoint(_)
            | SubscriptionKey::Txid(_)
            | SubscriptionKey::Tip => false,
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
            self.follow_new();
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
                let new = self.wallet.take_unwatched().into_iter();
                known.extend(new.filter(|script| by_script.contains_key(script)));
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
            let new = self.wallet.take_unwatched().into_iter();
            known.extend(new.filter(|script| by_script.contains_key(script)));
        }
        let early = by_script.into_values().flatten().take(EARLY_MAX);
        self.following.early = early.map(|(record, proof)| (record.outpoint, (record, proof))).collect();
    }

    /// An answer has come, if it was asked for. Coins of this wallet that it should name and does not have been spent,
    /// and this wallet was not told.
    pub(super) fn compare(&mut self, id: Option<u64>, results: &[KeyResult]) {
        let pending = id.and_then(|id| self.pending.get(&id));
        let Some(Pending::Subscribe { since, .. }) = pending else { return };
        let (whole, account) = (since.is_none(), self.account_key());
        let mut named = BTreeSet::new();
        let mut answer = None;
        for result in results.iter().filter(|result| result.key == account) {
            let KeyOutcome::Snapshot { utxos, followed, .. } = &result.outcome else { return };
            named.extend(utxos.iter().map(|utxo| utxo.outpoint));
            answer = Some(*followed);
        }
        let Some(followed) = answer else { return };
        // Without a word on it nothing is followed that was given out, and nothing is known for sure.
        self.following.refused |= followed.is_none();
        let followed = followed.unwrap_or_default();
        self.following.followed = Some(followed);
        let single = self.wallet.beyond(followed);
        let coins = self.wallet.confirmed_coins().filter(|(_, script)| !single.contains(*script));
        let missing: BTreeSet<OutPoint> =
            coins.map(|(outpoint, _)| outpoint).filter(|outpoint| !named.contains(outpoint)).collect();
        if !missing.is_subset(&self.following.absent) {
            if !whole {
                return self.follow_account(SettledUntil::default());
            }
            self.ask_coins(&missing);
        }
        self.following.absent = missing;
        self.following.whole = Some(self.following.whole == Some(true) || whole);
    }

    /// Asks what became of coins that are not where they should be: of one by itself more is known than of all that an
    /// account ever had.
    fn ask_coins(&mut self, coins: &BTreeSet<OutPoint>) {
        let keys: Vec<_> = coins.iter().copied().map(SubscriptionKey::Outpoint).collect();
        for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            self.request(Pending::Query, &ClientMessage::UTXOStateQuery { keys: keys.to_vec() });
        }
    }

    /// After a reorganisation: the server says whether there are still coins that a block had.
    pub(super) fn ask_unclaimed(&mut self) {
        self.claims_are_old = true;
        let unclaimed: BTreeSet<OutPoint> = self.wallet.unclaimed().into_iter().collect();
        self.ask_coins(&unclaimed);
    }

    /// Forgets coins of which nobody tells any more, once the server has told everything.
    pub(super) fn drop_old_claims(&mut self) {
        let all_told = !self.following.refused && self.following.early.is_empty();
        if self.claims_are_old && all_told && self.is_synced() {
            self.claims_are_old = false;
            self.wallet.drop_unclaimed();
        }
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
