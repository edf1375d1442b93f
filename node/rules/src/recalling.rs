//! What is wanted of the archive, and what is told of it.

use crate::{
    SessionId,
    archive::{Archived, Recall, SettledTransaction},
    context::Context,
    lookups::Parked,
    subscriptions::Target,
};
use bitcoin::Txid;
use quorate_protocol::{
    finality::FinalityProof,
    wire::{
        ClientMessage, ServerMessage, SubscriptionKey, TransactionStatus, UtxoRecord, VotingRequest, limits,
    },
};

impl Context {
    /// What has to be known of the archive before an input can be handled.
    pub(crate) fn wanted_of_archive(&self, input: &Parked) -> Vec<Recall> {
        match input {
            Parked::Request { request: VotingRequest::FinalTransaction { proof, .. }, .. } => {
                self.may_be_settled(proof)
            }
            Parked::Shown { proof, .. } => self.may_be_settled(proof),
            Parked::Client { message, .. } => self.wanted_of_message(message),
            Parked::Request { .. } => Vec::new(),
        }
    }

    fn wanted_of_message(&self, message: &ClientMessage) -> Vec<Recall> {
        match message {
            ClientMessage::FinalTransaction { proof } => self.may_be_settled(proof),
            ClientMessage::ProofQuery { txid } => self.unknown_transaction(*txid).into_iter().collect(),
            ClientMessage::UTXOStateQuery { keys } if keys.len() <= limits::KEYS_PER_MESSAGE_MAX => {
                keys.iter().filter_map(|key| self.history_of(key)).collect()
            }
            ClientMessage::TransactionBroadcast { proposal, .. } => {
                let known = proposal.outpoints().iter().all(|input| self.ledger.knows_origin(input));
                if known { Vec::new() } else { self.unrecorded(proposal.txid()) }
            }
            ClientMessage::UTXOStateQuery { .. }
            | ClientMessage::UTXOSubscribe { .. }
            | ClientMessage::UTXOUnsubscribe { .. }
            | ClientMessage::TransactionCancel { .. }
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
    /// ago. After its own seal a node takes in what comes at once: its epoch may be over before the archive answers,
    /// and the next one can tell as well.
    fn may_be_settled(&self, proof: &FinalityProof) -> Vec<Recall> {
        let known = || proof.outpoints().all(|input| self.ledger.knows_origin(&input));
        if self.log.sealed().is_some() || known() {
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

    /// What the archive may have of a key.
    pub(crate) fn history_of(&self, key: &SubscriptionKey) -> Option<Recall> {
        match self.target(key).ok()? {
            Target::Script(script) => Some(Recall::Script(script)),
            Target::Txid(txid) => self.unknown_transaction(txid),
            Target::Outpoint(_) | Target::Account(_) | Target::Tip => None,
        }
    }

    /// What the archive says of a transaction, if it was asked for it.
    pub(crate) fn recalled_status(&self, txid: &Txid) -> Option<TransactionStatus> {
        let SettledTransaction { block, proof } = self.recalled.transactions.get(txid)?.clone();
        Some(match proof {
            Some(proof) => TransactionStatus::Signed { proof },
            None => TransactionStatus::Confirmed { block },
        })
    }

    /// Coins of the archive as of the present tip, without those that this node knows better.
    fn news_of<'a>(&'a self, coins: &'a [UtxoRecord]) -> impl Iterator<Item = UtxoRecord> + 'a {
        let unknown = coins.iter().filter(|coin| !self.ledger.knows(&coin.outpoint));
        unknown.cloned().map(|coin| UtxoRecord { tip_height: self.ledger.tip().height, ..coin })
    }

    /// What the archive was asked of a script.
    pub(crate) fn recalled_coins(&self, target: &Target) -> Vec<UtxoRecord> {
        let Target::Script(script) = target else { return Vec::new() };
        self.news_of(&self.recalled.coins).filter(|coin| coin.script_pubkey == *script).collect()
    }

    /// Tells a session what the archive has of keys that it is subscribed to.
    pub(crate) fn tell_history(&mut self, session: SessionId, archived: Archived) {
        let coins: Vec<UtxoRecord> = self.news_of(&archived.coins).collect();
        for utxo in coins {
            let target = Target::Script(utxo.script_pubkey.clone());
            for key in self.subscriptions.keys_of(session, &target) {
                let state = utxo.state();
                let utxo = utxo.clone();
                let message = ServerMessage::UTXOStateNotification { key, utxo, state, proof: None };
                self.send_client(session, None, message);
            }
        }
        for (txid, SettledTransaction { block, .. }) in archived.transactions {
            if !self.subscriptions.keys_of(session, &Target::Txid(txid)).is_empty() {
                let status = TransactionStatus::Confirmed { block };
                self.send_client(session, None, ServerMessage::TransactionStatus { txid, status });
            }
        }
    }
}
