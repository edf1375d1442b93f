//! Phase 2 from the coordinator's side: attempts, the wallet's part, shares, completion.
//!
//! Robust in the manner of ROAST: an attempt takes exactly q nodes with fresh commitments; a node that is silent,
//! refuses, or sends a share that does not verify is left out of the next one, which starts at once. Every attempt
//! leaves out at least one faulty node, and all that are found at a time, so n - q + 1 attempts are enough while q
//! responsive honest nodes are there.

use super::run::{Attempt, Run};
use crate::{Tag, context::Context};
use quorate_protocol::{
    NodeId,
    evidence::{CommitStatement, Evidence, SigningRecord},
    finality::FinalityProof,
    frost::{AggregateError, Culprit, SigningError, SigningSession, WalletSignature},
    proposal::Proposal,
    vote::verify_commit,
    wire::{CommitReply, ErrorCode, ServerMessage, TransactionStatus, VotingRequest, WireError},
};
use std::collections::BTreeMap;

impl Run {
    /// Chooses q nodes with fresh commitments and asks the wallet; for sole custody, asks all nodes to commit.
    pub(crate) fn start_attempt(&mut self, cx: &mut Context) {
        let txid = self.txid();
        let quorum = usize::from(cx.federation.quorum().votes());
        let deadline = cx.now + cx.settings.signing_timeout;
        let Some(certificate) = self.certificate.clone() else { return };
        if self.checked.is_none() {
            return self.ask_commits(cx);
        }
        if !self.signing.chosen.is_empty() {
            return;
        }
        let fresh = self.commitments.iter().filter(|(node, _)| !self.excluded.contains(*node));
        let chosen: BTreeMap<_, _> = fresh.take(quorum).map(|(node, one)| (*node, one.clone())).collect();
        if chosen.len() < quorum {
            return;
        }
        self.commitments.retain(|node, _| !chosen.contains_key(node));
        self.deadline = deadline;
        self.signing.chosen = chosen.clone();
        let (attempt, submitters) = (self.attempt, self.submitters.clone());
        let target = self.target.clone();
        // A wallet that cancelled the payment wants to see that nothing else is left; one release shows it.
        let mut releases = cx.releases_of(&target);
        releases.retain(|release| release.forced_txid() == Some(txid));
        releases.truncate(1);
        for (session, id) in submitters {
            let message = ServerMessage::SignRequest {
                txid,
                attempt,
                certificate: certificate.clone(),
                nodes: chosen.clone(),
                releases: releases.clone(),
            };
            cx.send_client(session, id, message);
        }
    }

    /// Coins in sole custody: every node that has not been asked may commit to the certificate, whatever it voted.
    fn ask_commits(&mut self, cx: &mut Context) {
        let txid = self.txid();
        let everyone: Vec<NodeId> = cx.everyone().collect();
        let Some(certificate) = self.certificate.clone() else { return };
        let attempt = self.attempt;
        let missing: Vec<_> =
            everyone.into_iter().filter(|node| !self.signing.asked.contains(node)).collect();
        if missing.is_empty() {
            return;
        }
        self.signing.asked.extend(&missing);
        self.deadline = cx.now + cx.settings.signing_timeout;
        let target = self.target.clone();
        let head = Some(cx.signed_head());
        let request = VotingRequest::CommitRequest {
            certificate,
            attempt,
            nodes: BTreeMap::new(),
            wallet: None,
            releases: cx.releases_of(&target),
            head,
        };
        cx.ask(missing, Tag::Commit { txid, attempt }, &request);
        self.tell(cx, &TransactionStatus::Signing { attempt });
    }

    /// The wallet's part of a signing session.
    pub(crate) fn handle_wallet(
        &mut self,
        cx: &mut Context,

        attempt: u32,
        wallet: WalletSignature,
    ) -> Result<(), WireError> {
        let txid = self.txid();
        if attempt != self.attempt || self.signing.wallet.is_some() {
            return Ok(());
        }
        let (Some(checked), Some(certificate), Some(account)) =
            (&self.checked, &self.certificate, &self.account)
        else {
            return Ok(());
        };
        let (target, chosen) = (&self.target, &self.signing.chosen);
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let made =
            SigningSession::new(&cx.federation, &checked.plan, target, attempt, chosen, &wallet.commitments);
        let session = match made {
            Ok(session) => session,
            Err(SigningError::Commitments { culprit: Culprit::Node(node) }) => {
                self.exclude(cx, attempt, &[node]);
                return Ok(());
            }
            Err(error) => return Err(invalid(&error)),
        };
        if !session.verify_wallet(&cx.federation, &account.record, &wallet) {
            return Err(invalid(&"the wallet's shares are not signed by the account's authorisation key"));
        }
        let releases = cx.releases_of(&self.target);
        let (certificate, nodes) = (certificate.clone(), chosen.clone());
        let chosen: Vec<_> = chosen.keys().copied().collect();
        let head = Some(cx.signed_head());
        let wallet_part = Some(wallet.clone());
        let request =
            VotingRequest::CommitRequest { certificate, attempt, nodes, wallet: wallet_part, releases, head };
        self.signing.wallet = Some(wallet);
        self.signing.session = Some(session);
        self.deadline = cx.now + cx.settings.signing_timeout;
        cx.ask(chosen, Tag::Commit { txid, attempt }, &request);
        self.tell(cx, &TransactionStatus::Signing { attempt });
        Ok(())
    }

    pub(crate) fn handle_commit(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        attempt: u32,
        commit: CommitReply,
    ) {
        if attempt < self.first_attempt || attempt > self.attempt {
            return;
        }
        let quorum = usize::from(cx.federation.quorum().votes());
        let target = self.target.clone();
        match commit {
            // A commit signature is good in whatever attempt it was asked for.
            CommitReply::Sole { signature } => {
                if !verify_commit(&cx.federation, from, &target, &signature) {
                    tracing::warn!(%from, txid = %self.txid(), "dropped a commit that does not verify");
                    return;
                }
                self.signing.commits.insert(from, signature);
                let enough = self.signing.commits.len() >= quorum;
                cx.watch_commit(from, &target, &CommitStatement::Sole { target: target.clone(), signature });
                if enough {
                    self.complete_sole(cx);
                }
            }
            CommitReply::Joint { shares, signature } => {
                if attempt != self.attempt {
                    return;
                }
                let Some(session) = &self.signing.session else { return };
                if !session.nodes().contains(&from)
                    || !session.verify_shares(&cx.federation, from, &shares, &signature)
                {
                    return self.exclude(cx, attempt, &[from]);
                }
                self.signing.shares.insert(from, (shares, signature));
                let complete = self.signing.shares.len() == quorum;
                if let Some(record) = self.signing_record(from) {
                    let statement = CommitStatement::Joint { record: Box::new(record) };
                    cx.watch_commit(from, &target, &statement);
                }
                if complete {
                    self.complete_joint(cx);
                }
            }
        }
    }

    /// A node's part in the present attempt, as evidence would show it.
    fn signing_record(&self, node: NodeId) -> Option<SigningRecord> {
        let Proposal::Joint(proposal) = &self.proposal else { return None };
        let (shares, signature) = self.signing.shares.get(&node)?.clone();
        Some(SigningRecord {
            proposal: (**proposal).clone(),
            account: self.account.clone()?,
            target: self.target.clone(),
            attempt: self.attempt,
            nodes: self.signing.chosen.clone(),
            wallet: self.signing.wallet.as_ref()?.commitments.clone(),
            shares,
            signature,
        })
    }

    fn complete_sole(&mut self, cx: &mut Context) {
        let Proposal::Sole { transaction } = &self.proposal else { return };
        let rounds = self.target.inputs();
        let rounds = transaction.input.iter().filter_map(|input| rounds.get(&input.previous_output)).copied();
        let proof = FinalityProof::Attested {
            transaction: transaction.clone(),
            rounds: rounds.collect(),
            commits: self.signing.commits.clone(),
        };
        cx.complete(proof);
    }

    fn complete_joint(&mut self, cx: &mut Context) {
        let (Some(session), Some(checked), Some(account), Some(wallet), Some(certificate)) =
            (&self.signing.session, &self.checked, &self.account, &self.signing.wallet, &self.certificate)
        else {
            return;
        };
        let attempt = self.attempt;
        let shares: BTreeMap<_, _> =
            self.signing.shares.iter().map(|(node, (shares, _))| (*node, shares.clone())).collect();
        match session.aggregate(&cx.federation, &account.record, &shares, &wallet.shares) {
            Ok(signatures) => match checked.complete(&signatures) {
                Ok(transaction) => {
                    let (spent, certificate) = (checked.spent.clone(), Box::new(certificate.clone()));
                    cx.complete(FinalityProof::Enforced { transaction, spent, certificate });
                }
                Err(error) => self.give_up(cx, &error.to_string(), true),
            },
            Err(AggregateError::Shares { culprits }) => {
                if culprits.contains(&Culprit::Wallet) {
                    return self.give_up(cx, "the wallet's signature share is not valid", false);
                }
                let nodes: Vec<NodeId> = culprits
                    .into_iter()
                    .filter_map(|culprit| match culprit {
                        Culprit::Node(node) => Some(node),
                        Culprit::Wallet => None,
                    })
                    .collect();
                for node in &nodes {
                    if let Some(record) = self.signing_record(*node) {
                        cx.convict(Evidence::BadShare { node: *node, record: Box::new(record) });
                    }
                }
                self.exclude(cx, attempt, &nodes);
            }
            Err(error) => self.give_up(cx, &error.to_string(), false),
        }
    }

    /// Leaves nodes out and starts the next attempt with fresh commitments of the others.
    pub(crate) fn exclude(&mut self, cx: &mut Context, attempt: u32, nodes: &[NodeId]) {
        let quorum = cx.federation.quorum();
        let stale = attempt != self.attempt || self.certificate.is_none();
        if stale || self.checked.is_none() {
            return;
        }
        self.excluded.extend(nodes);
        if self.attempt - self.first_attempt + 1 >= u32::from(quorum.blocking()) {
            return self.out_of_attempts(cx);
        }
        // If too few are left, those who were merely silent get another chance.
        if self.excluded.len() > usize::from(quorum.nodes() - quorum.votes()) {
            self.excluded = cx.watch.suspects().clone();
        }
        self.attempt += 1;
        self.signing = Attempt::default();
        self.commitments.clear();
        self.deadline = cx.now + cx.settings.signing_timeout;
        self.ask_votes(cx);
    }

    /// No q nodes sign together: a proven cheat is named with its evidence, silence is a reason to come back later.
    fn out_of_attempts(&mut self, cx: &mut Context) {
        let quorum = cx.federation.quorum();
        if cx.watch.suspects().len() > usize::from(quorum.nodes() - quorum.votes()) {
            let culprits = cx.watch.suspects().iter().copied().collect();
            let evidence = cx.watch.evidence().cloned().collect();
            let status = TransactionStatus::AbortedByzantine { culprits, evidence };
            self.finish(cx, &status);
        } else {
            self.give_up(cx, "no q nodes could be found that sign together; submit it again", true);
        }
    }

    /// The time for an attempt is over.
    pub(crate) fn attempt_due(&mut self, cx: &mut Context) {
        let txid = self.txid();
        let attempt = self.attempt;
        let locked = self.target.inputs().keys().filter_map(|outpoint| cx.ledger.approved(outpoint));
        let since = locked.map(|(_, since)| since).min().unwrap_or(cx.now);
        let expired = cx.now >= since + cx.settings.voting_timeout;
        if self.checked.is_none() {
            if expired {
                return self.give_up(cx, "not enough nodes committed in time; submit it again", true);
            }
            self.signing.asked = self.signing.commits.keys().copied().collect();
            return self.ask_commits(cx);
        }
        let (orphan, mute) = (self.submitters.is_empty(), self.signing.session.is_none());
        let inputs = self.target.inputs().clone();
        if orphan && mute && cx.is_forced(&inputs, txid) {
            // Another release would change nothing; its owner will submit it again.
            self.over = true;
            return;
        }
        if orphan && mute && !expired {
            // Only the wallet can go on; until its lock's time is over it may come back, to this node or another.
            self.deadline = (since + cx.settings.voting_timeout).max(cx.now + cx.settings.signing_timeout);
            return;
        }
        if self.signing.session.is_none() && expired {
            return self.give_up(cx, "the wallet did not sign in time; submit it again", true);
        }
        let silent: Vec<NodeId> = match &self.signing.session {
            Some(_) => {
                let shares = &self.signing.shares;
                let chosen = self.signing.chosen.keys();
                chosen.filter(|node| !shares.contains_key(*node)).copied().collect()
            }
            None => Vec::new(),
        };
        self.exclude(cx, attempt, &silent);
    }
}
