//! The rules of the bridge, without I/O: who is interested in what, what is news, and who is too slow.
//!
//! The bridge relays; it never validates. It keeps, per key that somebody is subscribed to, what each node said
//! ([`Words`]), and tells readers what f + 1 of them say alike, exactly when that changes: of each event one copy goes
//! out, the others do not. A proof verifies itself, but which copy does is the wallet's to see, so up to f + 1 that
//! differ go out, each when it comes. A new subscriber gets what readers know as its snapshot in the same step in which
//! it goes live, once f + 1 nodes have told of the key, so there is no gap.

use crate::{
    tips::{LinkId, Tips, faulty_max},
    words::Words,
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ChainTip, ErrorCode, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey, TransactionStatus,
        UtxoRecord, WireError, limits, pages,
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// A wallet's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalletId(pub u64);

#[derive(Debug, Default)]
struct Interest {
    sessions: BTreeSet<WalletId>,
    ready: bool,
    /// Nodes that have told of it, with the height from which they know its history.
    heard: BTreeMap<LinkId, Option<u32>>,
    utxos: BTreeMap<OutPoint, Words>,
    /// Copies that differ: one that does not verify must not keep the good one back.
    proofs: BTreeMap<Txid, Vec<FinalityProof>>,
    status: Option<TransactionStatus>,
    /// Where nodes say that a block has it, or contradicts it.
    placed: BTreeMap<LinkId, TransactionStatus>,
}

/// A message for a session: an answer, or news of a key that it is subscribed to.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) session: WalletId,
    /// The message that it answers.
    pub(crate) id: Option<u64>,
    /// What it is news of; nothing for an answer.
    pub(crate) key: Option<SubscriptionKey>,
    pub(crate) message: ServerMessage,
}

/// The hub.
#[derive(Debug)]
pub(crate) struct Hub {
    interests: HashMap<SubscriptionKey, Interest>,
    /// What each session is subscribed to.
    sessions: HashMap<WalletId, BTreeSet<SubscriptionKey>>,
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

    /// Ends a session; gives the keys that nobody is interested in any more.
    pub(crate) fn close(&mut self, session: WalletId) -> Vec<SubscriptionKey> {
        let Some(closed) = self.sessions.remove(&session) else { return Vec::new() };
        closed.into_iter().filter(|key| self.leave(session, key)).collect()
    }

    fn leave(&mut self, session: WalletId, key: &SubscriptionKey) -> bool {
        let Some(interest) = self.interests.get_mut(key) else { return false };
        interest.sessions.remove(&session);
        let abandoned = interest.sessions.is_empty();
        if abandoned {
            self.interests.remove(key);
        }
        abandoned && *key != SubscriptionKey::Tip
    }

    pub(crate) fn keys(&self) -> Vec<SubscriptionKey> {
        self.interests.keys().filter(|key| **key != SubscriptionKey::Tip).cloned().collect()
    }

    /// How many of these there are.
    pub(crate) fn key_count(&self) -> usize {
        self.interests.keys().filter(|key| **key != SubscriptionKey::Tip).count()
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
            open.insert(key.clone());
            if *key == SubscriptionKey::Tip {
                self.interests.entry(key.clone()).or_default().ready = true;
            } else if !self.interests.get(key).is_some_and(|interest| interest.ready) {
                new.push(key.clone());
            }
            // Live from the moment of the snapshot, not before: until then the session gets nothing for this key.
            self.interests.entry(key.clone()).or_default();
        }
        (refused, new)
    }

    /// Ends subscriptions; gives how many there were and the keys that nobody is interested in any more.
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

    /// Sends the snapshots and goes live, in one step.
    pub(crate) fn answer_subscription(
        &mut self,
        session: WalletId,
        id: Option<u64>,
        keys: &[SubscriptionKey],
        refused: &HashMap<SubscriptionKey, WireError>,
    ) {
        let results = keys
            .iter()
            .map(|key| {
                let outcome = match (refused.get(key), self.interests.get_mut(key)) {
                    (Some(error), _) => KeyOutcome::Error(error.clone()),
                    (None, Some(interest)) => {
                        interest.sessions.insert(session);
                        KeyOutcome::Snapshot {
                            utxos: interest.utxos.values().filter_map(Words::told).cloned().collect(),
                            proofs: interest.proofs.values().flatten().cloned().collect(),
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
        let Some(tip) = self.tips.believed() else { return };
        let mut pages = pages(results).into_iter().peekable();
        while let Some(results) = pages.next() {
            let more = pages.peek().is_some();
            let message = ServerMessage::UTXOSubscribed { results, tip, more };
            self.deliveries.push_back(Delivery { session, id, key: None, message });
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
            interest.ready |= interest.heard.len() >= self.needed;
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
        let new_proof = proof.filter(|proof| {
            let copies = interest.proofs.entry(proof.txid()).or_default();
            let new = copies.len() < self.needed && !copies.contains(proof);
            copies.extend(new.then(|| proof.clone()));
            new
        });
        let words = interest.utxos.entry(utxo.outpoint).or_default();
        let news = words.take(link, utxo, self.needed, new_proof.as_ref().map(FinalityProof::txid));
        let Some(utxo) = news else {
            self.duplicates += 1;
            return;
        };
        let listeners = interest.sessions.clone();
        let message = ServerMessage::UTXOStateNotification {
            key: key.clone(),
            state: utxo.state(),
            utxo,
            proof: new_proof.map(Box::new),
        };
        for session in listeners {
            self.send(session, key, message.clone());
        }
    }

    /// A node's word on a transaction. That a block has it, or contradicts it, has to be said by f + 1 nodes; what
    /// comes before that is told as it comes.
    pub(crate) fn take_status(&mut self, link: LinkId, txid: Txid, status: &TransactionStatus) {
        let key = SubscriptionKey::Txid(txid);
        let Some(interest) = self.interests.get_mut(&key) else { return };
        if rank(status) == PLACED {
            interest.placed.insert(link, status.clone());
            if interest.placed.values().filter(|said| *said == status).count() < self.needed {
                self.duplicates += 1;
                return;
            }
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
        for session in interest.sessions.clone() {
            self.send(session, &key, ServerMessage::TransactionStatus { txid, status: status.clone() });
        }
    }

    /// A node's tip; wallets check headers themselves.
    pub(crate) fn take_tip(&mut self, link: LinkId, tip: ChainTip) {
        let Some(tip) = self.tips.take(link, tip) else { return };
        let key = SubscriptionKey::Tip;
        let listeners =
            self.interests.get(&key).map(|interest| interest.sessions.clone()).unwrap_or_default();
        for session in listeners {
            self.send(session, &key, ServerMessage::Tip { tip });
        }
    }

    fn send(&mut self, session: WalletId, key: &SubscriptionKey, message: ServerMessage) {
        self.deliveries.push_back(Delivery { session, id: None, key: Some(key.clone()), message });
    }
}

fn is_conflict(status: &TransactionStatus) -> bool {
    matches!(status, TransactionStatus::Conflicted { .. })
}

impl Interest {
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
mod tests {
    use super::*;
    use bitcoin::{Amount, BlockHash, ScriptBuf, hashes::Hash as _};
    use quorate_protocol::{
        Round,
        wire::{BlockRef, ConfirmedSpend, Lock},
    };

    fn txid(byte: u8) -> Txid {
        Txid::from_byte_array([byte; 32])
    }

    fn utxo(lock: bool) -> UtxoRecord {
        UtxoRecord {
            outpoint: OutPoint { txid: txid(1), vout: 0 },
            value: Amount::from_sat(1),
            script_pubkey: ScriptBuf::new(),
            tip_height: 1,
            created: None,
            conflicted: None,
            final_parent: None,
            round: Round(0),
            lock: lock.then_some(Lock { txid: txid(2), round: Round(0), locked_at: 5 }),
            votes: 0,
            spend: None,
            spent: None,
        }
    }

    fn hub() -> (Hub, SubscriptionKey) {
        let mut hub = Hub::new(1);
        hub.take_tip(LinkId(1), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
        hub.open(WalletId(1));
        (hub, SubscriptionKey::Script(ScriptBuf::new()))
    }

    fn next(hub: &mut Hub) -> Option<(Option<u64>, ServerMessage)> {
        hub.poll_delivery().map(|one| (one.id, one.message))
    }

    fn subscribe(hub: &mut Hub, key: &SubscriptionKey) {
        let keys = [key.clone()];
        let (refused, new) = hub.subscribe(WalletId(1), &keys);
        for key in new {
            let outcome = KeyOutcome::Snapshot {
                utxos: vec![utxo(false)],
                proofs: vec![],
                status: None,
                history_from: Some(0),
            };
            hub.take_result(LinkId(1), KeyResult { key, outcome });
        }
        hub.answer_subscription(WalletId(1), Some(1), &keys, &refused);
    }

    #[test]
    fn the_first_copy_goes_out_and_the_others_do_not() {
        let (mut hub, key) = hub();
        subscribe(&mut hub, &key);
        assert!(matches!(next(&mut hub), Some((Some(1), ServerMessage::UTXOSubscribed { .. }))));
        for node in 1..=7 {
            hub.notify(LinkId(node), &key, &utxo(true), None);
        }
        assert!(matches!(next(&mut hub), Some((None, ServerMessage::UTXOStateNotification { .. }))));
        assert!(next(&mut hub).is_none());
        assert_eq!(hub.duplicates, 6);
    }

    #[test]
    fn a_broken_proof_that_comes_first_does_not_keep_the_good_one_back() {
        let mut hub = Hub::new(4);
        hub.take_tip(LinkId(1), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
        hub.take_tip(LinkId(2), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
        hub.open(WalletId(1));
        let key = SubscriptionKey::Script(ScriptBuf::new());
        subscribe(&mut hub, &key);
        while next(&mut hub).is_some() {}
        let transaction = bitcoin::Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: Vec::new(),
            output: Vec::new(),
        };
        let proof = |round: u32| FinalityProof::Attested {
            transaction: transaction.clone(),
            rounds: vec![Round(round)],
            commits: BTreeMap::new(),
        };
        let mut told = |copy: u32| {
            hub.notify(LinkId(1), &key, &utxo(false), Some(proof(copy)));
            match next(&mut hub) {
                Some((_, ServerMessage::UTXOStateNotification { proof, .. })) => proof.is_some(),
                _ => false,
            }
        };
        assert!(told(7), "the broken one");
        assert!(told(0), "the good one");
        assert!(!told(0) && !told(7), "each once");
        assert!(!told(8), "f + 1 copies have an honest one among them: no more are told");
    }

    #[test]
    fn a_change_before_the_snapshot_is_in_the_snapshot() {
        let (mut hub, key) = hub();
        let keys = [key.clone()];
        let (refused, new) = hub.subscribe(WalletId(1), &keys);
        assert_eq!(new, keys);
        assert!(!hub.is_ready(&keys));
        hub.notify(LinkId(2), &key, &utxo(true), None);
        let outcome = KeyOutcome::Snapshot {
            utxos: vec![utxo(false)],
            proofs: vec![],
            status: None,
            history_from: Some(0),
        };
        hub.take_result(LinkId(1), KeyResult { key: key.clone(), outcome });
        assert!(hub.is_ready(&keys));
        hub.answer_subscription(WalletId(1), None, &keys, &refused);
        let Some((_, ServerMessage::UTXOSubscribed { results, .. })) = next(&mut hub) else {
            panic!("a snapshot")
        };
        let KeyOutcome::Snapshot { utxos, .. } = &results[0].outcome else { panic!("accepted") };
        assert!(utxos[0].lock.is_some(), "the newer fact of another node is not lost");
    }

    #[test]
    fn a_session_that_lost_news_of_a_key_hears_no_more_of_it_until_it_subscribes_anew() {
        let (mut hub, key) = hub();
        subscribe(&mut hub, &key);
        while next(&mut hub).is_some() {}
        hub.mute(WalletId(1), &key);
        hub.notify(LinkId(1), &key, &utxo(true), None);
        assert!(next(&mut hub).is_none());
        subscribe(&mut hub, &key);
        let Some((_, ServerMessage::UTXOSubscribed { results, .. })) = next(&mut hub) else {
            panic!("a snapshot")
        };
        let KeyOutcome::Snapshot { utxos, .. } = &results[0].outcome else { panic!("accepted") };
        assert!(utxos[0].lock.is_some(), "the new snapshot has what was lost");
    }

    #[test]
    fn a_conflict_and_its_end_go_out_once_each() {
        let (mut hub, _) = hub();
        let key = SubscriptionKey::Txid(txid(1));
        subscribe(&mut hub, &key);
        while next(&mut hub).is_some() {}
        let block = BlockRef { height: 2, hash: BlockHash::all_zeros() };
        let conflicted = TransactionStatus::Conflicted { by: ConfirmedSpend { txid: txid(2), block } };
        let confirmed = TransactionStatus::Confirmed { block };
        for status in [TransactionStatus::Broadcasting { refusal: None }, conflicted, confirmed] {
            for _node in 0..3 {
                hub.take_status(LinkId(1), txid(1), &status);
            }
            let Some((_, ServerMessage::TransactionStatus { status: told, .. })) = next(&mut hub) else {
                panic!("{status:?}")
            };
            assert_eq!(told, status);
            assert!(next(&mut hub).is_none());
        }
    }

    #[test]
    fn the_last_one_to_leave_ends_the_interest() {
        let (mut hub, key) = hub();
        subscribe(&mut hub, &key);
        assert_eq!(hub.unsubscribe(WalletId(1), std::slice::from_ref(&key)), (1, vec![key]));
        assert!(hub.close(WalletId(1)).is_empty());
        assert!(hub.keys().is_empty());
    }
}
