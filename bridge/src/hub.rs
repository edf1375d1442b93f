//! The rules of the bridge, without I/O: who is interested in what, what is news, and who is too slow.
//!
//! The bridge relays; it never validates. It keeps, per key that somebody is subscribed to, the join of what all nodes said, and
//! forwards a notification exactly when it changes that join: the first copy of each event goes out, the others do not. A new
//! subscriber gets the join as its snapshot in the same step in which it goes live, so there is no gap.

use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ChainTip, ClientMessage, ErrorCode, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey,
        TransactionStatus, UtxoRecord, WireError, limits, pages,
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::sync::mpsc;

/// Notifications that may wait for one slow wallet before it is told of a gap.
pub const SESSION_QUEUE_MAX: usize = 1_024;

/// A wallet's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

#[derive(Debug, Default)]
struct Interest {
    sessions: BTreeSet<SessionId>,
    ready: bool,
    utxos: BTreeMap<OutPoint, UtxoRecord>,
    proofs: BTreeMap<Txid, FinalityProof>,
    status: Option<TransactionStatus>,
    history_from: Option<u32>,
}

#[derive(Debug)]
struct Session {
    queue: mpsc::Sender<(Option<u64>, ServerMessage)>,
    keys: BTreeSet<SubscriptionKey>,
    /// Keys whose notifications were lost because the queue was full.
    gap: BTreeSet<SubscriptionKey>,
}

/// Counters for `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub forwarded: u64,
    pub duplicates: u64,
    pub gaps: u64,
}

/// The hub.
#[derive(Debug, Default)]
pub struct Hub {
    interests: HashMap<SubscriptionKey, Interest>,
    sessions: HashMap<SessionId, Session>,
    tip: Option<ChainTip>,
    pub counters: Counters,
}

impl Hub {
    pub fn open(&mut self, session: SessionId, queue: mpsc::Sender<(Option<u64>, ServerMessage)>) {
        self.sessions.insert(session, Session { queue, keys: BTreeSet::new(), gap: BTreeSet::new() });
    }

    /// Ends a session; gives the keys that nobody is interested in any more.
    pub fn close(&mut self, session: SessionId) -> Vec<SubscriptionKey> {
        let Some(closed) = self.sessions.remove(&session) else { return Vec::new() };
        closed.keys.into_iter().filter(|key| self.leave(session, key)).collect()
    }

    fn leave(&mut self, session: SessionId, key: &SubscriptionKey) -> bool {
        let Some(interest) = self.interests.get_mut(key) else { return false };
        interest.sessions.remove(&session);
        let abandoned = interest.sessions.is_empty();
        if abandoned {
            self.interests.remove(key);
        }
        abandoned && *key != SubscriptionKey::Tip
    }

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub fn keys(&self) -> Vec<SubscriptionKey> {
        self.interests.keys().filter(|key| **key != SubscriptionKey::Tip).cloned().collect()
    }

    pub fn tip(&self) -> Option<ChainTip> {
        self.tip
    }

    /// Registers interest. Gives, per key over the session's limit, its refusal, and the keys that no node has been asked for yet.
    pub fn subscribe(
        &mut self,
        session: SessionId,
        keys: &[SubscriptionKey],
    ) -> (HashMap<SubscriptionKey, WireError>, Vec<SubscriptionKey>) {
        let mut refused = HashMap::new();
        let mut new = Vec::new();
        let Some(open) = self.sessions.get_mut(&session) else { return (refused, new) };
        for key in keys {
            let limit = limits::KEYS_PER_SESSION_MAX;
            if open.keys.len() >= limit && !open.keys.contains(key) {
                let error = WireError::limit(
                    ErrorCode::LimitExceeded,
                    "keys in a session",
                    limit,
                    open.keys.len() + 1,
                );
                refused.insert(key.clone(), error);
                continue;
            }
            open.keys.insert(key.clone());
            open.gap.remove(key);
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
    pub fn unsubscribe(
        &mut self,
        session: SessionId,
        keys: &[SubscriptionKey],
    ) -> (usize, Vec<SubscriptionKey>) {
        let Some(open) = self.sessions.get_mut(&session) else { return (0, Vec::new()) };
        let ended: Vec<_> = keys.iter().filter(|key| open.keys.remove(*key)).cloned().collect();
        let abandoned = ended.iter().filter(|key| self.leave(session, key)).cloned().collect();
        (ended.len(), abandoned)
    }

    pub fn is_ready(&self, keys: &[SubscriptionKey]) -> bool {
        keys.iter().all(|key| self.interests.get(key).is_none_or(|interest| interest.ready))
    }

    /// Sends the snapshots and goes live, in one step.
    pub fn answer_subscription(
        &mut self,
        session: SessionId,
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
                            utxos: interest.utxos.values().cloned().collect(),
                            proofs: interest.proofs.values().cloned().collect(),
                            status: interest.status.clone(),
                            history_from: interest.history_from,
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
        if let (Some(tip), Some(open)) = (self.tip, self.sessions.get(&session)) {
            let mut pages = pages(results).into_iter().peekable();
            while let Some(results) = pages.next() {
                let more = pages.peek().is_some();
                // A full queue here means that the wallet does not read its own answers; its connection is then closed by the liveness timer.
                let _full = open.queue.try_send((id, ServerMessage::UTXOSubscribed { results, tip, more }));
            }
        }
    }

    /// A node's snapshot or refusal of a key that it was asked for.
    pub fn take_result(&mut self, result: KeyResult) {
        let KeyOutcome::Snapshot { utxos, proofs, status, history_from } = result.outcome else {
            return;
        };
        if let Some(interest) = self.interests.get_mut(&result.key) {
            interest.ready = true;
            let best = [interest.history_from, history_from].into_iter().flatten().min();
            interest.history_from = best;
        }
        for utxo in utxos {
            let created = proofs.iter().find(|proof| proof.txid() == utxo.outpoint.txid);
            let spent =
                proofs.iter().find(|proof| utxo.spend.is_some_and(|spend| spend.txid == proof.txid()));
            for proof in created.into_iter().chain(spent) {
                self.notify(&result.key, &utxo, Some(proof.clone()));
            }
            self.notify(&result.key, &utxo, None);
        }
        if let (SubscriptionKey::Txid(txid), Some(status)) = (&result.key, status) {
            self.take_status(*txid, &status);
        }
    }

    /// A notification of a node.
    pub fn notify(&mut self, key: &SubscriptionKey, utxo: &UtxoRecord, proof: Option<FinalityProof>) {
        let Some(interest) = self.interests.get_mut(key) else { return };
        let joined = interest.utxos.entry(utxo.outpoint);
        let changed = match joined {
            std::collections::btree_map::Entry::Vacant(empty) => {
                empty.insert(utxo.clone());
                true
            }
            std::collections::btree_map::Entry::Occupied(mut full) => full.get_mut().join(utxo),
        };
        let new_proof = proof.filter(|proof| interest.proofs.insert(proof.txid(), proof.clone()).is_none());
        if !changed && new_proof.is_none() {
            self.counters.duplicates += 1;
            return;
        }
        let Some(utxo) = interest.utxos.get(&utxo.outpoint).cloned() else { return };
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

    /// A node's word on a transaction.
    pub fn take_status(&mut self, txid: Txid, status: &TransactionStatus) {
        let key = SubscriptionKey::Txid(txid);
        let Some(interest) = self.interests.get_mut(&key) else { return };
        if interest.status.as_ref().is_some_and(|known| rank(known) >= rank(status)) {
            self.counters.duplicates += 1;
            return;
        }
        interest.status = Some(status.clone());
        for session in interest.sessions.clone() {
            self.send(session, &key, ServerMessage::TransactionStatus { txid, status: status.clone() });
        }
    }

    /// A node's tip. The first to tell of a block is believed until another tells of a higher one; wallets check headers themselves.
    pub fn take_tip(&mut self, tip: ChainTip) {
        if self.tip.is_some_and(|known| known.block.height >= tip.block.height) {
            return;
        }
        self.tip = Some(tip);
        let key = SubscriptionKey::Tip;
        let listeners =
            self.interests.get(&key).map(|interest| interest.sessions.clone()).unwrap_or_default();
        for session in listeners {
            self.send(session, &key, ServerMessage::Tip { tip });
        }
    }

    fn send(&mut self, session: SessionId, key: &SubscriptionKey, message: ServerMessage) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        if open.gap.contains(key) {
            return;
        }
        match open.queue.try_send((None, message)) {
            Ok(()) => self.counters.forwarded += 1,
            Err(_) => {
                open.gap.insert(key.clone());
                self.counters.gaps += 1;
            }
        }
    }

    /// Keys of a session for which something was lost; call when its queue has been written out, and tell it.
    pub fn take_gap(&mut self, session: SessionId) -> Vec<SubscriptionKey> {
        let Some(open) = self.sessions.get_mut(&session) else { return Vec::new() };
        let keys: Vec<_> = std::mem::take(&mut open.gap).into_iter().collect();
        for key in &keys {
            if let Some(interest) = self.interests.get_mut(key) {
                interest.sessions.remove(&session);
            }
        }
        keys
    }
}

/// The transaction that a request has the federation finish or stop. Such a request is followed until it ends: the wallet may have to sign.
#[expect(clippy::wildcard_enum_match_arm, reason = "only these have a coordinator")]
pub fn submitted_by(message: &ClientMessage) -> Option<Txid> {
    match message {
        ClientMessage::TransactionBroadcast { proposal, .. }
        | ClientMessage::TransactionCancel { proposal, .. } => Some(proposal.txid()),
        _other => None,
    }
}

/// Whether a message is the last answer to a question.
pub fn ends_answer(message: &ServerMessage) -> bool {
    !matches!(message, ServerMessage::UTXOStateResponse { more: true, .. })
}

/// Whether a message is the last one about a submission.
#[expect(clippy::wildcard_enum_match_arm, reason = "only these end a submission")]
pub fn ends_submission(message: &ServerMessage) -> bool {
    match message {
        ServerMessage::TransactionStatus { status, .. } => matches!(
            status,
            TransactionStatus::Signed { .. }
                | TransactionStatus::Rejected { .. }
                | TransactionStatus::Failed { .. }
                | TransactionStatus::AbortedByzantine { .. }
        ),
        ServerMessage::Error { .. } => true,
        _progress => false,
    }
}

fn rank(status: &TransactionStatus) -> u8 {
    match status {
        TransactionStatus::Pending => 0,
        TransactionStatus::Voting { votes, .. } => 1 + u8::try_from(*votes).unwrap_or(100).min(100),
        TransactionStatus::Approved => 110,
        TransactionStatus::Signing { .. } => 111,
        TransactionStatus::Failed { .. }
        | TransactionStatus::Rejected { .. }
        | TransactionStatus::AbortedByzantine { .. } => 112,
        TransactionStatus::Signed { .. } => 120,
        TransactionStatus::Broadcasting => 121,
        TransactionStatus::Confirmed { .. } => 122,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{Amount, BlockHash, ScriptBuf, hashes::Hash as _};
    use quorate_protocol::{
        Round,
        wire::{BlockRef, Lock},
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
            final_parent: None,
            round: Round(0),
            lock: lock.then_some(Lock { txid: txid(2), round: Round(0), locked_at: 5 }),
            votes: 0,
            spend: None,
            spent: None,
        }
    }

    fn hub() -> (Hub, mpsc::Receiver<(Option<u64>, ServerMessage)>, SubscriptionKey) {
        let mut hub = Hub::default();
        hub.take_tip(ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
        let (sender, receiver) = mpsc::channel(4);
        hub.open(SessionId(1), sender);
        (hub, receiver, SubscriptionKey::Script(ScriptBuf::new()))
    }

    fn subscribe(hub: &mut Hub, key: &SubscriptionKey) {
        let keys = [key.clone()];
        let (refused, new) = hub.subscribe(SessionId(1), &keys);
        for key in new {
            let outcome = KeyOutcome::Snapshot {
                utxos: vec![utxo(false)],
                proofs: vec![],
                status: None,
                history_from: Some(0),
            };
            hub.take_result(KeyResult { key, outcome });
        }
        hub.answer_subscription(SessionId(1), Some(1), &keys, &refused);
    }

    #[test]
    fn the_first_copy_goes_out_and_the_others_do_not() {
        let (mut hub, mut queue, key) = hub();
        subscribe(&mut hub, &key);
        assert!(matches!(queue.try_recv(), Ok((Some(1), ServerMessage::UTXOSubscribed { .. }))));
        for _node in 0..7 {
            hub.notify(&key, &utxo(true), None);
        }
        assert!(matches!(queue.try_recv(), Ok((None, ServerMessage::UTXOStateNotification { .. }))));
        assert!(queue.try_recv().is_err());
        assert_eq!((hub.counters.forwarded, hub.counters.duplicates), (1, 6));
    }

    #[test]
    fn a_change_before_the_snapshot_is_in_the_snapshot() {
        let (mut hub, mut queue, key) = hub();
        let keys = [key.clone()];
        let (refused, new) = hub.subscribe(SessionId(1), &keys);
        assert_eq!(new, keys);
        assert!(!hub.is_ready(&keys));
        hub.notify(&key, &utxo(true), None);
        let outcome = KeyOutcome::Snapshot {
            utxos: vec![utxo(false)],
            proofs: vec![],
            status: None,
            history_from: Some(0),
        };
        hub.take_result(KeyResult { key: key.clone(), outcome });
        assert!(hub.is_ready(&keys));
        hub.answer_subscription(SessionId(1), None, &keys, &refused);
        let Ok((_, ServerMessage::UTXOSubscribed { results, .. })) = queue.try_recv() else {
            panic!("a snapshot")
        };
        let KeyOutcome::Snapshot { utxos, .. } = &results[0].outcome else { panic!("accepted") };
        assert!(utxos[0].lock.is_some(), "the newer fact of another node is not lost");
    }

    #[test]
    fn a_full_queue_becomes_a_gap_for_the_key() {
        let (mut hub, mut queue, key) = hub();
        subscribe(&mut hub, &key);
        for vout in 0..10 {
            let mut record = utxo(true);
            record.outpoint.vout = vout;
            hub.notify(&key, &record, None);
        }
        assert_eq!(hub.counters.gaps, 1);
        while queue.try_recv().is_ok() {}
        assert_eq!(hub.take_gap(SessionId(1)), std::slice::from_ref(&key));
        subscribe(&mut hub, &key);
        let Ok((_, ServerMessage::UTXOSubscribed { results, .. })) = queue.try_recv() else {
            panic!("a snapshot")
        };
        let KeyOutcome::Snapshot { utxos, .. } = &results[0].outcome else { panic!("accepted") };
        assert_eq!(utxos.len(), 10, "the new snapshot has what was lost");
    }

    #[test]
    fn the_last_one_to_leave_ends_the_interest() {
        let (mut hub, _queue, key) = hub();
        subscribe(&mut hub, &key);
        assert_eq!(hub.unsubscribe(SessionId(1), std::slice::from_ref(&key)), (1, vec![key]));
        assert!(hub.close(SessionId(1)).is_empty());
        assert!(hub.keys().is_empty());
    }
}
