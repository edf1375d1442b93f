//! The rules of the bridge, without I/O: who is interested in what, what is news, and who is too slow.
//!
//! The bridge relays; it never validates. It keeps, per key that somebody is subscribed to, what each node said
//! ([`Interest`]), and tells readers exactly when what they know changes: of each event one copy goes out, the others
//! do not. A new subscriber gets what readers know as its snapshot in the same step in which it goes live, once 2f + 1
//! nodes have told of the key (or f + 1, if no more come), so there is no gap.

mod wanted;

use crate::{
    alone::Alone,
    facts::{Heard, Taken},
    frame::Frame,
    interest::{Interest, WalletId, since_of},
    questions::{Subscription, questions},
    refusals::no_node,
    tips::{LinkId, Tips, faulty_max},
};
use bitcoin::Txid;
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ChainTip, ClientMessage, ErrorCode, Followed, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey,
        TransactionStatus, UtxoRecord, WireError, pages,
    },
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};
use wanted::{IDLE_MAX, Wanted};

/// Blocks that nodes undo at most.
const UNDO_BLOCKS: u32 = 288;
/// Blocks after which coins that were spent long ago are looked for.
const FORGET_EACH: u32 = 36;

/// A message for a session: an answer, or news of a key that it is subscribed to.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) session: WalletId,
    /// Of news.
    pub(crate) key: Option<SubscriptionKey>,
    pub(crate) frame: Frame,
}

/// The hub.
#[derive(Debug)]
pub(crate) struct Hub {
    interests: HashMap<SubscriptionKey, Interest>,
    wanted: Wanted,
    /// Keys that nobody wants any more and that are followed for some time all the same: those that were left since the
    /// last sweep, and those since the one before.
    idle: [HashSet<SubscriptionKey>; 2],
    tips: Tips,
    alone: Alone,
    /// The tip when old coins were forgotten last.
    forgot_at: u32,
    /// Nodes that have to say the same: f + 1, so that one of them is honest.
    needed: usize,
    deliveries: VecDeque<Delivery>,
    /// Copies from other nodes that were dropped.
    pub(crate) duplicates: u64,
    /// Keys for which there was no room.
    pub(crate) refused: u64,
}

impl Hub {
    /// A hub for a federation of so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            interests: HashMap::new(),
            wanted: Wanted::default(),
            idle: Default::default(),
            tips: Tips::new(nodes),
            alone: Alone::default(),
            forgot_at: 0,
            needed: faulty_max(nodes) + 1,
            deliveries: VecDeque::new(),
            duplicates: 0,
            refused: 0,
        }
    }

    /// A session of an address; none if it is this machine's own.
    pub(crate) fn open(&mut self, session: WalletId, address: Option<IpAddr>) {
        self.wanted.open(session, address);
    }

    /// The next message for anybody. Drain to `None` after every call.
    pub(crate) fn poll_delivery(&mut self) -> Option<Delivery> {
        self.deliveries.pop_front()
    }

    /// News of a key did not fit into a session's queue: it gets no more of it until it subscribes anew.
    pub(crate) fn mute(&mut self, session: WalletId, key: &SubscriptionKey) {
        if let Some(interest) = self.interests.get_mut(key) {
            interest.sessions.remove(&session);
        }
    }

    /// Ends a session; gives the keys that are followed no more.
    pub(crate) fn close(&mut self, session: WalletId) -> Vec<SubscriptionKey> {
        self.wanted.close(session).into_iter().filter(|key| self.leave(session, key)).collect()
    }

    /// A session wants a key no more. `true` if it is not followed any more.
    fn leave(&mut self, session: WalletId, key: &SubscriptionKey) -> bool {
        let Some(interest) = self.interests.get_mut(key) else { return false };
        interest.sessions.remove(&session);
        interest.wanted = interest.wanted.saturating_sub(1);
        if interest.wanted > 0 || *key == SubscriptionKey::Tip {
            return false;
        }
        let [young, old] = &mut self.idle;
        // What no node has told of is of no use to who comes back.
        let full = young.len() + old.len() >= IDLE_MAX;
        if interest.ready && !full {
            young.insert(key.clone());
            return false;
        }
        self.interests.remove(key).is_some()
    }

    /// Gives the keys that are followed no more: nobody has come back for them since the sweep before.
    pub(crate) fn sweep(&mut self, now: Duration) -> Vec<SubscriptionKey> {
        self.wanted.sweep(now);
        let [young, old] = std::mem::take(&mut self.idle);
        let unwanted = |interest: &Interest| interest.wanted == 0;
        let over =
            |key: &SubscriptionKey| !young.contains(key) && self.interests.get(key).is_some_and(unwanted);
        let over: Vec<SubscriptionKey> = old.into_iter().filter(over).collect();
        over.iter().for_each(|key| {
            self.interests.remove(key);
        });
        self.idle = [HashSet::new(), young];
        self.forget_old();
        over
    }

    /// Forgets coins that were spent so long ago that nodes undo no block of them. Rarely: it looks at all of them.
    fn forget_old(&mut self) {
        let Some(tip) = self.tips.believed().map(|tip| tip.block.height) else { return };
        if tip >= self.forgot_at.saturating_add(FORGET_EACH) {
            self.forgot_at = tip;
            let below = tip.saturating_sub(UNDO_BLOCKS);
            self.interests.values_mut().for_each(|interest| interest.forget_below(below));
        }
    }

    /// What a node whose stream is new is asked: all that is followed.
    pub(crate) fn questions(&self) -> Vec<ClientMessage> {
        questions(self.interests.iter().filter(|(key, _)| **key != SubscriptionKey::Tip).collect())
    }

    /// How many of these somebody wants.
    pub(crate) fn key_count(&self) -> usize {
        let wanted = |(key, interest): &(&SubscriptionKey, &Interest)| {
            interest.wanted > 0 && **key != SubscriptionKey::Tip
        };
        self.interests.iter().filter(wanted).count()
    }

    pub(crate) fn tip(&self) -> Option<ChainTip> {
        self.tips.believed()
    }

    /// A node's stream is gone.
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        self.tips.forget(link);
        self.alone.forget(link);
        self.interests.values_mut().for_each(|interest| interest.forget(link));
    }

    /// Registers interest. Gives, per key over a limit, its refusal, and what the nodes have to be asked.
    pub(crate) fn subscribe(
        &mut self,
        now: Duration,
        session: WalletId,
        call: &Subscription,
    ) -> (HashMap<SubscriptionKey, WireError>, Vec<ClientMessage>) {
        let (mut refused, mut new) = (HashMap::new(), Vec::new());
        if !self.wanted.is_open(session) {
            return (refused, Vec::new());
        }
        for key in &call.keys {
            let is_followed = self.interests.contains_key(key);
            let is_new = match self.wanted.add(now, session, key, is_followed) {
                Ok(is_new) => is_new,
                Err(error) => {
                    self.refused += 1;
                    refused.insert(key.clone(), error);
                    continue;
                }
            };
            // Live from the moment of the snapshot, not before: until then the session gets nothing for this key.
            let since = since_of(key, call.since);
            let interest = self.interests.entry(key.clone()).or_insert_with(|| Interest::new(key, since));
            interest.wanted += usize::from(is_new);
            if interest.ask(since, call.account(key)) {
                new.push(key);
            }
        }
        let new = new.into_iter().filter_map(|key| Some((key, self.interests.get(key)?)));
        (refused, questions(new.collect()))
    }

    /// Ends subscriptions; gives how many there were and the keys that are followed no more.
    pub(crate) fn unsubscribe(
        &mut self,
        session: WalletId,
        keys: &[SubscriptionKey],
    ) -> (usize, Vec<SubscriptionKey>) {
        let ended: Vec<_> = keys.iter().filter(|key| self.wanted.remove(session, key)).cloned().collect();
        let abandoned = ended.iter().filter(|key| self.leave(session, key)).cloned().collect();
        (ended.len(), abandoned)
    }

    /// Whether nodes are asked for a key already.
    pub(crate) fn follows(&self, key: &SubscriptionKey) -> bool {
        self.interests.contains_key(key)
    }

    pub(crate) fn is_ready(&self, keys: &[SubscriptionKey]) -> bool {
        keys.iter().all(|key| self.interests.get(key).is_none_or(Interest::is_answered))
    }

    /// Not all nodes that should have told of these are there: takes what f + 1 have told.
    pub(crate) fn settle_for_less(&mut self, keys: &[SubscriptionKey]) {
        for key in keys {
            if let Some(interest) = self.interests.get_mut(key) {
                interest.settle_for_less(self.needed);
            }
        }
    }

    /// Sends the snapshots and goes live, in one step.
    pub(crate) fn answer_subscription(
        &mut self,
        session: WalletId,
        id: Option<u64>,
        call: &Subscription,
        refused: &HashMap<SubscriptionKey, WireError>,
    ) {
        let results = call
            .keys
            .iter()
            .map(|key| {
                let wanted = self.wanted.has(session, key);
                let interest = self.interests.get_mut(key).filter(|_| wanted);
                let outcome = match (refused.get(key), interest) {
                    (Some(error), _) => KeyOutcome::Error(error.clone()),
                    (None, Some(interest)) => {
                        interest.answer(session, since_of(key, call.since), self.needed)
                    }
                    (None, None) => KeyOutcome::Error(WireError::passing(
                        ErrorCode::NoNodeAvailable,
                        quorate_protocol::wire::Fault::Receiver,
                        "the subscription was ended meanwhile",
                    )),
                };
                KeyResult { key: key.clone(), outcome }
            })
            .collect();
        let Some(tip) = self.tips.believed() else {
            return self.answer(session, id, &ServerMessage::Error { error: no_node() });
        };
        let since = Some(call.since).filter(|since| *since > 0);
        let mut pages = pages(results).into_iter().peekable();
        while let Some(results) = pages.next() {
            let more = pages.peek().is_some();
            self.answer(session, id, &ServerMessage::UTXOSubscribed { results, tip, more, since });
        }
        for key in call.keys.iter().filter(|key| !refused.contains_key(key)) {
            let interest = self.interests.get(key).filter(|interest| interest.sessions.contains(&session));
            let since = since_of(key, call.since);
            let copies = interest.map(|interest| interest.facts.other_copies(since));
            for (utxo, proof) in copies.unwrap_or_default() {
                self.answer(session, None, &notification(key, utxo, Some(proof), None));
            }
        }
    }

    /// A node's snapshot or refusal of a key that it was asked for, without what blocks below a height spend.
    pub(crate) fn take_result(&mut self, link: LinkId, since: u32, result: KeyResult) {
        let (utxos, proofs, status, heard) = match result.outcome {
            KeyOutcome::Snapshot { utxos, proofs, status, history_from, followed } => {
                (utxos, proofs, status, Heard { history_from, followed })
            }
            KeyOutcome::Error(error) => {
                if let Some(interest) = self.interests.get_mut(&result.key) {
                    interest.refuse(link, error, self.needed);
                }
                return;
            }
        };
        let proofs: HashMap<Txid, FinalityProof> =
            proofs.into_iter().map(|proof| (proof.txid(), proof)).collect();
        let mut refused = false;
        for utxo in utxos {
            let of = [Some(utxo.outpoint.txid), utxo.spend.map(|spend| spend.txid)];
            for proof in of.into_iter().flatten().filter_map(|txid| proofs.get(&txid)) {
                refused |= !self.notify(link, &result.key, &utxo, Some(proof.clone()));
            }
            refused |= !self.notify(link, &result.key, &utxo, None);
        }
        if let (SubscriptionKey::Txid(txid), Some(status)) = (&result.key, status) {
            self.take_status(link, *txid, &status);
        }
        // Who was not heard to the end has not told of it.
        if let Some(interest) = self.interests.get_mut(&result.key).filter(|_| !refused) {
            interest.hear(link, since, heard, self.needed);
        }
    }

    /// A node follows more addresses of an account than before.
    pub(crate) fn follow(&mut self, link: LinkId, key: &SubscriptionKey, followed: Followed) {
        if let Some(interest) = self.interests.get_mut(key) {
            interest.facts.follow(link, followed, self.needed);
        }
    }

    /// A notification of a node. `false` if there is no room for it.
    pub(crate) fn notify(
        &mut self,
        link: LinkId,
        key: &SubscriptionKey,
        utxo: &UtxoRecord,
        proof: Option<FinalityProof>,
    ) -> bool {
        let Some(interest) = self.interests.get_mut(key) else { return true };
        let is_over = utxo.spent.is_some_and(|spent| spent.block.height < interest.since);
        if is_over && !interest.facts.knows(&utxo.outpoint) {
            return true;
        }
        match interest.facts.take_utxo(link, utxo, proof, self.needed, &mut self.alone) {
            Taken::News(utxo, proof) => {
                let followed = interest.facts.followed();
                self.tell(key, &notification(key, *utxo, proof, followed));
            }
            Taken::Nothing => self.duplicates += 1,
            Taken::Refused => return false,
        }
        true
    }

    /// A node's word on a transaction.
    pub(crate) fn take_status(&mut self, link: LinkId, txid: Txid, status: &TransactionStatus) {
        let key = SubscriptionKey::Txid(txid);
        let Some(interest) = self.interests.get_mut(&key) else { return };
        if interest.facts.take_status(link, status, self.needed) {
            self.tell(&key, &ServerMessage::TransactionStatus { txid, status: status.clone() });
        } else {
            self.duplicates += 1;
        }
    }

    /// A node's tip; wallets check headers themselves.
    pub(crate) fn take_tip(&mut self, link: LinkId, tip: ChainTip) {
        let Some(tip) = self.tips.take(link, tip) else { return };
        self.tell(&SubscriptionKey::Tip, &ServerMessage::Tip { tip });
    }

    /// News for all who are subscribed to a key.
    fn tell(&mut self, key: &SubscriptionKey, message: &ServerMessage) {
        let listeners = self.interests.get(key).map(|interest| &interest.sessions);
        let Some(listeners) = listeners.filter(|listeners| !listeners.is_empty()) else { return };
        let frame = Frame::new(None, message);
        let one =
            |session: &WalletId| Delivery { session: *session, key: Some(key.clone()), frame: frame.clone() };
        self.deliveries.extend(listeners.iter().map(one));
    }

    fn answer(&mut self, session: WalletId, id: Option<u64>, message: &ServerMessage) {
        self.deliveries.push_back(Delivery { session, key: None, frame: Frame::new(id, message) });
    }
}

fn notification(
    key: &SubscriptionKey,
    utxo: UtxoRecord,
    proof: Option<FinalityProof>,
    followed: Option<Followed>,
) -> ServerMessage {
    let (key, state) = (key.clone(), utxo.state());
    ServerMessage::UTXOStateNotification { key, utxo, state, proof: proof.map(Box::new), followed }
}

#[cfg(test)]
mod tests;
