//! The rules of the bridge, without I/O: who is interested in what, what is news, and who is too slow.
//!
//! The bridge relays; it never validates. It keeps, per key that somebody is subscribed to, what each node said
//! ([`Words`]), and tells readers what f + 1 of them say alike, exactly when that changes: of each event one copy goes
//! out, the others do not. A proof verifies itself, but which copy does is the wallet's to see, so the
//! first of each of f + 1 nodes goes out, when it comes. A new subscriber gets what readers know as its snapshot in the
//! same step in which it goes live, once 2f + 1 nodes have told of the key (or f + 1, if no more come), so there is no
//! gap.

use crate::{
    frame::Frame,
    refusals::no_node,
    tips::{LinkId, Tips, faulty_max},
    words::{Shown, Words},
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ChainTip, ErrorCode, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey, TransactionStatus,
        UtxoRecord, WireError, limits, pages,
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Keys that nobody wants any more and are followed for some time.
const IDLE_MAX: usize = 32_768;

/// A wallet's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalletId(pub u64);

#[derive(Debug, Default)]
struct Interest {
    /// Sessions that are subscribed to it, those among them that wait for their snapshot.
    wanted: usize,
    /// Those that have it.
    sessions: BTreeSet<WalletId>,
    ready: bool,
    /// Nodes that have told of it, with the height from which they know its history.
    heard: BTreeMap<LinkId, Option<u32>>,
    utxos: BTreeMap<OutPoint, Words>,
    /// Copies that differ: one that does not verify must not keep the good one back.
    proofs: BTreeMap<Txid, Vec<ProofCopy>>,
    status: Option<TransactionStatus>,
    /// Where nodes say that a block has it, or contradicts it.
    placed: BTreeMap<LinkId, TransactionStatus>,
}

/// A node's copy of a proof, with the coin that it came with. The first one of each node counts, so that among f + 1
/// there is an honest node's.
#[derive(Debug)]
struct ProofCopy {
    link: LinkId,
    outpoint: OutPoint,
    proof: FinalityProof,
}

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
    /// What each session is subscribed to.
    sessions: HashMap<WalletId, BTreeSet<SubscriptionKey>>,
    /// Keys that nobody wants any more, and is followed all the same for some time: since the last sweep, and since
    /// the one before.
    idle: [HashSet<SubscriptionKey>; 2],
    tips: Tips,
    /// Nodes that have to say the same: one of them is honest. As many copies of a proof are told.
    needed: usize,
    deliveries: VecDeque<Delivery>,
    /// Copies from other nodes that were dropped.
    pub(crate) duplicates: u64,
}

impl Hub {
    /// A hub for a federation of so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            interests: HashMap::new(),
            sessions: HashMap::new(),
            idle: Default::default(),
            tips: Tips::new(nodes),
            needed: faulty_max(nodes) + 1,
            deliveries: VecDeque::new(),
            duplicates: 0,
        }
    }

    pub(crate) fn open(&mut self, session: WalletId) {
        self.sessions.insert(session, BTreeSet::new());
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
        let Some(closed) = self.sessions.remove(&session) else { return Vec::new() };
        closed.into_iter().filter(|key| self.leave(session, key)).collect()
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
    pub(crate) fn sweep(&mut self) -> Vec<SubscriptionKey> {
        let [young, old] = std::mem::take(&mut self.idle);
        let unwanted = |interest: &Interest| interest.wanted == 0;
        let over =
            |key: &SubscriptionKey| !young.contains(key) && self.interests.get(key).is_some_and(unwanted);
        let over: Vec<SubscriptionKey> = old.into_iter().filter(over).collect();
        over.iter().for_each(|key| {
            self.interests.remove(key);
        });
        self.idle = [HashSet::new(), young];
        over
    }

    pub(crate) fn keys(&self) -> Vec<SubscriptionKey> {
        self.interests.keys().filter(|key| **key != SubscriptionKey::Tip).cloned().collect()
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
        for interest in self.interests.values_mut() {
            interest.heard.remove(&link);
            interest.placed.remove(&link);
            interest.utxos.values_mut().for_each(|words| words.forget(link));
        }
    }

    /// Registers interest. Gives, per key over the session's limit, its refusal, and the keys that no node has been
    /// asked for yet.
    pub(crate) fn subscribe(
        &mut self,
        session: WalletId,
        keys: &[SubscriptionKey],
    ) -> (HashMap<SubscriptionKey, WireError>, Vec<SubscriptionKey>) {
        let mut refused = HashMap::new();
        let mut new = Vec::new();
        let Some(open) = self.sessions.get_mut(&session) else { return (refused, new) };
        for key in keys {
            let limit = limits::KEYS_PER_SESSION_MAX;
            if open.len() >= limit && !open.contains(key) {
                let error =
                    WireError::limit(ErrorCode::LimitExceeded, "keys in a session", limit, open.len() + 1);
                refused.insert(key.clone(), error);
                continue;
            }
            // Live from the moment of the snapshot, not before: until then the session gets nothing for this key.
            let interest = self.interests.entry(key.clone()).or_default();
            interest.wanted += usize::from(open.insert(key.clone()));
            if *key == SubscriptionKey::Tip {
                interest.ready = true;
            } else if !interest.ready {
                new.push(key.clone());
            }
        }
        (refused, new)
    }

    /// Ends subscriptions; gives how many there were and the keys that are followed no more.
    pub(crate) fn unsubscribe(
        &mut self,
        session: WalletId,
        keys: &[SubscriptionKey],
    ) -> (usize, Vec<SubscriptionKey>) {
        let Some(open) = self.sessions.get_mut(&session) else { return (0, Vec::new()) };
        let ended: Vec<_> = keys.iter().filter(|key| open.remove(*key)).cloned().collect();
        let abandoned = ended.iter().filter(|key| self.leave(session, key)).cloned().collect();
        (ended.len(), abandoned)
    }

    pub(crate) fn is_ready(&self, keys: &[SubscriptionKey]) -> bool {
        keys.iter().all(|key| self.interests.get(key).is_none_or(|interest| interest.ready))
    }

    /// Not all nodes that should have told of these are there: takes what f + 1 have told.
    pub(crate) fn settle_for_less(&mut self, keys: &[SubscriptionKey]) {
        for key in keys {
            if let Some(interest) = self.interests.get_mut(key) {
                interest.ready |= interest.heard.len() >= self.needed;
            }
        }
    }

    /// Sends the snapshots and goes live, in one step.
    pub(crate) fn answer_subscription(
        &mut self,
        session: WalletId,
        id: Option<u64>,
        keys: &[SubscriptionKey],
        refused: &HashMap<SubscriptionKey, WireError>,
    ) {
        let open = self.sessions.get(&session);
        let results = keys
            .iter()
            .map(|key| {
                let wanted = open.is_some_and(|open| open.contains(key));
                let interest = self.interests.get_mut(key).filter(|_| wanted);
                let outcome = match (refused.get(key), interest) {
                    (Some(error), _) => KeyOutcome::Error(error.clone()),
                    (None, Some(interest)) => {
                        interest.sessions.insert(session);
                        KeyOutcome::Snapshot {
                            utxos: interest.utxos.values().filter_map(Words::told).cloned().collect(),
                            proofs: interest.first_copies(),
                            status: interest.status.clone(),
                            history_from: interest.history_from(self.needed),
                        }
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
        let mut pages = pages(results).into_iter().peekable();
        while let Some(results) = pages.next() {
            let more = pages.peek().is_some();
            self.answer(session, id, &ServerMessage::UTXOSubscribed { results, tip, more });
        }
        for key in keys.iter().filter(|key| !refused.contains_key(key)) {
            let interest = self.interests.get(key).filter(|interest| interest.sessions.contains(&session));
            for frame in interest.map(|interest| interest.other_copies(key)).unwrap_or_default() {
                self.deliveries.push_back(Delivery { session, key: None, frame });
            }
        }
    }

    /// A node's snapshot or refusal of a key that it was asked for.
    pub(crate) fn take_result(&mut self, link: LinkId, result: KeyResult) {
        let KeyOutcome::Snapshot { utxos, proofs, status, history_from } = result.outcome else {
            return;
        };
        for utxo in utxos {
            let created = proofs.iter().find(|proof| proof.txid() == utxo.outpoint.txid);
            let spent =
                proofs.iter().find(|proof| utxo.spend.is_some_and(|spend| spend.txid == proof.txid()));
            for proof in created.into_iter().chain(spent) {
                self.notify(link, &result.key, &utxo, Some(proof.clone()));
            }
            self.notify(link, &result.key, &utxo, None);
        }
        if let (SubscriptionKey::Txid(txid), Some(status)) = (&result.key, status) {
            self.take_status(link, *txid, &status);
        }
        if let Some(interest) = self.interests.get_mut(&result.key) {
            interest.heard.insert(link, history_from);
            // Whatever f of these say, f + 1 others have told of it.
            interest.ready |= interest.heard.len() > 2 * (self.needed - 1);
        }
    }

    /// A notification of a node.
    pub(crate) fn notify(
        &mut self,
        link: LinkId,
        key: &SubscriptionKey,
        utxo: &UtxoRecord,
        proof: Option<FinalityProof>,
    ) {
        let Some(interest) = self.interests.get_mut(key) else { return };
        let outpoint = utxo.outpoint;
        let shown = proof.as_ref().and_then(|proof| Shown::of(proof, &outpoint));
        let new_proof = proof.filter(|_| shown.is_some()).filter(|proof| {
            let copies = interest.proofs.entry(proof.txid()).or_default();
            let known = copies.iter().any(|copy| copy.link == link || copy.proof == *proof);
            let new = copies.len() < self.needed && !known;
            copies.extend(new.then(|| ProofCopy { link, outpoint, proof: proof.clone() }));
            new
        });
        let words = interest.utxos.entry(outpoint).or_default();
        let news = words.take(link, utxo, self.needed, shown.filter(|_| new_proof.is_some()));
        let Some(utxo) = news else {
            self.duplicates += 1;
            return;
        };
        let proof = new_proof.map(Box::new);
        let state = utxo.state();
        self.tell(key, &ServerMessage::UTXOStateNotification { key: key.clone(), state, utxo, proof });
    }

    /// A node's word on a transaction. That a block has it, or contradicts it, has to be said by f + 1 nodes; what
    /// comes before that is told as it comes.
    pub(crate) fn take_status(&mut self, link: LinkId, txid: Txid, status: &TransactionStatus) {
        let key = SubscriptionKey::Txid(txid);
        let Some(interest) = self.interests.get_mut(&key) else { return };
        if rank(status) == PLACED {
            interest.placed.insert(link, status.clone());
        } else {
            interest.placed.remove(&link);
        }
        let said = |what: &TransactionStatus| interest.placed.values().filter(|said| *said == what).count();
        // No few nodes place it, nor undo what enough others say.
        let placed = |known: &TransactionStatus| rank(known) == PLACED && said(known) >= self.needed;
        let too_few = rank(status) == PLACED && !placed(status);
        if too_few || rank(status) < PLACED && interest.status.as_ref().is_some_and(placed) {
            self.duplicates += 1;
            return;
        }
        // The chain has the last word, and a reorganisation can take it back.
        let turns = |known: &TransactionStatus| {
            let is_final = rank(known).min(rank(status)) >= FINAL;
            is_final && std::mem::discriminant(known) == std::mem::discriminant(status) && known != status
                || is_final && is_conflict(known) != is_conflict(status)
        };
        if interest.status.as_ref().is_some_and(|known| rank(known) >= rank(status) && !turns(known)) {
            self.duplicates += 1;
            return;
        }
        interest.status = Some(status.clone());
        self.tell(&key, &ServerMessage::TransactionStatus { txid, status: status.clone() });
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

fn is_conflict(status: &TransactionStatus) -> bool {
    matches!(status, TransactionStatus::Conflicted { .. })
}

impl Interest {
    /// Coins that a snapshot has.
    fn told(&self) -> impl Iterator<Item = &UtxoRecord> {
        self.utxos.values().filter_map(Words::told)
    }

    /// What goes into a snapshot: of each proof that its coins name one copy.
    fn first_copies(&self) -> Vec<FinalityProof> {
        let named: BTreeSet<Txid> = self
            .told()
            .flat_map(|utxo| [Some(utxo.outpoint.txid), utxo.spend.map(|spend| spend.txid)])
            .flatten()
            .collect();
        let copies = self.proofs.iter().filter(|(txid, _)| named.contains(*txid));
        copies.filter_map(|(_, copies)| copies.first()).map(|copy| copy.proof.clone()).collect()
    }

    /// What comes after it: the copies that differ, and proofs that no coin names.
    fn other_copies(&self, key: &SubscriptionKey) -> Vec<Frame> {
        let first: BTreeSet<Txid> = self.first_copies().iter().map(FinalityProof::txid).collect();
        let others = self
            .proofs
            .iter()
            .flat_map(|(txid, copies)| copies.iter().skip(usize::from(first.contains(txid))));
        let tell = |copy: &ProofCopy| {
            let utxo = self.utxos.get(&copy.outpoint)?.told()?.clone();
            let (key, state, proof) = (key.clone(), utxo.state(), Some(Box::new(copy.proof.clone())));
            Some(Frame::new(None, &ServerMessage::UTXOStateNotification { key, utxo, state, proof }))
        };
        others.filter_map(tell).collect()
    }

    /// The height from which so many nodes know the history: no few of them make it look longer.
    fn history_from(&self, needed: usize) -> Option<u32> {
        let mut known: Vec<u32> = self.heard.values().flatten().copied().collect();
        known.sort_unstable();
        known.get(needed.checked_sub(1)?).copied()
    }
}

/// Rank of what is final.
const FINAL: u8 = 120;
/// Rank of what stands in a block.
const PLACED: u8 = 122;

fn rank(status: &TransactionStatus) -> u8 {
    match status {
        TransactionStatus::Pending => 0,
        TransactionStatus::Voting { votes, .. } => 1 + u8::try_from(*votes).unwrap_or(100).min(100),
        TransactionStatus::Approved => 110,
        TransactionStatus::Signing { .. } => 111,
        TransactionStatus::Failed { .. }
        | TransactionStatus::Rejected { .. }
        | TransactionStatus::AbortedByzantine { .. } => 112,
        TransactionStatus::Signed { .. } => FINAL,
        TransactionStatus::Broadcasting { .. } => 121,
        TransactionStatus::Confirmed { .. } | TransactionStatus::Conflicted { .. } => PLACED,
    }
}

#[cfg(test)]
mod tests;
