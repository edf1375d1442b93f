//! The end of an epoch at one node (see [`quorate_protocol::seal`]).

use crate::{context::Context, records::ChangeSet};
use quorate_protocol::{
    Federation, NodeId,
    federation::{Succession, SuccessionPlan},
    seal::{Seal, SealedTransaction},
    wire::{ErrorCode, Fault, SuccessionReply, WireError, limits},
};

/// Bytes of transactions in one answer.
const PAGE_BYTES: usize = limits::FRAME_BYTES_MAX / 2;

/// How this node stands to the epoch that follows.
#[derive(Debug, Default)]
pub(crate) struct Sealing {
    /// The plan for the next epoch that this node's operator has approved.
    plan: Option<[u8; 32]>,
    /// What this node ended its epoch with.
    seal: Option<(Seal, Vec<SealedTransaction>)>,
}

impl Sealing {
    /// The operator has approved a plan for the next epoch: this node ends its epoch for no other.
    pub(crate) fn approve(&mut self, cx: &Context, plan: &SuccessionPlan) {
        self.plan = Some(plan.digest(&cx.federation));
    }

    /// Ends the epoch, durably, and says with what. Asked again, it says the same again.
    pub(crate) fn seal(
        &mut self,
        cx: &mut Context,
        succession: &Succession,
        of: NodeId,
        skip: u32,
    ) -> Result<SuccessionReply, WireError> {
        if of != cx.me {
            let message = "this node has no seal of another one yet";
            return Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message));
        }
        let digest = succession.digest(&cx.federation);
        match cx.log.sealed() {
            Some(sealed) if sealed == digest => {}
            Some(_) => {
                let message = "this node has ended its epoch for another plan";
                return Err(WireError::sender(ErrorCode::NotReady, message));
            }
            None => self.end_epoch(cx, succession, digest)?,
        }
        let (seal, transactions) = self.seal.get_or_insert_with(|| {
            let mut transactions = cx.ledger.sealed();
            cx.spoil_seal(&mut transactions);
            (Seal::sign(&cx.federation, cx.me, &cx.key, digest, &transactions), transactions)
        });
        Ok(seal_page(seal, transactions, skip))
    }

    fn end_epoch(
        &mut self,
        cx: &mut Context,
        succession: &Succession,
        digest: [u8; 32],
    ) -> Result<(), WireError> {
        cx.may_vote()?;
        let stays = succession.plan.members.iter().any(|member| member.identity_key == cx.key.public());
        let other = self.plan.is_some_and(|plan| plan != succession.plan.digest(&cx.federation));
        if stays && other {
            let message = "this node's operator has approved another plan";
            return Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message));
        }
        let next = Federation::clone(&cx.federation).succeed(succession.clone());
        next.map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        tracing::info!(node = %cx.me, epoch = cx.federation.epoch().0, "this node ends its epoch");
        if !stays {
            tracing::warn!(node = %cx.me, "it is not a member of the next one: another node has taken its place");
        }
        cx.log.set_sealed(digest);
        cx.persist(ChangeSet::default());
        Ok(())
    }
}

/// As many of a seal's transactions as fit in a frame, after those that are skipped.
pub fn seal_page(seal: &Seal, transactions: &[SealedTransaction], skip: u32) -> SuccessionReply {
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
    SuccessionReply::Sealed { seal: Box::new(seal.clone()), transactions: page, more }
}
