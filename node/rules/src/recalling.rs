//! What is wanted of the archive, and what is told of it.

use crate::{
    archive::{Archived, Recall},
    context::Context,
    effects::Effect,
    lookups::{History, Parked},
    records::ChangeSet,
    subscriptions::Target,
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ClientMessage, ErrorCode, Fault, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey,
        TransactionStatus, UtxoRecord, VotingRequest, WireError, limits,
    },
};
use std::collections::BTreeSet;

impl Context {
    /// What has to be known of the archive before an input can be handled.
    pub(crate) fn wanted_of_archive(&self, input: &Parked) -> Vec<Recall> {
        match input {
            Parked::Request { request: VotingRequest::FinalTransaction { proof, .. }, .. } => {
                self.may_be_settled(proof)
            }
            Parked::Shown { proof, .. } => self.may_be_settled(proof),
            Parked::Left { txids, .. } => txids.iter().copied().map(Recall::Transaction).collect(),
            Parked::Bound { outpoints, .. } => {
                self.ledger.unknown_of_bound(outpoints).into_iter().map(Recall::Coin).collect()
            }
            Parked::Client { message, .. } => self.wanted_of_message(message),
            Parked::Request { .. } | Parked::Settling { .. } | Parked::Found { .. } => Vec::new(),
        }
    }

    fn wanted_of_message(&self, message: &ClientMessage) -> Vec<Recall> {
        match message {
            ClientMessage::FinalTransaction { proof } => self.may_be_settled(proof),
            ClientMessage::ProofQuery { txid } => self.unknown_transaction(*txid).into_iter().collect(),
            ClientMessage::UTXOStateQuery { keys } if keys.len() <= limits::KEYS_PER_MESSAGE_MAX => {
                self.histories_of(keys, 0)
            }
            ClientMessage::TransactionBroadcast { proposal, .. }
            | ClientMessage::TransactionCancel { proposal, .. } => {
                let known = proposal.outpoints().iter().all(|input| self.ledger.knows_origin(input));
                if known { Vec::new() } else { self.unrecorded(proposal.txid()) }
            }
            ClientMessage::UTXOStateQuery { .. }
            | ClientMessage::UTXOSubscribe { .. }
            | ClientMessage::UTXOUnsubscribe { .. }
            | ClientMessage::Hello { .. }
            | ClientMessage::SignResponse { .. }
            | ClientMessage::AccountRegister { .. }
            | ClientMessage::FederationQuery
            | ClientMessage::HeadersQuery { .. }
            | ClientMessage::FeeRateQuery
            | ClientMessage::Ping => Vec::new(),
        }
    }

    /// A proof of something new spends coins that this node knows; of another one it may be that it was settled long
    /// ago.
    fn may_be_settled(&self, proof: &FinalityProof) -> Vec<Recall> {
        if proof.outpoints().all(|input| self.ledger.knows_origin(&input)) {
            return Vec::new();
        }
        self.unrecorded(proof.txid())
    }

    fn unrecorded(&self, txid: Txid) -> Vec<Recall> {
        let known = self.ledger.record(&txid).is_some();
        (!known).then_some(Recall::Transaction(txid)).into_iter().collect()
    }

    fn unknown_transaction(&self, txid: Txid) -> Option<Recall> {
        let known = self.ledger.record(&txid).is_some() || self.ledger.block_of(&txid).is_some();
        (!known).then_some(Recall::Transaction(txid))
    }

    /// Forgets proofs of long ago: a seal of the epoch before may have had them as news.
    pub(crate) fn forget_settled(&mut self, txids: &[Txid]) {
        let mut change = ChangeSet::default();
        for txid in txids.iter().filter(|txid| self.recalled.transactions.contains_key(*txid)) {
            tracing::info!(%txid, "a transaction that was settled long ago is forgotten again");
            let inputs = self.ledger.record(txid).map(|record| record.target.inputs().clone());
            self.ledger.forget_proof_of(txid);
            change.forget_transaction(txid);
            inputs.iter().flatten().for_each(|(outpoint, _)| change.forget_round(outpoint));
        }
        if !change.is_empty() {
            self.persist(change);
        }
    }

    /// Coins that were forgotten are known again as far as what holds other ones depends on them.
    pub(crate) fn note_forgotten(&mut self, bound: Vec<OutPoint>) {
        self.ledger.note_forgotten(self.recalled.coins.values());
        // What waits for them may go on.
        self.effects.push_back(Effect::Settled(bound));
    }

    /// What the archive may have of keys, each once, for who knows what blocks below a height spend.
    pub(crate) fn histories_of(&self, keys: &[SubscriptionKey], since: u32) -> Vec<Recall> {
        let wanted: BTreeSet<Recall> = keys.iter().filter_map(|key| self.history_of(key, since)).collect();
        wanted.into_iter().collect()
    }

    fn history_of(&self, key: &SubscriptionKey, since: u32) -> Option<Recall> {
        // Coins that blocks above it spend are here.
        let is_here = since > self.ledger.undo_floor();
        match self.target(key).ok()? {
            Target::Script(_) | Target::Account(_) if is_here => None,
            Target::Script(script) => Some(Recall::Script(script)),
            Target::Account(account) => Some(Recall::Account(account, since)),
            Target::Outpoint(outpoint) if !self.ledger.knows(&outpoint) => Some(Recall::Coin(outpoint)),
            Target::Txid(txid) => self.unknown_transaction(txid),
            Target::Outpoint(_) | Target::Tip => None,
        }
    }

    /// What the archive says of a transaction, if it was asked for it.
    pub(crate) fn recalled_status(&self, txid: &Txid) -> Option<TransactionStatus> {
        let settled = self.recalled.transactions.get(txid)?;
        let signed = self.recalled.proofs.get(txid).cloned().map(|proof| TransactionStatus::Signed { proof });
        Some(signed.unwrap_or_else(|| settled.status()))
    }

    /// Coins of the archive of a script or outpoint, as of the present tip, without those that this node knows better.
    pub(crate) fn recalled_coins(&self, target: &Target) -> Vec<UtxoRecord> {
        let coins = match target {
            Target::Script(script) => self.recalled.of_script(script),
            Target::Outpoint(outpoint) => self.recalled.coins.get(outpoint).into_iter().collect(),
            Target::Account(account) => {
                let coins = self.recalled.coins.values();
                coins.filter(|coin| self.ledger.is_of(&coin.script_pubkey, account)).collect()
            }
            Target::Txid(_) | Target::Tip => Vec::new(),
        };
        let unknown = coins.into_iter().filter(|coin| !self.ledger.knows(&coin.outpoint));
        unknown.cloned().map(|coin| UtxoRecord { tip_height: self.ledger.tip().height, ..coin }).collect()
    }

    /// Answers a subscription, knowing what the archive has; nothing if it could not be asked, and no history is known
    /// then from before what the ledger has. What was ended meanwhile is not told.
    pub(crate) fn answer_subscription(&mut self, history: History, archived: Option<Archived>) {
        let History { session, id, keys, since, refused } = history;
        let asked = archived.is_some();
        self.recalled = archived.unwrap_or_default();
        let floor = self.ledger.undo_floor();
        let answer = |key: SubscriptionKey| {
            if let Some(error) = refused.get(&key) {
                return KeyResult { key, outcome: KeyOutcome::Error(error.clone()) };
            }
            if !self.subscriptions.has(session, &key) {
                let message = "the subscription was ended meanwhile";
                let error = WireError::passing(ErrorCode::NotReady, Fault::Sender, message);
                return KeyResult { key, outcome: KeyOutcome::Error(error) };
            }
            let mut result = self.query(key, since);
            if let KeyOutcome::Snapshot { history_from: Some(from), .. } = &mut result.outcome
                && !asked
            {
                *from = (*from).max(floor);
            }
            result
        };
        let results: Vec<KeyResult> = keys.into_iter().map(answer).collect();
        self.recalled = Archived::default();
        let since = Some(since).filter(|since| *since > 0);
        self.send_pages(session, id, results, |results, tip, more| ServerMessage::UTXOSubscribed {
            results,
            tip,
            more,
            since,
        });
    }
}
