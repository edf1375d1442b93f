//! What a session does with each message of the server.

use super::{
    Event, Link, Now, PaymentState, Session, UNJUDGED_MAX, payments::PASSING_REJECTS_MAX, pending::Payment,
    pending::Pending,
};
use crate::{
    NodeId,
    conflict::ConflictError,
    finality::FinalityProof,
    frost::NodeCommitments,
    headers::{HeaderError, ProofError},
    relay_policy::{FEE_RATE_MAX, FEE_RATE_MIN, bounded_sum},
    release::ReleaseCertificate,
    vote::{ApprovalCertificate, NOT_BEFORE_ITS_BLOCK},
    wallet::{Early, HistoryEntry},
    wire::{
        ChainTip, ClientMessage, ConflictProof, Header, KeyOutcome, KeyResult, ServerMessage,
        SubscriptionKey, TransactionStatus, UtxoRecord, encode_text, limits,
    },
};
use bitcoin::{Amount, FeeRate, OutPoint, Txid};
use std::collections::BTreeMap;

/// A coordinator's request for the wallet's part.
struct SignRequest {
    txid: Txid,
    attempt: u32,
    certificate: ApprovalCertificate,
    nodes: BTreeMap<NodeId, NodeCommitments>,
    releases: Vec<ReleaseCertificate>,
}

impl Session {
    pub(super) fn handle_message(&mut self, now: Now, id: Option<u64>, message: ServerMessage) {
        match message {
            ServerMessage::Welcome { protocol, federation, tip, .. } => {
                let ours = self.wallet.federation().id();
                if protocol != limits::PROTOCOL_VERSION || federation != ours {
                    self.misbehaved(&"the server greets for another protocol or federation");
                    self.hang_up(now, "wrong federation or protocol");
                } else {
                    self.greeted(now, id, tip);
                }
            }
            ServerMessage::UTXOSubscribed { results, tip, more, .. }
            | ServerMessage::UTXOStateResponse { results, tip, more } => {
                // Coins and proofs of different pages belong together.
                let Some(results) = self.take_page(now, id, results, more) else { return };
                self.compare(id, &results);
                self.done(id);
                self.take_snapshots(results);
                self.take_tip(tip);
            }
            ServerMessage::UTXOStateNotification { key, utxo, proof, followed, .. } => {
                self.take_followed(&key, followed);
                self.take_records(vec![(utxo, proof.map(|proof| *proof))]);
                self.follow_new();
            }
            ServerMessage::TransactionStatus { txid, status } => {
                let handed_in = id.filter(|id| self.pending.get(id) == Some(&Pending::HandIn));
                self.done(handed_in);
                self.take_status(now, txid, status);
            }
            ServerMessage::SignRequest { txid, attempt, certificate, nodes, releases } => {
                let request = SignRequest { txid, attempt, certificate, nodes, releases };
                self.sign(now, id, &request);
            }
            ServerMessage::AccountCertified { certificate } => {
                self.done(id);
                match self.wallet.set_certificate(certificate) {
                    Ok(()) => self.event(Event::Ready),
                    Err(error) => self.misbehaved(&error),
                }
            }
            ServerMessage::Headers { from, headers } => self.take_headers(id, from, &headers),
            ServerMessage::Proof { txid, proof, conflict } => {
                let asked = id.and_then(|id| self.pending.remove(&id)) == Some(Pending::Proof { txid });
                match (proof, conflict) {
                    (Some(proof), _) => self.take_inclusion(txid, &proof),
                    (None, Some(conflict)) => self.take_conflict(txid, &conflict),
                    // It may be in no block, and then its wallet waits for nothing. But the node that answers may be
                    // behind the one that told of the block.
                    (None, None) if asked => self.unplaced(txid),
                    (None, None) => {}
                }
            }
            ServerMessage::FeeRate { estimates } => {
                self.done(id);
                let rate = estimates.six_blocks.max(estimates.floor);
                self.fee_rate = FeeRate::from_sat_per_kwu(rate).clamp(FEE_RATE_MIN, FEE_RATE_MAX);
            }
            ServerMessage::Tip { tip } => self.take_tip(tip),
            ServerMessage::Gap { keys } => {
                let own = keys.into_iter().filter(|key| self.wants(key)).collect();
                self.follow_again(own);
            }
            ServerMessage::GoingAway { .. } => self.hang_up(now, "the server is going away"),
            ServerMessage::Error { error } => self.refused(now, id, &error),
            ServerMessage::Federation { document } => {
                self.done(id);
                self.take_document(now, *document);
            }
            ServerMessage::UTXOUnsubscribed { .. } | ServerMessage::Pong => self.done(id),
        }
    }

    /// Takes a page of an answer that was asked for; gives the whole answer with the last one.
    fn take_page(
        &mut self,
        now: Now,
        id: Option<u64>,
        results: Vec<KeyResult>,
        more: bool,
    ) -> Option<Vec<KeyResult>> {
        let asked = id.filter(|id| self.pending.contains_key(id));
        let Some(id) = asked else { return Some(results) };
        if more {
            self.asked_at.insert(id, now);
        }
        let whole = self.pages.entry(id).or_default().take(results, more)?;
        self.pages.remove(&id);
        Some(whole)
    }

    fn done(&mut self, id: Option<u64>) {
        if let Some(id) = id {
            self.pending.remove(&id);
        }
    }

    fn greeted(&mut self, now: Now, id: Option<u64>, tip: ChainTip) {
        self.done(id);
        self.link = Link::Live;
        self.reconnect.reset();
        self.event(Event::Connected);
        if self.wallet.certificate().is_some() {
            self.event(Event::Ready);
        } else {
            self.register();
        }
        self.subscribe_keys(vec![SubscriptionKey::Tip]);
        self.follow_all();
        self.request(Pending::FeeRate, &ClientMessage::FeeRateQuery);
        self.take_tip(tip);
        self.watch_waiting();
        for txid in self.payments.keys().copied().collect::<Vec<_>>() {
            self.send_submission(now, txid);
        }
    }

    /// Coins first, then the proofs about them, parents before children: a proof marks the coins that it spends.
    fn take_snapshots(&mut self, results: Vec<KeyResult>) {
        let mut proofs = BTreeMap::new();
        let (mut records, mut told, mut unwatched) = (Vec::new(), Vec::new(), Vec::new());
        for KeyResult { key, outcome } in results {
            let refused = matches!((&key, &outcome), (SubscriptionKey::Outpoint(_), KeyOutcome::Error(_)));
            // Until the next connection it is not known what the server does not tell of.
            self.claims_are_old &= !refused;
            match outcome {
                KeyOutcome::Snapshot { utxos, proofs: more, status, .. } => {
                    if let SubscriptionKey::Txid(txid) = key {
                        told.push((txid, status));
                    }
                    records.extend(utxos.into_iter().map(|utxo| (utxo, None)));
                    proofs.extend(more.into_iter().map(|proof| (proof.txid(), proof)));
                }
                KeyOutcome::Error(error) if error.retry => unwatched.push(key),
                KeyOutcome::Error(error) if self.follow_scripts(&key, &error) => {}
                KeyOutcome::Error(error) => self.event(Event::Refused { error }),
            }
        }
        self.take_records(records);
        if !unwatched.is_empty() {
            self.subscribe_later(self.now, unwatched);
        }
        while !proofs.is_empty() {
            let waits =
                |proof: &FinalityProof| proof.outpoints().any(|input| proofs.contains_key(&input.txid));
            let next = proofs.iter().find(|(_, proof)| !waits(proof)).map(|(txid, _)| *txid);
            // Transactions cannot spend each other in a circle; a server that says so gets any order.
            let Some(txid) = next.or_else(|| proofs.keys().next().copied()) else { break };
            if let Some(proof) = proofs.remove(&txid) {
                self.take_proof(&proof);
            }
        }
        for (txid, status) in told {
            self.take_word(txid, status);
        }
        self.follow_new();
    }

    pub(super) fn take_record(&mut self, record: &UtxoRecord) {
        self.revive(self.now, record);
        match self.wallet.apply_record(record) {
            Ok(unproven) => self.ask_proofs(unproven),
            Err(error) => self.misbehaved(&error),
        }
    }

    /// Takes in a proof, unless it has a deadline that the wallet cannot judge: before it has the headers up to the tip
    /// that it was told of, or while its tip is stale.
    pub(super) fn take_proof(&mut self, proof: &FinalityProof) {
        let behind = self.told_tip.is_some_and(|tip| self.wallet.chain().tip().height < tip.height);
        let dated = proof.custody().deadline().is_some_and(|deadline| deadline != NOT_BEFORE_ITS_BLOCK);
        let blind = behind || self.tip_is_stale();
        if !blind || !dated || self.wallet.is_own_payment(proof) {
            return self.judge_proof(proof);
        }
        // One over the limit is not judged by old headers: its coin counts when a block has it, or after a reconnect.
        let room = self.unjudged.len() < UNJUDGED_MAX || self.unjudged.contains_key(&proof.txid());
        match proof.verify(self.wallet.federation()) {
            Ok(()) if room => {
                self.unjudged.insert(proof.txid(), proof.clone());
            }
            Ok(()) => {}
            Err(error) => self.misbehaved(&error),
        }
    }

    /// Proofs that waited for headers.
    pub(super) fn take_unjudged(&mut self) {
        for proof in std::mem::take(&mut self.unjudged).into_values() {
            self.take_proof(&proof);
        }
        self.follow_new();
    }

    fn judge_proof(&mut self, proof: &FinalityProof) {
        let txid = proof.txid();
        match self.wallet.apply_proof(proof) {
            Ok(true) => {
                self.announce_final(txid, proof);
                self.take_early(txid);
            }
            Ok(false) => {}
            Err(error) => self.misbehaved(&error),
        }
        self.tell_conflicts();
        if self.payments.contains_key(&txid) && self.wallet_knows_final(txid) {
            let proof = Box::new(proof.clone());
            self.finish(txid, PaymentState::Final { kind: proof.kind(), proof });
        }
    }

    /// Takes in spends that were shown before the coins of a transaction.
    fn take_early(&mut self, parent: Txid) {
        for early in self.wallet.take_early(parent) {
            match early {
                Early::Final(proof) => self.judge_proof(&proof),
                Early::Mined(txid, proof) => self.take_inclusion(txid, &proof),
            }
        }
    }

    fn wallet_knows_final(&self, txid: Txid) -> bool {
        self.wallet.entry(txid).is_some_and(|entry| entry.finality.is_some())
    }

    fn announce_final(&mut self, txid: Txid, proof: &FinalityProof) {
        let entry = self.wallet.entry(txid);
        // Change of the same words on another device is no income, even while the coin that it is of is not verified.
        let own = self.wallet.may_spend_own(proof.transaction());
        if own || entry.is_none_or(|entry| entry.spent > Amount::ZERO) {
            return;
        }
        let own = proof
            .transaction()
            .output
            .iter()
            .zip(0..)
            .filter(|(output, _)| self.wallet.owns(&output.script_pubkey));
        let own: Vec<_> = own.collect();
        if let Some((_, vout)) = own.first() {
            let outpoint = OutPoint { txid, vout: *vout };
            let amount = bounded_sum(own.iter().map(|(output, _)| output.value));
            self.event(Event::Received { txid, outpoint, amount, kind: proof.kind() });
        }
    }

    fn take_status(&mut self, now: Now, txid: Txid, status: TransactionStatus) {
        if let TransactionStatus::Signed { proof } = &status {
            if proof.txid() == txid {
                self.take_signed(txid, proof);
            } else {
                self.misbehaved(&"a proof of another transaction");
            }
            return;
        }
        if let TransactionStatus::Broadcasting { refusal } = status {
            return self.take_broadcast(txid, refusal);
        }
        if let TransactionStatus::Conflicted { .. } | TransactionStatus::Confirmed { .. } = &status {
            // Only a proof says so.
            if self.payments.contains_key(&txid) || self.wallet.knows(txid) {
                self.ask_proofs([txid]);
            }
            return;
        }
        let Some(payment) = self.payments.get_mut(&txid) else { return };
        payment.heard(now);
        let state = match status {
            TransactionStatus::Voting { votes, quorum, nodes } => {
                PaymentState::Voting { votes, quorum, nodes }
            }
            TransactionStatus::Signing { attempt } => PaymentState::Signing { attempt },
            TransactionStatus::Rejected { retry: true, .. }
                if payment.passing_rejects < PASSING_REJECTS_MAX =>
            {
                payment.passing_rejects += 1;
                return self.retry_later(now, txid);
            }
            TransactionStatus::Rejected { rejects, retry, releases } => {
                return self.end(now, txid, &releases, PaymentState::Rejected { rejects, retry });
            }
            TransactionStatus::Failed { retry: true, .. } if !payment.cancelled => {
                return self.retry_later(now, txid);
            }
            TransactionStatus::Failed { message, retry, releases } => {
                return self.end(now, txid, &releases, PaymentState::Failed { message, retry });
            }
            TransactionStatus::AbortedByzantine { culprits, evidence } => {
                let federation = self.wallet.federation();
                if evidence.iter().any(|one| one.verify(federation).is_err()) {
                    return self.misbehaved(&"an accusation that proves nothing");
                }
                let message = format!(
                    "nodes {} cheated and could not be worked around",
                    culprits.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
                );
                return self.end(now, txid, &[], PaymentState::Failed { message, retry: true });
            }
            // The wallet says `Approved` itself when it has checked the certificate.
            TransactionStatus::Pending
            | TransactionStatus::Approved
            | TransactionStatus::Signed { .. }
            | TransactionStatus::Broadcasting { .. }
            | TransactionStatus::Conflicted { .. }
            | TransactionStatus::Confirmed { .. } => return,
        };
        self.move_on(txid, state);
    }

    /// What a server says of a final transaction that is watched: how miners take it, that its proof is to be asked
    /// for, or that it does not know that it is final.
    fn take_word(&mut self, txid: Txid, status: Option<TransactionStatus>) {
        match status {
            Some(TransactionStatus::Broadcasting { refusal }) => self.take_broadcast(txid, refusal),
            Some(TransactionStatus::Signed { .. }) => {}
            Some(TransactionStatus::Confirmed { .. } | TransactionStatus::Conflicted { .. })
                if self.watched.contains(&txid) =>
            {
                self.ask_proofs([txid]);
            }
            Some(_) | None => self.hand_in(txid),
        }
    }

    /// A server's word that is shown, and that nothing follows from.
    fn take_broadcast(&mut self, txid: Txid, refusal: Option<String>) {
        self.unknown.remove(&txid);
        let waits = |entry: &HistoryEntry| {
            entry.finality.is_some() && entry.block.is_none() && entry.conflicted.is_none()
        };
        if !self.wallet.entry(txid).is_some_and(waits) {
            return;
        }
        let shown = |reason: String| -> String {
            reason.chars().filter(|one| !one.is_control()).take(limits::REFUSAL_CHARS_MAX).collect()
        };
        let refusal = refusal.map(shown);
        let before = match &refusal {
            Some(reason) => self.refusals.insert(txid, reason.clone()),
            None => self.refusals.remove(&txid),
        };
        if before != refusal {
            self.event(Event::Broadcasting { txid, refusal });
        }
    }

    /// Coins of sole custody may not be this wallet's, so their proof is checked here even if the wallet has no use
    /// for it.
    fn take_signed(&mut self, txid: Txid, proof: &FinalityProof) {
        self.take_proof(proof);
        let Some(Payment { .. }) = self.payments.get(&txid) else { return };
        if proof.verify(self.wallet.federation()).is_ok() {
            let proof = Box::new(proof.clone());
            self.finish(txid, PaymentState::Final { kind: proof.kind(), proof });
        }
    }

    fn sign(&mut self, now: Now, id: Option<u64>, request: &SignRequest) {
        let SignRequest { txid, attempt, certificate, nodes, releases } = request;
        let (txid, attempt) = (*txid, *attempt);
        if certificate.target.txid() != txid {
            return self.misbehaved(&"a certificate of another transaction");
        }
        // A cancelled payment is signed only if a release leaves no other way: then some node may have committed to it.
        let federation = self.wallet.federation();
        let forces = |release: &ReleaseCertificate| {
            release.forced_txid() == Some(txid) && release.verify(federation).is_ok()
        };
        let cancelled = self.payments.get(&txid).is_some_and(|payment| payment.cancelled);
        if cancelled && !releases.iter().any(forces) {
            return;
        }
        match self.wallet.sign(attempt, certificate, nodes, &mut *self.rng) {
            Ok(wallet) => {
                let message = ClientMessage::SignResponse { txid, attempt, wallet };
                self.outputs.push_back(super::Output::Send(encode_text(id, &message)));
                if let Some(payment) = self.payments.get_mut(&txid) {
                    payment.heard(now);
                    if !payment.signed.contains(&certificate.target) {
                        payment.signed.push(certificate.target.clone());
                        self.touched.payments.insert(txid);
                    }
                }
                self.move_on(txid, PaymentState::Approved);
            }
            Err(error) => self.misbehaved(&error),
        }
    }

    pub(super) fn take_tip(&mut self, tip: ChainTip) {
        // The latest word, not the highest: one false tip must not hold up everything.
        self.told_tip = Some(tip.block);
        if !self.wallet.chain().contains(&tip.block) {
            self.ask_headers(0);
        }
    }

    fn take_headers(&mut self, id: Option<u64>, from: u32, headers: &[Header]) {
        let pending = id.and_then(|id| self.pending.remove(&id));
        let Some(Pending::Headers { step }) = pending else { return };
        if headers.is_empty() {
            return;
        }
        let raw: Vec<_> = headers.iter().map(|header| header.0).collect();
        match self.wallet.apply_headers(&raw) {
            Ok((extension, lost)) => {
                if !lost.is_empty() {
                    self.ask_unclaimed();
                }
                self.waiting_proofs.extend(lost);
                self.take_extension(extension);
                if headers.len() >= limits::HEADERS_MAX {
                    self.ask_headers(0);
                }
            }
            Err(HeaderError::Disconnected) if from > self.wallet.chain().ask_from(32) => {
                self.ask_headers(step + 1);
            }
            Err(error) => self.misbehaved(&error),
        }
    }

    fn take_inclusion(&mut self, txid: Txid, proof: &crate::wire::RawTransactionProof) {
        match self.wallet.apply_inclusion(txid, proof) {
            Ok(true) => {
                self.refusals.remove(&txid);
                self.unplaced.remove(&txid);
                self.event(Event::Confirmed { txid, block: proof.block });
                self.tell_conflicts();
                self.take_early(txid);
            }
            Ok(false) => {}
            Err(ProofError::UnknownBlock { .. }) => {
                self.waiting_proofs.insert(txid);
                self.ask_headers(0);
            }
            Err(error) => self.misbehaved(&error),
        }
        self.follow_new();
    }

    fn take_conflict(&mut self, txid: Txid, proof: &ConflictProof) {
        match self.wallet.apply_conflict(txid, proof) {
            Ok(()) => self.tell_conflicts(),
            Err(ConflictError::Place(ProofError::UnknownBlock { .. })) => {
                self.waiting_proofs.insert(txid);
                self.ask_headers(0);
            }
            Err(error) => self.misbehaved(&error),
        }
    }

    fn tell_conflicts(&mut self) {
        for (txid, by) in self.wallet.take_conflicts() {
            self.refusals.remove(&txid);
            self.event(Event::Conflicted { txid, by });
            let message =
                format!("block {} has {}, which takes a coin that it needs", by.block.height, by.txid);
            // One that this wallet has signed may be final if the block is undone.
            if self.payments.get(&txid).is_some_and(|payment| payment.signed.is_empty()) {
                self.finish(txid, PaymentState::Failed { message, retry: false });
            }
        }
    }
}
