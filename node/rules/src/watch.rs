//! Rule V7: notices statements of one node that contradict each other, and keeps the evidence.
//!
//! Only statements whose signature verifies are looked at, and [`Evidence::verify`] has the last word before a node is accused, so
//! nobody is framed by forged or mixed messages.

use crate::{context::Context, records::Change};
use bitcoin::OutPoint;
use quorate_protocol::{
    Epoch, NodeId,
    evidence::{CommitStatement, Evidence, EvidenceKind, two_approvals},
    finality::FinalityProof,
    release::SignedPromise,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget},
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Statements remembered to be compared with later ones; the oldest go first.
const STATEMENTS_MAX: usize = 100_000;
/// Evidence kept per node; one piece convicts, more shows a pattern.
const EVIDENCE_PER_NODE_MAX: usize = 64;

type Key = (NodeId, OutPoint);

#[derive(Debug, Default)]
pub(crate) struct Watch {
    approvals: HashMap<Key, Vec<SignedVote>>,
    promises: HashMap<Key, Vec<SignedPromise>>,
    commits: HashMap<Key, Vec<(VoteTarget, CommitStatement)>>,
    order: VecDeque<(Key, Statement)>,
    evidence: BTreeMap<NodeId, Vec<Evidence>>,
    suspects: BTreeSet<NodeId>,
}

#[derive(Clone, Copy, Debug)]
enum Statement {
    Approval,
    Promise,
    Commit,
}

impl Watch {
    /// Evidence of earlier epochs is kept, but whoever has the accused node's number now may be another one.
    pub(crate) fn restore(evidence: Vec<Evidence>, epoch: Epoch) -> Self {
        let mut watch = Self::default();
        for one in evidence {
            if one.epoch() == Some(epoch) {
                watch.suspects.insert(one.accused());
            }
            watch.evidence.entry(one.accused()).or_default().push(one);
        }
        watch
    }

    /// Nodes that have cheated in this epoch; their messages are ignored.
    pub(crate) fn suspects(&self) -> &BTreeSet<NodeId> {
        &self.suspects
    }

    /// All evidence, by node.
    pub(crate) fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.evidence.values().flatten()
    }

    /// How often each kind of cheat was proven.
    pub(crate) fn counts(&self) -> BTreeMap<EvidenceKind, usize> {
        let mut counts = BTreeMap::new();
        for evidence in self.evidence() {
            *counts.entry(evidence.kind()).or_default() += 1;
        }
        counts
    }

    fn remember(&mut self, key: Key, statement: Statement) {
        self.order.push_back((key, statement));
        while self.order.len() > STATEMENTS_MAX {
            let Some((key, statement)) = self.order.pop_front() else { return };
            match statement {
                Statement::Approval => forget_first(&mut self.approvals, &key),
                Statement::Promise => forget_first(&mut self.promises, &key),
                Statement::Commit => forget_first(&mut self.commits, &key),
            }
        }
    }
}

fn forget_first<T>(map: &mut HashMap<Key, Vec<T>>, key: &Key) {
    if let Some(kept) = map.get_mut(key) {
        kept.remove(0);
        if kept.is_empty() {
            map.remove(key);
        }
    }
}

impl Context {
    /// Looks at an approval whose signature has been checked.
    pub(crate) fn watch_vote(&mut self, vote: &SignedVote) {
        if vote.verdict != Verdict::Approve {
            return;
        }
        for outpoint in vote.target.inputs().keys() {
            let key = (vote.node, *outpoint);
            let known = self.watch.approvals.entry(key).or_default();
            if known.contains(vote) {
                continue;
            }
            let other = known.iter().find(|other| two_approvals(other, vote)).cloned();
            known.push(vote.clone());
            self.watch.remember(key, Statement::Approval);
            if let Some(first) = other {
                self.convict(Evidence::TwoApprovals { first, second: vote.clone() });
            }
        }
    }

    /// Looks at the approvals of a certificate that has been verified.
    pub(crate) fn watch_certificate(&mut self, certificate: &ApprovalCertificate) {
        for (node, signature) in &certificate.approvals {
            let target = certificate.target.clone();
            let vote = SignedVote { node: *node, target, verdict: Verdict::Approve, signature: *signature };
            self.watch_vote(&vote);
        }
    }

    /// Looks at a promise; its signature is checked here.
    pub(crate) fn watch_promise(&mut self, promise: &SignedPromise) {
        let key = (promise.node, promise.outpoint);
        let known = self.watch.promises.entry(key).or_default();
        if known.contains(promise) {
            return;
        }
        if !promise.verify(&self.federation) {
            return;
        }
        let same =
            |other: &&SignedPromise| other.round == promise.round && other.committed != promise.committed;
        let other = known.iter().find(same).cloned();
        known.push(promise.clone());
        self.watch.remember(key, Statement::Promise);
        if let Some(first) = other {
            self.convict(Evidence::TwoPromises { first, second: promise.clone() });
        }
        let commits = self.watch.commits.get(&key);
        let denied =
            commits.and_then(|all| all.iter().find(|(target, _)| promise.contradicts_commit(target)));
        if let Some((_, commit)) = denied.cloned() {
            self.convict(Evidence::CommitAgainstPromise {
                promise: promise.clone(),
                node: promise.node,
                commit,
            });
        }
    }

    /// Looks at a commit signature or shares whose signature has been checked.
    pub(crate) fn watch_commit(&mut self, node: NodeId, target: &VoteTarget, commit: &CommitStatement) {
        for outpoint in target.inputs().keys() {
            let key = (node, *outpoint);
            let known = self.watch.commits.entry(key).or_default();
            if known.iter().any(|(other, _)| other == target) {
                continue;
            }
            known.push((target.clone(), commit.clone()));
            self.watch.remember(key, Statement::Commit);
            let promises = self.watch.promises.get(&key);
            let denial =
                promises.and_then(|all| all.iter().find(|one| one.contradicts_commit(target))).cloned();
            if let Some(promise) = denial {
                self.convict(Evidence::CommitAgainstPromise { promise, node, commit: commit.clone() });
            }
        }
    }

    /// Looks at the commits of a proof that has been verified.
    pub(crate) fn watch_commits_of(&mut self, proof: &FinalityProof) {
        let FinalityProof::Attested { transaction, rounds, commits } = proof else { return };
        let inputs = transaction.input.iter().map(|input| input.previous_output);
        let target = VoteTarget::new(proof.txid(), inputs.zip(rounds.iter().copied()));
        for (node, signature) in commits {
            let statement = CommitStatement::Sole { target: target.clone(), signature: *signature };
            self.watch_commit(*node, &target, &statement);
        }
    }

    /// Keeps evidence that verifies, durably; the node's messages are ignored from now on.
    pub(crate) fn convict(&mut self, evidence: Evidence) {
        let node = match evidence.verify(&self.federation) {
            Ok(node) => node,
            Err(error) => {
                tracing::debug!(%error, "an accusation that proves nothing was dropped");
                return;
            }
        };
        // Whoever had the number in an earlier epoch may have been another node.
        if evidence.epoch() == Some(self.federation.epoch()) {
            self.watch.suspects.insert(node);
        }
        let known = self.watch.evidence.entry(node).or_default();
        if known.len() >= EVIDENCE_PER_NODE_MAX || known.contains(&evidence) {
            return;
        }
        tracing::warn!(%node, kind = %evidence.kind(), "a node cheated; the evidence is kept");
        let number = u32::try_from(known.len()).unwrap_or(u32::MAX);
        known.push(evidence.clone());
        self.persist(Change::Evidence { number, evidence: Box::new(evidence) }.into());
    }
}
