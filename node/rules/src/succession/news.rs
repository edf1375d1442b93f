//! What a node knows of the epoch that follows: the plan that its operator approved, other nodes' approvals, the
//! finished succession.
//!
//! Everything is pulled and verified here; a node that is behind learns from any other that is not.

use super::desk::{Desk, Purpose, Side};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    Epoch, Federation, NodeId,
    federation::{Succession, SuccessionPlan},
    wire::{PeerReply, SuccessionReply, SuccessionRequest},
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Time between two rounds of questions to everybody.
pub(super) const POLL: Duration = Duration::from_millis(200);

/// How far the preparation of the next epoch is, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The epoch that is prepared.
    pub epoch: Epoch,
    /// Number of its plan.
    pub attempt: u32,
    /// Nodes that have approved the plan.
    pub approved_by: Vec<NodeId>,
    /// What is going on.
    pub step: &'static str,
    /// Why it does not go on, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is known, and the round of questions under way.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Hash of the plan; zeros before there is one.
    plan: [u8; 32],
    approvals: BTreeMap<NodeId, schnorr::Signature>,
    succession: Option<Succession>,
    /// Answers that are still out.
    waiting: usize,
    due: Option<Duration>,
}

impl News {
    /// A plan is there, with this node's own approval if it has a voice and is named in it.
    pub(super) fn begin(desk: &Desk, federation: &Federation, plan: &SuccessionPlan, named: bool) -> Self {
        let mut approvals = BTreeMap::new();
        if named && federation.identity_key(desk.me) == Some(&desk.key.public()) {
            approvals.insert(desk.me, plan.approve(federation, &desk.key));
        }
        let plan = plan.digest(federation);
        Self { plan, approvals, succession: None, waiting: 0, due: Some(desk.now) }
    }

    pub(super) fn approvals(&self) -> &BTreeMap<NodeId, schnorr::Signature> {
        &self.approvals
    }

    pub(super) fn succession(&self) -> Option<&Succession> {
        self.succession.as_ref()
    }

    /// The key is certified; nothing has to be asked any more.
    pub(super) fn finish(&mut self, desk: &mut Desk, succession: Succession) {
        self.succession = Some(succession);
        self.due = None;
        desk.forget(|purpose| *purpose == Purpose::News);
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.due
    }

    /// Asks everybody, in both epochs.
    pub(super) fn handle_timeout(&mut self, desk: &mut Desk, federation: &Federation, plan: &SuccessionPlan) {
        if self.due.is_none_or(|due| due > desk.now) {
            return;
        }
        self.due = None;
        let request = SuccessionRequest::SuccessionPull { epoch: federation.epoch() };
        let present = federation.members().iter().map(|member| (Side::Present, member));
        let newcomers = plan.members.iter().filter(|member| !federation.members().contains(member));
        let newcomers = newcomers.map(|member| (Side::Next, member));
        let own = desk.key.public();
        for (side, member) in present.chain(newcomers).filter(|(_, member)| member.identity_key != own) {
            self.waiting += 1;
            desk.ask(side, member.id, request.clone(), Purpose::News);
        }
    }

    /// Keeps what verifies and is of this plan.
    pub(super) fn handle_answer(
        &mut self,
        desk: &Desk,
        federation: &Federation,
        plan: &SuccessionPlan,
        reply: Option<PeerReply>,
    ) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.due = Some(desk.now + POLL);
        }
        let Some(PeerReply::Succession(SuccessionReply::SuccessionNews {
            plan: theirs,
            approvals,
            succession,
        })) = reply
        else {
            return;
        };
        if theirs == self.plan {
            let new = approvals.into_iter().filter(|(node, _)| !self.approvals.contains_key(node));
            let valid = new.filter(|(node, approval)| plan.verify_approval(federation, *node, approval));
            let valid: Vec<_> = valid.collect();
            self.approvals.extend(valid);
        }
        let finished = succession
            .filter(|found| found.plan == *plan && federation.clone().succeed((**found).clone()).is_ok());
        if let Some(finished) = finished {
            self.succession = Some(*finished);
        }
    }

    pub(super) fn answer(&self) -> SuccessionReply {
        SuccessionReply::SuccessionNews {
            plan: self.plan,
            approvals: self.approvals.clone(),
            succession: self.succession.clone().map(Box::new),
        }
    }
}
