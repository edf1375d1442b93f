//! What a node knows of the epoch that follows, and the seals that it began the present one with: what its peers ask for.

use crate::lock;
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    Epoch, Federation, NodeId,
    federation::{Succession, SuccessionPlan},
    seal::{Seal, SealedTransaction},
    wire::SuccessionReply,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

/// What a node knows of the epoch after the present one; its peers ask for it.
#[derive(Debug, Default)]
pub(crate) struct News(Mutex<Known>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) plan: Option<(SuccessionPlan, [u8; 32])>,
    pub(crate) approvals: BTreeMap<NodeId, schnorr::Signature>,
    pub(crate) succession: Option<Succession>,
    pub(crate) step: &'static str,
    pub(crate) problem: Option<String>,
}

/// How far the preparation of the next epoch is, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
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

impl News {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.0)
    }

    pub(crate) fn answer(&self) -> SuccessionReply {
        let known = self.known().clone();
        SuccessionReply::SuccessionNews {
            plan: known.plan.map_or([0; 32], |(_, digest)| digest),
            approvals: known.approvals,
            succession: known.succession.map(Box::new),
        }
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        let known = self.known();
        let (plan, _) = known.plan.as_ref()?;
        Some(Progress {
            epoch: plan.epoch,
            attempt: plan.attempt,
            approved_by: known.approvals.keys().copied().collect(),
            step: known.step,
            problem: known.problem.clone(),
        })
    }

    pub(crate) fn step(&self, step: &'static str) {
        let mut known = self.known();
        (known.step, known.problem) = (step, None);
        drop(known);
        tracing::info!(step, "the next epoch");
    }
}

/// A seal with its transactions. A node keeps those that it began an epoch with, for members that are still behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WholeSeal {
    pub(crate) seal: Seal,
    pub(crate) transactions: Vec<SealedTransaction>,
}

impl WholeSeal {
    pub(crate) fn holds(&self, node: NodeId, succession: [u8; 32], federation: &Federation) -> bool {
        self.seal.node == node
            && self.seal.succession == succession
            && self.seal.verify(federation, &self.transactions)
    }

    pub(crate) fn page(&self, skip: u32) -> SuccessionReply {
        quorate_rules::seal_page(&self.seal, &self.transactions, skip)
    }
}
