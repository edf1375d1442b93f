//! What a session asks its server, and asks again.

use super::{Event, Now, Output, Session, pending::Pending};
use crate::wire::{ClientMessage, SubscriptionKey, WireError, encode_text, limits};
use bitcoin::{ScriptBuf, Txid};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Questions for a transaction's place that are under way at a time.
const PROOF_QUERIES_MAX: usize = 32;
/// How often the place of a final transaction is asked for before it waits for the next block.
const UNPLACED_TRIES: u8 = 5;
/// Final transactions in no block that are watched for what the Bitcoin network has against them.
const WATCHED_MAX: usize = limits::KEYS_PER_MESSAGE_MAX;
/// A server that leaves a question unanswered for so long is given up: behind a bridge, another node may answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

impl Session {
    pub(super) fn request(&mut self, pending: Pending, message: &ClientMessage) {
        let id = self.next_id;
        self.next_id += 1;
        if !matches!(pending, Pending::Submit { .. }) {
            self.asked_at.insert(id, self.now);
        }
        self.told_synced &= matches!(pending, Pending::Submit { .. } | Pending::Ping);
        self.pending.insert(id, pending);
        self.outputs.push_back(Output::Send(encode_text(Some(id), message)));
    }

    pub(super) fn register(&mut self) {
        let record = self.wallet.account().record().clone();
        self.request(Pending::Register, &ClientMessage::AccountRegister { record });
    }

    pub(super) fn subscribe(&mut self, scripts: Vec<ScriptBuf>) {
        let keys: Vec<_> = scripts.into_iter().map(SubscriptionKey::Script).collect();
        self.subscribe_keys(keys);
    }

    pub(super) fn subscribe_keys(&mut self, keys: Vec<SubscriptionKey>) {
        // The account by itself: it may be asked for less than everything.
        let (accounts, others): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| matches!(key, SubscriptionKey::Account(_)));
        self.subscribe_some(&accounts);
        self.subscribe_some(&others);
    }

    fn subscribe_some(&mut self, keys: &[SubscriptionKey]) {
        for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            let (message, since) = self.subscription(keys);
            self.request(Pending::Subscribe { keys: keys.iter().cloned().collect(), since }, &message);
        }
    }

    /// A server cannot watch keys at present. They are asked for again, and nothing else is: to connect anew for them
    /// would be work for a server that has too much of it. Keys that this wallet never asked for are none of its
    /// business.
    pub(super) fn subscribe_later(&mut self, now: Now, keys: impl IntoIterator<Item = SubscriptionKey>) {
        let mut wanted: BTreeSet<SubscriptionKey> = keys.into_iter().filter(|key| self.wants(key)).collect();
        let mut waiting = self.redo.iter_mut().filter_map(|(_, pending)| {
            if let Pending::Subscribe { keys, .. } = pending { Some(keys) } else { None }
        });
        if let Some(waiting) = waiting.next() {
            waiting.append(&mut wanted);
        } else if !wanted.is_empty() {
            let wait = self.watch_again.next(&mut *self.rng);
            self.redo.push((now + wait, Pending::Subscribe { keys: wanted, since: None }));
        }
    }

    /// Whether this wallet has a use for a key that a server names.
    pub(super) fn wants(&self, key: &SubscriptionKey) -> bool {
        match key {
            SubscriptionKey::Txid(txid) => self.watched.contains(txid),
            SubscriptionKey::Tip => true,
            SubscriptionKey::Script(_) | SubscriptionKey::Account(_) => self.follows(key),
            SubscriptionKey::Address(_) | SubscriptionKey::Outpoint(_) => false,
        }
    }

    pub(super) fn ask_headers(&mut self, step: u32) {
        let asked = |pending: &Pending| matches!(pending, Pending::Headers { .. });
        if !self.pending.values().any(asked) {
            let from = self.wallet.chain().ask_from(step);
            self.request(Pending::Headers { step }, &ClientMessage::HeadersQuery { from });
        }
    }

    pub(super) fn ask_proofs(&mut self, txids: impl IntoIterator<Item = Txid>) {
        self.queued_proofs.extend(txids);
        self.ask_queued_proofs();
    }

    /// Asks some at a time: a restored wallet may lack hundreds.
    pub(super) fn ask_queued_proofs(&mut self) {
        let asked =
            |pending: &Pending| if let Pending::Proof { txid } = pending { Some(*txid) } else { None };
        let mut open: BTreeSet<Txid> = self.pending.values().filter_map(asked).collect();
        while open.len() < PROOF_QUERIES_MAX
            && let Some(txid) = self.queued_proofs.pop_first()
        {
            if open.insert(txid) {
                self.request(Pending::Proof { txid }, &ClientMessage::ProofQuery { txid });
            }
        }
    }

    /// A node knows of no block that has a final transaction: asks again soon, in case it is behind, and then after
    /// each block.
    pub(super) fn unplaced(&mut self, txid: Txid) {
        let tries = self.unplaced.entry(txid).or_default();
        *tries = tries.saturating_add(1);
        if *tries <= UNPLACED_TRIES {
            self.waiting_proofs.insert(txid);
        }
    }

    /// After a block: what a node did not place is asked for anew.
    pub(super) fn place_again(&mut self) {
        let again: Vec<Txid> = std::mem::take(&mut self.unplaced).into_keys().collect();
        self.ask_proofs(again);
    }

    /// Gives the server the proof of a transaction that it does not know to be final, now and after each block until
    /// one has it. Its payer may have shown it to nobody but this wallet, to take the coins back when their recovery
    /// path is open: until then there are `recovery_margin` blocks to have it mined.
    pub(super) fn hand_in(&mut self, txid: Txid) {
        if !self.watched.contains(&txid) {
            return;
        }
        let Some(proof) = self.wallet.proof(txid).cloned().map(Box::new) else { return };
        // However often it says so, once per block.
        if !self.unknown.insert(txid) {
            return;
        }
        self.request(Pending::HandIn, &ClientMessage::FinalTransaction { proof });
    }

    /// After a connect: watches what was final before, and is in no block that this wallet knows.
    pub(super) fn watch_waiting(&mut self) {
        self.unmined.clear();
        self.looked_at = 0;
        self.watch_unmined();
    }

    /// What is final and in no block, with the height of the tip since when: for what is new, when it was looked for
    /// last.
    fn unmined_now(&self) -> BTreeMap<Txid, u32> {
        let waits = self.wallet.waiting().filter(|entry| entry.finality.is_some());
        let since = |txid: Txid| (txid, self.unmined.get(&txid).copied().unwrap_or(self.looked_at));
        waits.map(|entry| since(entry.txid)).take(WATCHED_MAX).collect()
    }

    /// After a block: watches what was final before the block before and is in none yet, to be told why no miner takes
    /// it. It may be in the last block, whose proof has not come.
    pub(super) fn watch_unmined(&mut self) {
        let tip = self.wallet.chain().tip().height;
        self.unmined = self.unmined_now();
        self.looked_at = tip;
        let waiting: BTreeSet<Txid> = self.unmined.keys().copied().collect();
        let late = self.unmined.iter().filter(|(_, since)| since.saturating_add(2) <= tip);
        let late: Vec<Txid> = late.map(|(txid, _)| *txid).collect();
        let new: Vec<_> = late.iter().filter(|txid| !self.watched.contains(*txid)).copied().collect();
        let over: Vec<_> = self.watched.difference(&waiting).copied().collect();
        self.unknown.retain(|txid| self.watched.contains(txid) && waiting.contains(txid));
        for txid in std::mem::take(&mut self.unknown) {
            self.hand_in(txid);
        }
        let keys = |txids: &[Txid]| txids.iter().copied().map(SubscriptionKey::Txid).collect();
        if !new.is_empty() {
            self.watched.extend(&new);
            self.subscribe_keys(keys(&new));
        }
        if !over.is_empty() {
            over.iter().for_each(|txid| {
                self.watched.remove(txid);
                self.refusals.remove(txid);
            });
            self.request(Pending::Unsubscribe, &ClientMessage::UTXOUnsubscribe { keys: keys(&over) });
        }
    }

    pub(super) fn ask_again(&mut self, due: Vec<(Now, Pending)>) {
        for (_, pending) in due {
            if pending == Pending::Register {
                self.register();
            } else if pending == Pending::FeeRate {
                self.request(pending, &ClientMessage::FeeRateQuery);
            } else if let Pending::Subscribe { keys, .. } = pending {
                // Some may not be wanted any more.
                self.subscribe_keys(keys.into_iter().filter(|key| self.wants(key)).collect());
            } else {
                self.ask_document();
            }
        }
    }

    pub(super) fn refused(&mut self, now: Now, id: Option<u64>, error: &WireError) {
        let pending = id.and_then(|id| self.pending.remove(&id));
        match pending {
            Some(Pending::Submit { txid }) if error.retry => self.retry_later(now, txid),
            Some(Pending::Submit { txid }) => self.refused_payment(now, txid, error),
            Some(Pending::Hello) => {
                self.event(Event::Refused { error: error.clone() });
                self.hang_up(now, &error.to_string());
            }
            Some(Pending::Proof { txid }) if error.retry => {
                self.waiting_proofs.insert(txid);
            }
            Some(pending @ (Pending::Register | Pending::FeeRate | Pending::Federation)) if error.retry => {
                let wait = self.chase.next(&mut *self.rng);
                self.redo.push((now + wait, pending));
            }
            // Nobody would watch them.
            Some(Pending::Subscribe { keys, .. }) if error.retry => self.subscribe_later(now, keys),
            Some(Pending::Subscribe { keys, .. })
                if keys.iter().any(|key| self.follow_scripts(key, error)) => {}
            Some(pending) => {
                // Until the next connection it is not known what the server does not tell of.
                self.claims_are_old &= pending != Pending::Query;
                self.event(Event::Refused { error: error.clone() });
            }
            None => self.event(Event::Refused { error: error.clone() }),
        }
    }

    /// When the oldest question under way should have been answered.
    pub(super) fn unanswered(&self) -> Option<Now> {
        let open = self.asked_at.iter().filter(|(id, _)| self.pending.contains_key(*id));
        open.map(|(_, at)| *at + ANSWER_TIMEOUT).min()
    }

    /// When a server that has been silent is asked whether it is still there. Never while that question is open.
    pub(super) fn ping_at(&self) -> Now {
        let asked = self.pending.values().any(|pending| *pending == Pending::Ping);
        if asked { Now::MAX } else { self.heard_at + limits::PING_INTERVAL }
    }

    /// Sees to it that what the wallet lacks is asked for again, by a timer and not by the luck of another event.
    pub(super) fn plan_chase(&mut self, now: Now) {
        let behind = self.told_tip.is_some_and(|tip| tip.height > self.wallet.chain().tip().height);
        if !behind && self.waiting_proofs.is_empty() {
            self.chase.reset();
            self.chase_at = None;
        } else if self.chase_at.is_none() {
            self.chase_at = Some(now + self.chase.next(&mut *self.rng));
        }
    }
}
