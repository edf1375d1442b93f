//! The beginning of an epoch at one node: what its store holds before the first input.

use crate::records::{Change, ChangeSet, LogRecord, TxRecord};
use bitcoin::Txid;
use quorate_protocol::{
    NodeId, Round, evidence::Evidence, log_head::LogHead, seal::Handover, vote::VoteTarget,
};
use std::collections::BTreeMap;

/// What a node keeps of its epoch beside what is handed over.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// What it has against others.
    pub evidence: Vec<Evidence>,
    /// Proofs that no seal has: it was shown them after its own, and who was told by them counts on every node that
    /// knows.
    pub finals: Vec<TxRecord>,
}

/// Everything that a node's store holds when an epoch begins: what was handed over, what the node keeps beside, and a
/// log that has begun, so that a store without one is known to have been lost.
pub fn opening(handover: &Handover, succession: [u8; 32], kept: &Kept, wall_ms: u64) -> ChangeSet {
    let mut change = ChangeSet::default();
    let mut finals: BTreeMap<Txid, &TxRecord> =
        kept.finals.iter().map(|record| (record.target.txid(), record)).collect();
    for sealed in handover.transactions() {
        let target = match (&sealed.certificate, &sealed.proof) {
            (Some(certificate), _) => certificate.target.clone(),
            (None, Some(proof)) => {
                let inputs = proof.outpoints().map(|outpoint| (outpoint, Round(0)));
                VoteTarget::new(sealed.txid, proof.custody(), inputs)
            }
            (None, None) => continue,
        };
        let record = TxRecord {
            target,
            proposal: sealed.proposal.clone(),
            account: sealed.account.clone(),
            spent: sealed.spent.clone(),
            vote: None,
            locked_at: wall_ms,
            certificate: sealed.certificate.clone(),
            proof: sealed.proof.clone().or_else(|| finals.remove(&sealed.txid)?.proof.clone()),
        };
        change.put(&Change::Transaction(Box::new(record)));
    }
    for record in finals.into_values() {
        change.put(&Change::Transaction(Box::new(TxRecord { vote: None, ..record.clone() })));
    }
    let mut pieces: BTreeMap<NodeId, u32> = BTreeMap::new();
    for piece in &kept.evidence {
        let number = pieces.entry(piece.accused()).or_default();
        change.put(&Change::Evidence { number: *number, evidence: Box::new(piece.clone()) });
        *number += 1;
    }
    let head = LogHead::default().extend(&succession);
    change.put(&Change::Log(LogRecord { head, ..LogRecord::default() }));
    change
}
