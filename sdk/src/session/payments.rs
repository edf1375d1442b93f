//! The payments of a session: submitted until they are final, or over by more than one server's word.

use super::{
    Event, Now, PaymentState, Session,
    pending::{Payment, Pending, SUBMIT_SILENCE},
};
use crate::{
    proposal::Proposal,
    release::ReleaseCertificate,
    wallet::{PaymentRequest, Quote, WalletError},
    wire::{ClientMessage, RejectReason, UtxoRecord, WireError},
};
use bitcoin::{
    Amount, FeeRate, OutPoint, Psbt, Txid,
    hashes::{Hash as _, sha256},
};

/// How often a payment that nodes rejected for a passing reason is submitted again before the reason is reported.
pub(super) const PASSING_REJECTS_MAX: u32 = 8;
/// Ended payments that are remembered.
const DORMANT_MAX: usize = 256;
/// Ends of payments that are remembered.
const OUTCOMES_MAX: usize = 256;

impl Session {
    /// Builds a payment as a PSBT, without reserving or sending anything.
    ///
    /// # Errors
    /// Dust, too little money, a fee rate out of bounds, a fee out of proportion at the server's rate, no amount.
    pub fn create_psbt(&mut self, request: &PaymentRequest) -> Result<Psbt, WalletError> {
        self.wallet.create_psbt(request, self.fee_rate)
    }

    /// Says what a payment would be, without reserving or sending anything.
    ///
    /// # Errors
    /// As [`Session::create_psbt`].
    pub fn quote(&mut self, request: &PaymentRequest) -> Result<Quote, WalletError> {
        self.wallet.quote(request, self.fee_rate)
    }

    /// Leaves a coin out of payments ([`Wallet::freeze`](crate::wallet::Wallet::freeze)).
    ///
    /// # Errors
    /// It is no unspent coin of this wallet.
    pub fn freeze(&mut self, outpoint: OutPoint) -> Result<(), WalletError> {
        self.wallet.freeze(outpoint)
    }

    /// Lets payments spend a coin again.
    pub fn unfreeze(&mut self, outpoint: OutPoint) {
        self.wallet.unfreeze(outpoint);
    }

    /// Builds, authorises and submits a payment; progress comes as [`Event::Payment`].
    ///
    /// # Errors
    /// Nothing has been sent and nothing is reserved.
    pub fn send(&mut self, now: Now, request: &PaymentRequest) -> Result<Txid, WalletError> {
        let psbt = self.wallet.create_psbt(request, self.fee_rate)?;
        self.send_psbt(now, psbt)
    }

    /// Authorises and submits a PSBT of this account. One that is under way or final is not paid again.
    ///
    /// # Errors
    /// Nothing has been sent and nothing is reserved.
    pub fn send_psbt(&mut self, now: Now, psbt: Psbt) -> Result<Txid, WalletError> {
        if self.wallet.is_watch_only() {
            return Err(WalletError::WatchOnly);
        }
        let txid = psbt.unsigned_tx.compute_txid();
        if self.payments.contains_key(&txid) || self.wallet.proof(txid).is_some() {
            return Ok(txid);
        }
        if self.wallet.certificate().is_none() {
            return Err(WalletError::NotCertified);
        }
        let proposal = self.wallet.propose(psbt)?;
        self.follow_new();
        self.balance_event();
        Ok(self.submit(now, proposal))
    }

    /// As [`Session::send`], but once for each key: with one that was used before, gives the payment that was made
    /// then, whatever became of it, and makes no other. Keys are remembered when the session is saved, the last
    /// [`IDEMPOTENCY_KEYS_MAX`](super::IDEMPOTENCY_KEYS_MAX) of them.
    ///
    /// # Errors
    /// As [`Session::send`]: the key stays free then. [`WalletError::KeyReused`] if it stands for another request.
    pub fn send_once(&mut self, now: Now, key: &str, request: &PaymentRequest) -> Result<Txid, WalletError> {
        self.once_for(key, request.fingerprint(), |session| session.send(now, request))
    }

    /// As [`Session::send_psbt`], but once for each key.
    ///
    /// # Errors
    /// As [`Session::send_psbt`]: the key stays free then. [`WalletError::KeyReused`] if it stands for another payment.
    pub fn send_psbt_once(&mut self, now: Now, key: &str, psbt: Psbt) -> Result<Txid, WalletError> {
        let fingerprint = sha256::Hash::hash(psbt.unsigned_tx.compute_txid().as_ref());
        self.once_for(key, fingerprint, |session| session.send_psbt(now, psbt))
    }

    fn once_for(
        &mut self,
        key: &str,
        fingerprint: sha256::Hash,
        send: impl FnOnce(&mut Self) -> Result<Txid, WalletError>,
    ) -> Result<Txid, WalletError> {
        if let Some(known) = self.once.known(key, fingerprint) {
            return known;
        }
        let txid = send(self)?;
        self.once.remember(key, fingerprint, txid);
        Ok(txid)
    }

    /// What [`Session::bump`] would cost.
    ///
    /// # Errors
    /// As [`crate::wallet::Wallet::create_bump`].
    pub fn bump_quote(&mut self, txid: Txid, rate: FeeRate) -> Result<Amount, WalletError> {
        self.create_bump(txid, rate)?.fee().map_err(|_| WalletError::Derivation)
    }

    /// Refuses to pay for what would not be taken: as far as the server tells, the network refuses an ancestor too.
    fn create_bump(&mut self, txid: Txid, rate: FeeRate) -> Result<Psbt, WalletError> {
        let ancestors = self.wallet.unconfirmed_ancestors(txid);
        // The last one is the farthest.
        if let Some(first) = ancestors.into_iter().rfind(|one| self.refusals.contains_key(one)) {
            return Err(WalletError::LiftFirst { txid, first });
        }
        self.wallet.create_bump(txid, rate)
    }

    /// Lifts an enforced transaction that waits for its block, by a payment to this wallet that pays for both
    /// ([`crate::wallet::Wallet::create_bump`]).
    ///
    /// # Errors
    /// Nothing has been sent and nothing is reserved.
    pub fn bump(&mut self, now: Now, txid: Txid, rate: FeeRate) -> Result<Txid, WalletError> {
        let psbt = self.create_bump(txid, rate)?;
        self.send_psbt(now, psbt)
    }

    /// Submits a signed transaction of coins in sole custody. Its finality will be attested only.
    pub fn submit_signed(&mut self, now: Now, transaction: bitcoin::Transaction) -> Txid {
        self.submit(now, Proposal::Sole { transaction })
    }

    /// Asks the federation to stop a payment that is not final. Its outcome comes as [`Event::Payment`]: `Failed` or
    /// `Rejected` with the coins free again, or `Final` if it was too late. Nodes remember it: the very same
    /// transaction is not taken again, one with another amount or fee is.
    ///
    /// # Errors
    /// No such payment of this account is under way.
    pub fn cancel(&mut self, now: Now, txid: Txid) -> Result<(), WalletError> {
        let payment = self.payments.get_mut(&txid).ok_or(WalletError::UnknownPayment)?;
        if !matches!(payment.proposal, Proposal::Joint(_)) {
            return Err(WalletError::UnknownPayment);
        }
        payment.cancelled = true;
        self.touched.payments.insert(txid);
        self.send_submission(now, txid);
        Ok(())
    }

    /// Payments that are under way.
    pub fn payments(&self) -> impl Iterator<Item = (Txid, &PaymentState)> + '_ {
        self.payments.iter().map(|(txid, payment)| (*txid, &payment.state))
    }

    /// Where a payment of this wallet stands, or how it ended; `None` if it is not known.
    pub fn payment(&self, txid: Txid) -> Option<PaymentState> {
        if let Some(payment) = self.payments.get(&txid) {
            return Some(payment.state.clone());
        }
        if let Some(proof) = self.wallet.proof(txid) {
            return Some(PaymentState::Final { kind: proof.kind(), proof: Box::new(proof.clone()) });
        }
        let before = || PaymentState::Failed {
            message:
                "the federation did not take this payment, before the wallet was opened; its coins are free"
                    .to_owned(),
            retry: false,
        };
        self.outcomes.get(&txid).cloned().or_else(|| self.dormant.contains_key(&txid).then(before))
    }

    pub(super) fn submit(&mut self, now: Now, proposal: Proposal) -> Txid {
        self.submit_as(now, proposal, false)
    }

    pub(super) fn submit_as(&mut self, now: Now, proposal: Proposal, cancelled: bool) -> Txid {
        let txid = proposal.txid();
        self.payments.insert(txid, Payment::new(now, proposal, cancelled));
        self.outcomes.remove(&txid);
        // One that had ended and is made once more has not ended.
        if self.dormant.remove(&txid).is_some() {
            self.touched.dormant.insert(txid);
        }
        self.touched.payments.insert(txid);
        self.event(Event::Payment { txid, state: PaymentState::Submitted });
        self.send_submission(now, txid);
        txid
    }

    pub(super) fn send_submission(&mut self, now: Now, txid: Txid) {
        if !self.is_live() {
            return;
        }
        let Some(payment) = self.payments.get_mut(&txid) else { return };
        payment.submitted_at = now;
        payment.resubmit_at = Some(now + SUBMIT_SILENCE);
        let joint = matches!(payment.proposal, Proposal::Joint(_));
        let account = self.wallet.certificate().filter(|_| joint).cloned();
        let proposal = payment.proposal.clone();
        let message = if payment.cancelled {
            // A wallet that only watches has no payments.
            let Ok(cancel) = self.wallet.sign_cancel(txid) else { return };
            ClientMessage::TransactionCancel { cancel, proposal, account }
        } else {
            ClientMessage::TransactionBroadcast { proposal, account }
        };
        self.pending.retain(|_, pending| *pending != Pending::Submit { txid });
        self.request(Pending::Submit { txid }, &message);
    }

    /// A server will not have this payment. One that this wallet has signed may be final all the same, so it goes on,
    /// with this server or another, until it is final or its owner has it cancelled.
    pub(super) fn refused_payment(&mut self, now: Now, txid: Txid, error: &WireError) {
        let Some(payment) = self.payments.get_mut(&txid) else { return };
        if payment.signed.is_empty() {
            let first = payment.ended.take();
            let refused = PaymentState::Failed { message: error.to_string(), retry: false };
            self.finish(txid, first.unwrap_or(refused));
        } else {
            self.event(Event::Refused { error: error.clone() });
            self.retry_later(now, txid);
        }
    }

    pub(super) fn retry_later(&mut self, now: Now, txid: Txid) {
        if let Some(payment) = self.payments.get_mut(&txid) {
            payment.resubmit_at = Some(now + payment.backoff.next(&mut *self.rng));
        }
    }

    pub(super) fn finish(&mut self, txid: Txid, state: PaymentState) {
        let ended = self.payments.remove(&txid);
        self.touched.payments.insert(txid);
        self.pending.retain(|_, pending| *pending != Pending::Submit { txid });
        if !matches!(state, PaymentState::Final { .. }) {
            if let PaymentState::Rejected { rejects, .. } = &state
                && rejects.iter().any(|one| matches!(one.reason, RejectReason::UnconfirmedChain { .. }))
            {
                self.wallet.crowded(txid);
            }
            self.wallet.abandon(txid);
            if let Some(ended) = ended.filter(|ended| matches!(ended.proposal, Proposal::Joint(_))) {
                self.dormant.insert(txid, ended.proposal);
                self.touched.dormant.insert(txid);
            }
            while self.dormant.len() > DORMANT_MAX {
                self.touched.dormant.extend(self.dormant.pop_first().map(|(txid, _)| txid));
            }
        }
        while self.outcomes.len() >= OUTCOMES_MAX {
            self.outcomes.pop_first();
        }
        self.outcomes.insert(txid, state.clone());
        self.event(Event::Payment { txid, state });
    }

    /// A coin that is left to a payment which this wallet holds for over: asks to cancel it once more, which either
    /// frees the coin or shows that the payment has to be finished.
    pub(super) fn revive(&mut self, now: Now, record: &UtxoRecord) {
        let Some(lock) = record.lock.filter(|lock| lock.round.0 > 0) else { return };
        if self.payments.contains_key(&lock.txid) {
            return;
        }
        let Some(Proposal::Joint(joint)) = self.dormant.get(&lock.txid).cloned() else { return };
        // With the deadline that it had: nodes ask for the wallet's part under that one.
        if self.wallet.take_proposal(&joint).is_ok() {
            let _txid = self.submit_as(now, Proposal::Joint(joint), true);
        }
    }

    /// Takes a server's word that a payment is over only if it cannot have become final: this wallet never signed it,
    /// or releases show that no signature of it counts any more. Otherwise it goes on until it is final or provably
    /// over.
    pub(super) fn end(&mut self, now: Now, txid: Txid, releases: &[ReleaseCertificate], state: PaymentState) {
        let Some(payment) = self.payments.get(&txid) else { return };
        let federation = self.wallet.federation();
        let inputs = payment.proposal.outpoints();
        let sound =
            |one: &&ReleaseCertificate| inputs.contains(&one.outpoint) && one.verify(federation).is_ok();
        let verified: Vec<_> = releases.iter().filter(sound).collect();
        let voided = payment.signed.iter().all(|target| verified.iter().any(|release| release.voids(target)));
        // Another transaction that spends one of its coins, by a proof that this wallet verified, rules it out as
        // well (V6).
        let other = |outpoint| self.wallet.spender(outpoint).is_some_and(|spender| spender != txid);
        let over = voided || inputs.iter().any(other);
        let unproven = verified.is_empty() && matches!(payment.proposal, Proposal::Joint(_));
        if over && unproven && !payment.cancelled {
            // Perhaps only this server says so. The owner's cancel has the inputs released, or shows that they need
            // not be.
            if let Some(payment) = self.payments.get_mut(&txid) {
                payment.cancelled = true;
                payment.ended = Some(state);
            }
            self.touched.payments.insert(txid);
            self.send_submission(now, txid);
        } else if over {
            let first = self.payments.get_mut(&txid).and_then(|payment| payment.ended.take());
            self.finish(txid, first.unwrap_or(state));
        } else {
            self.retry_later(now, txid);
        }
    }

    pub(super) fn move_on(&mut self, txid: Txid, state: PaymentState) {
        if let Some(payment) = self.payments.get_mut(&txid)
            && payment.state != state
        {
            payment.state = state.clone();
            self.event(Event::Payment { txid, state });
        }
    }
}
