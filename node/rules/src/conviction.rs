//! Rule V7: shows the watch what other nodes said, and keeps what convicts them.

use crate::context::Context;
use quorate_protocol::{
    NodeId,
    evidence::{CommitStatement, Evidence},
    finality::FinalityProof,
    release::SignedPromise,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget},
};

impl Context {
    /// Looks at an approval whose signature has been checked.
    pub(crate) fn watch_vote(&mut self, vote: &SignedVote) {
        let proven = self.watch.vote(vote);
        self.convict_all(proven);
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
        if !self.watch.knows_promise(promise) && promise.verify(&self.federation) {
            let proven = self.watch.promise(promise);
            self.convict_all(proven);
        }
    }

    /// Looks at a commit signature or shares whose signature has been checked.
    pub(crate) fn watch_commit(&mut self, node: NodeId, target: &VoteTarget, commit: &CommitStatement) {
        let proven = self.watch.commit(node, target, commit);
        self.convict_all(proven);
    }

    /// Looks at the commits of a proof that has been verified.
    pub(crate) fn watch_commits_of(&mut self, proof: &FinalityProof) {
        let FinalityProof::Attested { transaction, rounds, commits } = proof else { return };
        let inputs = transaction.input.iter().map(|input| input.previous_output);
        let target = VoteTarget::new(proof.txid(), proof.custody(), inputs.zip(rounds.iter().copied()));
        for (node, signature) in commits {
            let statement = CommitStatement::Sole { target: target.clone(), signature: *signature };
            self.watch_commit(*node, &target, &statement);
        }
    }

    /// Keeps evidence that verifies, durably; the node's messages are ignored from now on.
    pub(crate) fn convict(&mut self, evidence: Evidence) {
        if let Some(change) = self.watch.keep(&self.federation, evidence) {
            self.persist(change.into());
        }
    }

    fn convict_all(&mut self, proven: Vec<Evidence>) {
        proven.into_iter().for_each(|evidence| self.convict(evidence));
    }
}
