//! The end of an epoch at one node, and the beginning of the next (see [`quorate_protocol::seal`]).

use crate::{
    Bug, Machine,
    records::{Change, ChangeSet, LogRecord, TxRecord},
};
use quorate_protocol::{
    NodeId,
    evidence::Evidence,
    federation::{Succession, SuccessionPlan},
    log_head::LogHead,
    seal::{Handover, Seal, SealedTransaction},
    vote::VoteTarget,
    wire::{ErrorCode, Fault, PeerReply, WireError, limits},
};
use std::collections::BTreeMap;

/// Bytes of transactions in one answer.
const PAGE_BYTES: usize = limits::FRAME_BYTES_MAX / 2;

impl Machine {
    /// The operator has approved a plan for the next epoch: this node ends its epoch for no other.
    pub fn handle_plan(&mut self, plan: &SuccessionPlan) {
        self.plan = Some(plan.digest(&self.federation));
    }

    /// Ends the epoch, durably, and says with what. Asked again, it says the same again.
    pub(crate) fn seal_requested(
        &mut self,
        succession: &Succession,
        of: NodeId,
        skip: u32,
    ) -> Result<PeerReply, WireError> {
        if of != self.me {
            let message = "this node has no seal of another one yet";
            return Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message));
        }
        let digest = succession.digest(&self.federation);
        match self.log.sealed() {
            Some(sealed) if sealed == digest => {}
            Some(_) => {
                let message = "this node has ended its epoch for another plan";
                return Err(WireError::sender(ErrorCode::NotReady, message));
            }
            None => self.end_epoch(succession, digest)?,
        }
        let forgets = self.planted(Bug::SealForgetsCommits);
        let (seal, transactions) = self.seal.get_or_insert_with(|| {
            let mut transactions = self.ledger.sealed();
            if forgets {
                transactions.retain(|one| one.proof.is_some());
            }
            (Seal::sign(&self.federation, self.me, &self.key, digest, &transactions), transactions)
        });
        Ok(seal_page(seal, transactions, skip))
    }

    fn end_epoch(&mut self, succession: &Succession, digest: [u8; 32]) -> Result<(), WireError> {
        self.may_vote()?;
        let stays = succession.plan.members.iter().any(|one| one.identity_key == self.key.public());
        let other = self.plan.is_some_and(|plan| plan != succession.plan.digest(&self.federation));
        if stays && other {
            let message = "this node's operator has approved another plan";
            return Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message));
        }
        let next = self.federation.clone().succeed(succession.clone());
        next.map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        tracing::info!(node = %self.me, epoch = self.federation.epoch().0, "this node ends its epoch");
        if !stays {
            tracing::warn!(node = %self.me, "it is not a member of the next one: another node has taken its place");
        }
        self.log.set_sealed(digest);
        self.persist(ChangeSet::default());
        Ok(())
    }
}

/// As many of a seal's transactions as fit in a frame, after those that are skipped.
pub fn seal_page(seal: &Seal, transactions: &[SealedTransaction], skip: u32) -> PeerReply {
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut size = 0;
    let page: Vec<SealedTransaction> = transactions
        .iter()
        .skip(skip)
        .take_while(|transaction| {
            let first = size == 0;
            size += serde_json::to_vec(transaction).map_or(0, |bytes| bytes.len());
            first || size <= PAGE_BYTES
        })
        .cloned()
        .collect();
    let more = skip.saturating_add(page.len()) < transactions.len();
    PeerReply::Sealed { seal: Box::new(seal.clone()), transactions: page, more }
}

/// Everything that a node's store holds when an epoch begins: what was handed over, the evidence of the epochs before, and a log that
/// has begun, so that a store without one is known to have been lost.
pub fn opening(handover: &Handover, succession: [u8; 32], evidence: &[Evidence], wall_ms: u64) -> ChangeSet {
    let mut change = ChangeSet::default();
    for one in handover.transactions() {
        let target = match (&one.certificate, &one.proof) {
            (Some(certificate), _) => certificate.target.clone(),
            (None, Some(proof)) => {
                let inputs = proof.outpoints().map(|outpoint| (outpoint, quorate_protocol::Round(0)));
                VoteTarget::new(one.txid, inputs)
            }
            (None, None) => continue,
        };
        let record = TxRecord {
            target,
            proposal: one.proposal.clone(),
            account: one.account.clone(),
            spent: one.spent.clone(),
            vote: None,
            locked_at: wall_ms,
            certificate: one.certificate.clone(),
            proof: one.proof.clone(),
        };
        change.put(&Change::Transaction(Box::new(record)));
    }
    let mut pieces: BTreeMap<NodeId, u32> = BTreeMap::new();
    for one in evidence {
        let number = pieces.entry(one.accused()).or_default();
        change.put(&Change::Evidence { number: *number, evidence: Box::new(one.clone()) });
        *number += 1;
    }
    let head = LogHead::default().extend(&succession);
    change.put(&Change::Log(LogRecord { head, ..LogRecord::default() }));
    change
}
