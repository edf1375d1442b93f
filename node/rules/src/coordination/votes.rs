//! Phase 1 from the coordinator's side: asks for votes, counts them, and certifies or ends the transaction.

use super::run::{Ending, Run};
use crate::{Bug, Tag, context::Context, effects::Reason};
use quorate_protocol::{
    NodeId,
    frost::NodeCommitments,
    vote::{ApprovalCertificate, SignedVote, Verdict},
    wire::{NodeReject, RejectReason, TransactionStatus, VotingRequest},
};

impl Run {
    /// Asks all nodes that have not voted.
    pub(crate) fn ask_votes(&mut self, cx: &mut Context) {
        let txid = self.txid();
        if self.ending.is_none() && cx.is_cancelled(&self.target) {
            // Told by another coordinator. Nodes that have not heard of it would lock the coins once more.
            return self.end(cx, Ending::cancelled());
        }
        // While this node waits for a release, votes of the round before would only start other nodes' timers anew.
        if self.target.inputs().keys().any(|outpoint| cx.ledger.is_pending(outpoint)) {
            return;
        }
        let request = VotingRequest::VoteRequest {
            proposal: self.proposal.clone(),
            account: self.account.clone(),
            certificate: self.certificate.clone(),
            releases: cx.releases_of(&self.target),
        };
        let certified = self.certificate.is_some();
        let answered = |node: &NodeId| {
            !certified && (self.approvals.contains_key(node) || self.rejects.contains_key(node))
        };
        let missing: Vec<_> = cx.everyone().filter(|node| !answered(node)).collect();
        cx.ask(missing, Tag::Vote { txid, attempt: self.attempt }, &request);
    }

    /// Counts a node's vote, and keeps its nonce commitments; a repeated vote changes nothing but those.
    pub(crate) fn handle_vote(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        vote: SignedVote,
        reason: Option<RejectReason>,
        commitments: Option<NodeCommitments>,
    ) {
        let txid = self.txid();
        let own = from == cx.me;
        if vote.node != from || !own && !vote.verify(&cx.federation) {
            tracing::warn!(%from, %txid, "dropped a vote that does not verify");
            return;
        }
        // Only votes on this transaction's own inputs are kept for comparison; a voter cannot fill the memory with
        // others.
        let inputs = self.target.inputs().keys();
        if !vote.target.inputs().keys().eq(inputs) {
            tracing::warn!(%from, %txid, "dropped a vote on something else");
            return;
        }
        cx.watch_vote(&vote);
        if cx.watch.suspects().contains(&from) || !self.same_rounds(cx, &vote) {
            return;
        }
        if self.checked.is_some()
            && let Some(commitments) = commitments
        {
            let sound =
                || commitments.verify(&cx.federation, from, &self.target) && commitments.is_well_formed();
            if own || sound() {
                self.commitments.insert(from, commitments);
            } else {
                tracing::warn!(%from, %txid, "nonce commitments that do not verify or are no points; the node is left out");
                self.excluded.insert(from);
            }
        }
        let news = match vote.verdict {
            Verdict::Approve => self.approvals.insert(from, vote.signature).is_none(),
            Verdict::Reject => {
                let unknown = RejectReason::Invalid { message: "no reason given".to_owned() };
                self.rejects.insert(from, (vote, reason.unwrap_or(unknown)));
                false
            }
        };
        let quorum = cx.federation.quorum();
        let votes = u16::try_from(self.approvals.len()).unwrap_or(u16::MAX);
        let certified = self.certificate.is_some();
        let ending = self.ending.is_some();
        let rejects = self.rejects.keys().filter(|node| !self.approvals.contains_key(*node)).count();
        if news && !certified && !ending {
            let (needed, nodes) = (quorum.votes(), quorum.nodes());
            self.tell(cx, &TransactionStatus::Voting { votes, quorum: needed, nodes });
        }
        let needed = if cx.planted(Bug::SmallCertificate) { quorum.votes() - 1 } else { quorum.votes() };
        if ending {
        } else if certified {
            self.start_attempt(cx);
        } else if votes >= needed {
            self.certify(cx);
        } else if rejects >= usize::from(quorum.blocking()) {
            self.reject(cx);
        }
    }

    /// Whether a vote is of the rounds that this coordination is about. If the voter is ahead, this node catches up.
    fn same_rounds(&mut self, cx: &mut Context, vote: &SignedVote) -> bool {
        if vote.target == self.target {
            return true;
        }
        if self.ending.is_some() {
            return false;
        }
        let present = cx.present_target(&self.proposal);
        if self.target != present && !present.inputs().keys().any(|one| cx.ledger.is_pending(one)) {
            self.restart(cx);
            return false;
        }
        // The voter has promised to leave a round that is not released yet: help to finish that.
        for (outpoint, theirs) in vote.target.inputs() {
            if let Some(mine) = present.inputs().get(outpoint).filter(|mine| mine.next() == *theirs) {
                cx.start_release(*outpoint, *mine, &Reason::default());
            }
        }
        false
    }

    fn reject(&mut self, cx: &mut Context) {
        let rejects: Vec<NodeReject> = self
            .rejects
            .iter()
            .map(|(node, (_, reason))| NodeReject { node: *node, reason: reason.clone() })
            .collect();
        // It is over for good only if so many say so that no quorum can come together without them; fewer may be
        // liars, and the others late.
        let blocking = usize::from(cx.federation.quorum().blocking());
        let for_good = rejects.iter().filter(|reject| !reject.reason.retry()).count();
        let retry = for_good < blocking;
        self.end(cx, Ending::Rejected { rejects, retry });
    }

    fn certify(&mut self, cx: &mut Context) {
        let certificate =
            ApprovalCertificate { target: self.target.clone(), approvals: self.approvals.clone() };
        cx.watch_certificate(&certificate);
        self.certificate = Some(certificate);
        self.deadline = cx.now + cx.settings.signing_timeout;
        self.tell(cx, &TransactionStatus::Approved);
        self.claim_final(cx);
        self.start_attempt(cx);
    }
}
