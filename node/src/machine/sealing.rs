//! The end of an epoch at one node, and the beginning of the next (see [`quorate::seal`]).

use super::{Machine, Stored, TxRecord};
use crate::store::ChangeSet;
use quorate::{
    federation::{Succession, SuccessionPlan},
    seal::{Handover, Seal, SealedTransaction},
    vote::VoteTarget,
    wire::{ErrorCode, Fault, PeerReply, WireError, limits},
};

/// Blocks above a final transaction after which the next epoch need not be told of it: the chain says it.
const BURIED: u32 = 144;
/// Bytes of transactions in one answer.
const PAGE_BYTES: usize = limits::FRAME_BYTES_MAX / 2;

impl Machine {
    /// The operator has approved a plan for the next epoch: this node ends its epoch for no other.
    pub fn handle_plan(&mut self, plan: &SuccessionPlan) {
        self.plan = Some(plan.digest(&self.federation));
    }

    /// Ends the epoch, durably, and says with what. Asked again, it says the same again.
    pub(super) fn seal_requested(
        &mut self,
        succession: &Succession,
        skip: u32,
    ) -> Result<PeerReply, WireError> {
        let digest = succession.digest(&self.federation);
        match self.log.sealed() {
            Some(sealed) if sealed == digest => {}
            Some(_) => {
                let message = "this node has ended its epoch for another plan";
                return Err(WireError::sender(ErrorCode::NotReady, message));
            }
            None => self.end_epoch(succession, digest)?,
        }
        let (seal, transactions) = self.seal.get_or_insert_with(|| {
            let transactions = self.ledger.sealed(BURIED);
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

/// What a node begins an epoch with.
pub fn stored_from(handover: &Handover, wall_ms: u64) -> Stored {
    let record = |one: &SealedTransaction| {
        let target = match (&one.certificate, &one.proof) {
            (Some(certificate), _) => certificate.target.clone(),
            (None, Some(proof)) => {
                let inputs = proof.outpoints().map(|outpoint| (outpoint, quorate::Round(0)));
                VoteTarget::new(one.txid, inputs)
            }
            (None, None) => return None,
        };
        Some(TxRecord {
            target,
            proposal: one.proposal.clone(),
            account: one.account.clone(),
            spent: Vec::new(),
            vote: None,
            locked_at: wall_ms,
            certificate: one.certificate.clone(),
            proof: one.proof.clone(),
        })
    };
    Stored { transactions: handover.transactions().filter_map(record).collect(), ..Stored::default() }
}
