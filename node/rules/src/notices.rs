//! What sessions hear: the greeting, snapshots, notifications.
//!
//! Snapshot and stream have no gap between them: subscribing and reading the snapshot happen in one step of the
//! machine.

use crate::{
    ChainCoin, Output, SessionId,
    archive::SettledTransaction,
    context::Context,
    ledger::{Conflict, LEASES_MAX},
    subscriptions::Target,
};
use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ChainTip, ConfirmedSpend, ErrorCode, Fault, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey,
        TransactionStatus, WireError, limits, pages,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Coins that are kept because somebody named them, and with which nothing happened; the oldest go first.
pub(crate) const LOOKED_UP_MAX: usize = 65_536;

impl Context {
    /// Takes in what the chain says of outpoints, and tells who waits for news of them: what they heard last may be
    /// of an earlier epoch.
    pub(crate) fn take_coins(&mut self, coins: Vec<(OutPoint, ChainCoin)>) {
        for (outpoint, coin) in coins {
            // In a block of another branch: the backend has left ours, or is wrong.
            if self.ledger.block_hash(coin.height).is_some_and(|hash| hash != coin.hash) {
                tracing::warn!(%outpoint, block = %coin.hash, "the backend has a coin in a block that is not in this node's chain");
                continue;
            }
            let new = !self.ledger.knows(&outpoint);
            self.ledger.add_coin(outpoint, coin);
            if new {
                self.notify_outpoint(outpoint, None);
            }
        }
        let subscriptions = &self.subscriptions;
        let is_heard = |outpoint: &OutPoint| subscriptions.is_heard(&Target::Outpoint(*outpoint));
        self.ledger.trim_looked_up(LOOKED_UP_MAX, is_heard);
    }

    /// Ends a subscription; `false` if there was none.
    pub(crate) fn unsubscribe(&mut self, session: SessionId, key: &SubscriptionKey) -> bool {
        self.subscriptions.remove(session, key)
    }

    pub(crate) fn greet(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        protocol: u32,
        pinned: Option<quorate_protocol::FederationId>,
    ) -> Result<(), WireError> {
        if protocol != limits::PROTOCOL_VERSION {
            let message = format!("this server speaks protocol {}, not {protocol}", limits::PROTOCOL_VERSION);
            return Err(WireError::sender(ErrorCode::UnsupportedProtocol, message));
        }
        let ours = self.federation.id();
        if let Some(other) = pinned.filter(|pinned| *pinned != ours) {
            let message = format!("this server serves federation {ours}, not {other}");
            return Err(WireError::sender(ErrorCode::WrongFederation, message));
        }
        self.subscriptions.greeted.insert(session);
        let agent = concat!("quorate-node/", env!("CARGO_PKG_VERSION")).to_owned();
        let tip = self.chain_tip();
        let welcome = ServerMessage::Welcome { protocol, federation: ours, agent, tip };
        self.send_client(session, id, welcome);
        Ok(())
    }

    fn chain_tip(&self) -> ChainTip {
        ChainTip { block: self.ledger.tip() }
    }

    pub(crate) fn send_pages(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        results: Vec<KeyResult>,
        message: impl Fn(Vec<KeyResult>, ChainTip, bool) -> ServerMessage,
    ) {
        let tip = self.chain_tip();
        let mut pages = pages(results).into_iter().peekable();
        while let Some(page) = pages.next() {
            let more = pages.peek().is_some();
            self.send_client(session, id, message(page, tip, more));
        }
    }

    pub(crate) fn target(&self, key: &SubscriptionKey) -> Result<Target, WireError> {
        Ok(match key {
            SubscriptionKey::Script(script) => Target::Script(script.clone()),
            SubscriptionKey::Address(address) => {
                let network = self.federation.network();
                let checked = address.clone().require_network(network).map_err(|_| {
                    let message = format!("the address is not of {network}");
                    WireError::sender(ErrorCode::InvalidKey, message)
                })?;
                Target::Script(checked.script_pubkey())
            }
            SubscriptionKey::Outpoint(outpoint) => Target::Outpoint(*outpoint),
            SubscriptionKey::Txid(txid) => Target::Txid(*txid),
            SubscriptionKey::Account(account) => Target::Account(*account),
            SubscriptionKey::Tip => Target::Tip,
        })
    }

    /// Subscribes to a key.
    pub(crate) fn subscribe(&mut self, session: SessionId, key: &SubscriptionKey) -> Result<(), WireError> {
        let target = self.target(key)?;
        let subscriptions = &self.subscriptions;
        if let Target::Script(script) = &target
            && !self.ledger.want(script)
            && !(self.ledger.make_room_for_scripts(|| subscriptions.scripts()) && self.ledger.want(script))
        {
            let limit = LEASES_MAX;
            let error =
                WireError::limit(ErrorCode::LimitExceeded, "scripts that a node watches", limit, limit + 1);
            return Err(WireError { retry: true, ..error });
        }
        if let Target::Account(account) = &target
            && self.ledger.account_since(account).is_none()
        {
            let code = ErrorCode::UnknownAccount;
            // Its wallet follows its addresses instead, whatever the reason.
            return Err(match self.ledger.accounts_full() {
                Some((what, limit)) => WireError::limit(code, what, limit, limit + 1),
                None if !self.has_room_for_account() => {
                    let message = "this node has no room at present for more accounts without a coin from where \
                        this one comes; follow its addresses";
                    WireError::passing(code, Fault::Receiver, message)
                }
                None => WireError::sender(code, "send the account's record along"),
            });
        }
        self.subscriptions.add(session, key.clone(), target)
    }

    /// What is known of a key now, without coins that blocks below a height spend.
    pub(crate) fn query(&self, key: SubscriptionKey, since: u32) -> KeyResult {
        let outcome = match self.target(&key) {
            Ok(target) => self.snapshot(&target, since),
            Err(error) => KeyOutcome::Error(error),
        };
        KeyResult { key, outcome }
    }

    fn snapshot(&self, target: &Target, since: u32) -> KeyOutcome {
        let (outpoints, history_from) = match target {
            Target::Script(script) => (self.ledger.by_script(script), Some(self.ledger.history_of(script))),
            Target::Account(id) => (self.ledger.by_account(id), self.ledger.account_since(id)),
            Target::Outpoint(outpoint) => (vec![*outpoint], None),
            Target::Txid(_) | Target::Tip => (Vec::new(), None),
        };
        // The archive has more than it tells at once.
        let history_from = history_from.map(|from| from.max(self.recalled.cut().unwrap_or(0)));
        let status = match target {
            Target::Txid(txid) => self.refused(txid).or_else(|| self.status_of(txid)),
            Target::Script(_) | Target::Outpoint(_) | Target::Account(_) | Target::Tip => None,
        };
        let mut utxos: Vec<_> =
            outpoints.iter().filter_map(|outpoint| self.ledger.current(outpoint)).collect();
        utxos.extend(self.recalled_coins(target));
        utxos.retain(|utxo| utxo.spent.is_none_or(|spent| spent.block.height >= since));
        let mut txids: BTreeSet<Txid> = utxos.iter().map(|utxo| utxo.outpoint.txid).collect();
        if let (Target::Txid(txid), Some(TransactionStatus::Broadcasting { .. })) = (target, &status) {
            txids.insert(*txid);
        }
        txids.extend(utxos.iter().filter_map(|utxo| utxo.spend).map(|spend| spend.txid));
        let proofs = txids
            .iter()
            .filter_map(|txid| self.ledger.record(txid))
            .filter_map(|one| one.proof.clone())
            .collect();
        let followed = if let Target::Account(id) = target { self.ledger.followed(id) } else { None };
        KeyOutcome::Snapshot { utxos, proofs, status, history_from, followed }
    }

    fn status_of(&self, txid: &Txid) -> Option<TransactionStatus> {
        if let Some(block) = self.ledger.block_of(txid) {
            return Some(TransactionStatus::Confirmed { block });
        }
        let Some(record) = self.ledger.record(txid) else {
            return self.recalled.transactions.get(txid).map(SettledTransaction::status);
        };
        let conflict = record.proof.as_ref().and_then(|_| self.ledger.conflict(*txid));
        if let Some(Conflict { by, .. }) = conflict {
            return Some(TransactionStatus::Conflicted { by });
        }
        Some(match (&record.proof, &record.certificate) {
            (Some(proof), _) => TransactionStatus::Signed { proof: Box::new(proof.clone()) },
            (None, Some(_)) => TransactionStatus::Approved,
            (None, None) => TransactionStatus::Pending,
        })
    }

    pub(crate) fn notify_outpoint(&mut self, outpoint: OutPoint, proof: Option<&FinalityProof>) {
        let Some(coin) = self.ledger.coin(&outpoint) else { return };
        let mut listeners = self.subscriptions.listeners(&Target::Script(ScriptBuf::from(&*coin.script)));
        listeners.extend(self.subscriptions.listeners(&Target::Outpoint(outpoint)));
        if let Some(account) = self.ledger.account_of(&outpoint) {
            listeners.extend(self.subscriptions.listeners(&Target::Account(account)));
        }
        self.notify(&listeners, &outpoint, proof);
    }

    /// Tells listeners of a coin as it is now.
    pub(crate) fn notify(
        &mut self,
        listeners: &[(SessionId, SubscriptionKey)],
        outpoint: &OutPoint,
        proof: Option<&FinalityProof>,
    ) {
        let Some(utxo) = self.ledger.current(outpoint) else { return };
        for (session, key) in listeners {
            let (key, state) = (key.clone(), utxo.state());
            let followed =
                if let SubscriptionKey::Account(id) = &key { self.ledger.followed(id) } else { None };
            let (utxo, proof) = (utxo.clone(), proof.cloned().map(Box::new));
            let message = ServerMessage::UTXOStateNotification { key, utxo, state, proof, followed };
            self.send_client(*session, None, message);
        }
    }

    pub(crate) fn notify_status(&mut self, txid: Txid, status: &TransactionStatus) {
        for (session, _) in self.subscriptions.listeners(&Target::Txid(txid)) {
            self.send_client(
                session,
                None,
                ServerMessage::TransactionStatus { txid, status: status.clone() },
            );
        }
    }

    /// Has a transaction's place in the chain found for a wallet, or that of what contradicts it.
    pub(crate) fn find_place(&mut self, session: SessionId, id: Option<u64>, txid: Txid) {
        let place = self.ledger.block_of(&txid).map(|block| (ConfirmedSpend { txid, block }, Vec::new()));
        let settled = || self.recalled.transactions.get(&txid).map(|settled| settled.place(txid));
        let conflict = || {
            let conflict = self.ledger.conflict(txid)?;
            Some((conflict.by, self.ledger.transactions_of(&conflict.path)))
        };
        match place.or_else(conflict).or_else(settled) {
            Some((of, path)) => self.outputs.push_back(Output::Prove { session, id, txid, of, path }),
            None => self.send_client(session, id, ServerMessage::Proof { txid, proof: None, conflict: None }),
        }
    }

    /// Tells again who was told of transactions that a block contradicts, or does not contradict any more.
    pub(crate) fn tell_conflicts(&mut self, txids: &BTreeSet<Txid>) {
        for txid in txids {
            if let Some(status) = self.status_of(txid) {
                self.notify_status(*txid, &status);
            }
            for outpoint in self.ledger.outputs_of(*txid) {
                self.notify_outpoint(outpoint, None);
            }
        }
    }

    /// How the backend took a final transaction: kept for the operator, and told to who waits for it if it is news.
    pub(crate) fn take_broadcast(&mut self, txid: Txid, refusal: Option<String>) {
        if self.ledger.proof(&txid).is_none() || self.ledger.block_of(&txid).is_some() {
            return;
        }
        if self.broadcasts.insert(txid, refusal.clone()).is_some_and(|before| before == refusal) {
            return;
        }
        if let Some(reason) = &refusal {
            tracing::warn!(%txid, reason, "the chain backend does not take a final transaction; it is tried again");
        }
        self.notify_status(txid, &TransactionStatus::Broadcasting { refusal });
    }

    /// A final transaction with what it descends from and the backend did not take: it may pay for them.
    pub(crate) fn with_refused_ancestors(&self, transaction: &Transaction) -> Vec<Transaction> {
        let (mut all, mut seen) = (vec![transaction.clone()], BTreeSet::new());
        let mut next = 0;
        while let Some(transaction) = all.get(next) {
            next += 1;
            let parents: Vec<Txid> =
                transaction.input.iter().map(|input| input.previous_output.txid).collect();
            for parent in parents {
                let refused = self.refused(&parent).is_some() && seen.insert(parent);
                all.extend(
                    self.ledger.proof(&parent).filter(|_| refused).map(|proof| proof.transaction().clone()),
                );
            }
        }
        all
    }

    fn refused(&self, txid: &Txid) -> Option<TransactionStatus> {
        if self.ledger.block_of(txid).is_some() || self.ledger.conflict(*txid).is_some() {
            return None;
        }
        let refusal = self.broadcasts.get(txid)?.clone()?;
        Some(TransactionStatus::Broadcasting { refusal: Some(refusal) })
    }

    /// Final transactions that the backend does not take.
    pub(crate) fn refusals(&self) -> BTreeMap<Txid, String> {
        let refused = self.broadcasts.iter();
        refused.filter_map(|(txid, refusal)| Some((*txid, refusal.clone()?))).collect()
    }

    /// Keeps enforced transactions that a block contradicts for the operator.
    pub(crate) fn alarm(&mut self, dead: &BTreeSet<Txid>) {
        for txid in dead.iter().filter(|txid| self.ledger.is_promised(txid)) {
            if let Some(Conflict { by, .. }) = self.ledger.conflict(*txid) {
                let height = by.block.height;
                tracing::error!(%txid, by = %by.txid, height, "BREACH: a block contradicts an enforced transaction");
                self.breaches.insert(*txid, by);
            }
        }
    }

    /// A block was undone: what it contradicted is alive, unless another one does it too.
    pub(crate) fn end_alarm(&mut self, revived: &BTreeSet<Txid>) {
        self.breaches.retain(|txid, _| !revived.contains(txid));
        self.alarm(revived);
    }

    pub(crate) fn notify_tip(&mut self) {
        let tip = self.chain_tip();
        for (session, _) in self.subscriptions.listeners(&Target::Tip) {
            self.send_client(session, None, ServerMessage::Tip { tip });
        }
    }
}
