//! Phase 2 from the coordinator's side: attempts, the wallet's part, shares, completion.
//!
//! Robust in the manner of ROAST: an attempt takes exactly q nodes with fresh commitments; a node that is silent, refuses, or sends a
//! share that does not verify is left out of the next one, which starts at once. Every attempt leaves out at least one faulty node,
//! and all that are found at a time, so n - q + 1 attempts are enough while q responsive honest nodes are there.

use crate::{Machine, Output, Tag};
use bitcoin::{Txid, secp256k1::schnorr};
use quorate_protocol::{
    NodeId, SignatureShare,
    evidence::{CommitStatement, Evidence, SigningRecord},
    finality::{FinalityProof, SpentOutput},
    frost::{AggregateError, Culprit, NodeCommitments, Session, SigningError, WalletSignature},
    proposal::Proposal,
    vote::verify_commit,
    wire::{CommitReply, ErrorCode, Fault, PeerRequest, ServerMessage, TransactionStatus, WireError},
};
use std::collections::{BTreeMap, BTreeSet};

/// What has been collected in the present attempt.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    chosen: BTreeMap<NodeId, NodeCommitments>,
    pub(crate) wallet: Option<WalletSignature>,
    session: Option<Session>,
    shares: BTreeMap<NodeId, (Vec<SignatureShare>, schnorr::Signature)>,
    commits: BTreeMap<NodeId, schnorr::Signature>,
    asked: BTreeSet<NodeId>,
}

impl Machine {
    /// Chooses q nodes with fresh commitments and asks the wallet; for sole custody, asks all nodes to commit.
    pub(crate) fn start_attempt(&mut self, txid: Txid) {
        let quorum = usize::from(self.federation.quorum().votes());
        let deadline = self.now + self.rules.signing_timeout;
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let Some(certificate) = coordination.certificate.clone() else { return };
        if coordination.checked.is_none() {
            return self.ask_commits(txid);
        }
        if !coordination.signing.chosen.is_empty() {
            return;
        }
        let fresh =
            coordination.commitments.iter().filter(|(node, _)| !coordination.excluded.contains(*node));
        let chosen: BTreeMap<_, _> = fresh.take(quorum).map(|(node, one)| (*node, one.clone())).collect();
        if chosen.len() < quorum {
            return;
        }
        coordination.commitments.retain(|node, _| !chosen.contains_key(node));
        coordination.deadline = deadline;
        coordination.signing.chosen = chosen.clone();
        let (attempt, submitters) = (coordination.attempt, coordination.submitters.clone());
        let target = coordination.target.clone();
        // A wallet that cancelled the payment wants to see that nothing else is left; one release shows it.
        let mut releases = self.releases_of(&target);
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
            self.send_client(session, id, message);
        }
    }

    /// Coins in sole custody: every node that has not been asked may commit to the certificate, whatever it voted.
    fn ask_commits(&mut self, txid: Txid) {
        let everyone: Vec<NodeId> = self.everyone().collect();
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let Some(certificate) = coordination.certificate.clone() else { return };
        let attempt = coordination.attempt;
        let missing: Vec<_> =
            everyone.into_iter().filter(|node| !coordination.signing.asked.contains(node)).collect();
        if missing.is_empty() {
            return;
        }
        coordination.signing.asked.extend(&missing);
        coordination.deadline = self.now + self.rules.signing_timeout;
        let target = coordination.target.clone();
        let head = Some(self.signed_head());
        let request = PeerRequest::CommitRequest {
            certificate,
            attempt,
            nodes: BTreeMap::new(),
            wallet: None,
            releases: self.releases_of(&target),
            head,
        };
        for to in missing {
            let tag = Tag::Commit { txid, attempt };
            self.outputs.push_back(Output::Ask { to, tag, request: request.clone() });
        }
        self.tell(txid, &TransactionStatus::Signing { attempt });
    }

    /// The wallet's part of a signing session.
    pub(crate) fn take_wallet(
        &mut self,
        txid: Txid,
        attempt: u32,
        wallet: WalletSignature,
    ) -> Result<(), WireError> {
        let Some(coordination) = self.coordinations.get(&txid) else {
            let known = self.ledger.record(&txid).is_some_and(|record| record.proof.is_some());
            let error = WireError::passing(ErrorCode::UnknownTransaction, Fault::Receiver, "submit it again");
            return if known { Ok(()) } else { Err(error) };
        };
        if attempt != coordination.attempt || coordination.signing.wallet.is_some() {
            return Ok(());
        }
        let (Some(checked), Some(certificate), Some(account)) =
            (&coordination.checked, &coordination.certificate, &coordination.account)
        else {
            return Ok(());
        };
        let (target, chosen) = (&coordination.target, &coordination.signing.chosen);
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let made =
            Session::new(&self.federation, &checked.plan, target, attempt, chosen, &wallet.commitments);
        let session = match made {
            Ok(session) => session,
            Err(SigningError::Commitments { culprit: Culprit::Node(node) }) => {
                self.exclude(txid, attempt, &[node]);
                return Ok(());
            }
            Err(error) => return Err(invalid(&error)),
        };
        if !session.verify_wallet(&self.federation, &account.record, &wallet) {
            return Err(invalid(&"the wallet's shares are not signed by the account's authorisation key"));
        }
        let releases = self.releases_of(&coordination.target);
        let (certificate, nodes) = (certificate.clone(), chosen.clone());
        let chosen: Vec<_> = chosen.keys().copied().collect();
        let head = Some(self.signed_head());
        let wallet_part = Some(wallet.clone());
        let request =
            PeerRequest::CommitRequest { certificate, attempt, nodes, wallet: wallet_part, releases, head };
        if let Some(coordination) = self.coordinations.get_mut(&txid) {
            coordination.signing.wallet = Some(wallet);
            coordination.signing.session = Some(session);
            coordination.deadline = self.now + self.rules.signing_timeout;
        }
        for to in chosen {
            let tag = Tag::Commit { txid, attempt };
            self.outputs.push_back(Output::Ask { to, tag, request: request.clone() });
        }
        self.tell(txid, &TransactionStatus::Signing { attempt });
        Ok(())
    }

    pub(crate) fn take_commit(&mut self, from: NodeId, txid: Txid, attempt: u32, commit: CommitReply) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if attempt < coordination.first_attempt || attempt > coordination.attempt {
            return;
        }
        let quorum = usize::from(self.federation.quorum().votes());
        let target = coordination.target.clone();
        match commit {
            // A commit signature is good in whatever attempt it was asked for.
            CommitReply::Sole { signature } => {
                if !verify_commit(&self.federation, from, &target, &signature) {
                    tracing::warn!(%from, %txid, "dropped a commit that does not verify");
                    return;
                }
                coordination.signing.commits.insert(from, signature);
                let enough = coordination.signing.commits.len() >= quorum;
                self.watch_commit(
                    from,
                    &target,
                    &CommitStatement::Sole { target: target.clone(), signature },
                );
                if enough {
                    self.complete_sole(txid);
                }
            }
            CommitReply::Joint { shares, signature } => {
                if attempt != coordination.attempt {
                    return;
                }
                let Some(session) = &coordination.signing.session else { return };
                if !session.nodes().contains(&from)
                    || !session.verify_shares(&self.federation, from, &shares, &signature)
                {
                    return self.exclude(txid, attempt, &[from]);
                }
                coordination.signing.shares.insert(from, (shares, signature));
                let complete = coordination.signing.shares.len() == quorum;
                if let Some(record) = self.signing_record(txid, from) {
                    let statement = CommitStatement::Joint { record: Box::new(record) };
                    self.watch_commit(from, &target, &statement);
                }
                if complete {
                    self.complete_joint(txid);
                }
            }
        }
    }

    /// A node's part in the present attempt, as evidence would show it.
    fn signing_record(&self, txid: Txid, node: NodeId) -> Option<SigningRecord> {
        let coordination = self.coordinations.get(&txid)?;
        let Proposal::Joint(proposal) = &coordination.proposal else { return None };
        let (shares, signature) = coordination.signing.shares.get(&node)?.clone();
        Some(SigningRecord {
            proposal: (**proposal).clone(),
            account: coordination.account.clone()?,
            target: coordination.target.clone(),
            attempt: coordination.attempt,
            nodes: coordination.signing.chosen.clone(),
            wallet: coordination.signing.wallet.as_ref()?.commitments.clone(),
            shares,
            signature,
        })
    }

    fn complete_sole(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let Proposal::Sole { transaction } = &coordination.proposal else { return };
        let rounds = coordination.target.inputs();
        let rounds = transaction.input.iter().filter_map(|input| rounds.get(&input.previous_output)).copied();
        let proof = FinalityProof::Attested {
            transaction: transaction.clone(),
            rounds: rounds.collect(),
            commits: coordination.signing.commits.clone(),
        };
        self.complete(proof);
    }

    fn complete_joint(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let (Some(session), Some(checked), Some(account), Some(wallet)) = (
            &coordination.signing.session,
            &coordination.checked,
            &coordination.account,
            &coordination.signing.wallet,
        ) else {
            return;
        };
        let attempt = coordination.attempt;
        let shares: BTreeMap<_, _> =
            coordination.signing.shares.iter().map(|(node, (shares, _))| (*node, shares.clone())).collect();
        match session.aggregate(&self.federation, &account.record, &shares, &wallet.shares) {
            Ok(signatures) => match checked.complete(&signatures) {
                Ok(transaction) => {
                    let spent = checked.spent.iter().zip(&checked.addresses);
                    let spent = spent.map(|(output, address)| SpentOutput {
                        output: output.clone(),
                        position: address.position,
                    });
                    let spent = spent.collect();
                    let account = Box::new(account.clone());
                    self.complete(FinalityProof::Enforced { transaction, spent, account });
                }
                Err(error) => self.give_up(txid, &error.to_string(), true),
            },
            Err(AggregateError::Shares { culprits }) => {
                if culprits.contains(&Culprit::Wallet) {
                    return self.give_up(txid, "the wallet's signature share is not valid", false);
                }
                let nodes: Vec<NodeId> = culprits
                    .into_iter()
                    .filter_map(|culprit| match culprit {
                        Culprit::Node(node) => Some(node),
                        Culprit::Wallet => None,
                    })
                    .collect();
                for node in &nodes {
                    if let Some(record) = self.signing_record(txid, *node) {
                        self.convict(Evidence::BadShare { node: *node, record: Box::new(record) });
                    }
                }
                self.exclude(txid, attempt, &nodes);
            }
            Err(error) => self.give_up(txid, &error.to_string(), false),
        }
    }

    pub(crate) fn complete(&mut self, proof: FinalityProof) {
        let txid = proof.txid();
        self.record_final(proof.clone());
        let request = PeerRequest::FinalTransaction { proof, head: Some(self.signed_head()) };
        self.announce(txid, &request);
    }

    /// Leaves nodes out and starts the next attempt with fresh commitments of the others.
    pub(crate) fn exclude(&mut self, txid: Txid, attempt: u32, nodes: &[NodeId]) {
        let quorum = self.federation.quorum();
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let stale = attempt != coordination.attempt || coordination.certificate.is_none();
        if stale || coordination.checked.is_none() {
            return;
        }
        coordination.excluded.extend(nodes);
        if coordination.attempt - coordination.first_attempt + 1 >= u32::from(quorum.blocking()) {
            return self.out_of_attempts(txid);
        }
        // If too few are left, those who were merely silent get another chance.
        if coordination.excluded.len() > usize::from(quorum.nodes() - quorum.votes()) {
            coordination.excluded = self.watch.suspects.clone();
        }
        coordination.attempt += 1;
        coordination.signing = Attempt::default();
        coordination.commitments.clear();
        coordination.deadline = self.now + self.rules.signing_timeout;
        self.ask_votes(txid);
    }

    /// No q nodes sign together: a proven cheat is named with its evidence, silence is a reason to come back later.
    fn out_of_attempts(&mut self, txid: Txid) {
        let quorum = self.federation.quorum();
        if self.watch.suspects.len() > usize::from(quorum.nodes() - quorum.votes()) {
            let culprits = self.watch.suspects.iter().copied().collect();
            let evidence = self.evidence().cloned().collect();
            let status = TransactionStatus::AbortedByzantine { culprits, evidence };
            self.notify_status(txid, &status);
            self.finish_coordination(txid, &status);
        } else {
            self.give_up(txid, "no q nodes could be found that sign together; submit it again", true);
        }
    }

    /// The time for an attempt is over.
    pub(crate) fn attempt_due(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let attempt = coordination.attempt;
        let locked =
            coordination.target.inputs().keys().filter_map(|outpoint| self.ledger.approved(outpoint));
        let since = locked.map(|(_, since)| since).min().unwrap_or(self.now);
        let expired = self.now >= since + self.rules.voting_timeout;
        if coordination.checked.is_none() {
            if expired {
                return self.give_up(txid, "not enough nodes committed in time; submit it again", true);
            }
            coordination.signing.asked = coordination.signing.commits.keys().copied().collect();
            return self.ask_commits(txid);
        }
        let (orphan, mute) = (coordination.submitters.is_empty(), coordination.signing.session.is_none());
        let inputs = coordination.target.inputs().clone();
        if orphan && mute && self.is_forced(&inputs, txid) {
            // Another release would change nothing; its owner will submit it again.
            self.coordinations.remove(&txid);
            return;
        }
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if orphan && mute && !expired {
            // Only the wallet can go on; until its lock's time is over it may come back, to this node or another.
            coordination.deadline =
                (since + self.rules.voting_timeout).max(self.now + self.rules.signing_timeout);
            return;
        }
        if coordination.signing.session.is_none() && expired {
            return self.give_up(txid, "the wallet did not sign in time; submit it again", true);
        }
        let silent: Vec<NodeId> = match &coordination.signing.session {
            Some(_) => {
                let shares = &coordination.signing.shares;
                let chosen = coordination.signing.chosen.keys();
                chosen.filter(|node| !shares.contains_key(*node)).copied().collect()
            }
            None => Vec::new(),
        };
        self.exclude(txid, attempt, &silent);
    }
}
