//! Unconfirmed relatives: what a mempool keeps together, and refuses beyond a size.

use super::Ledger;
use bitcoin::{OutPoint, Transaction, Txid};
use quorate_protocol::relay_policy::{CLUSTER_TRANSACTIONS_MAX, CLUSTER_VBYTES_MAX, signed_vbytes};
use std::collections::BTreeSet;

/// How large a cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Transactions.
    pub(crate) transactions: usize,
    /// Virtual bytes.
    pub(crate) vbytes: usize,
}

impl Cluster {
    pub(crate) fn is_too_large(&self) -> bool {
        self.transactions > CLUSTER_TRANSACTIONS_MAX || self.vbytes > CLUSTER_VBYTES_MAX
    }
}

impl Ledger {
    /// The cluster that a transaction would be in: itself, what it spends that is final and in no block, what else
    /// spends from these, final or approved here, and so on. Counting ends where the cluster is too large.
    pub(crate) fn cluster(&self, transaction: &Transaction) -> Cluster {
        let txid = transaction.compute_txid();
        let mut cluster = Cluster { transactions: 1, vbytes: signed_vbytes(transaction) };
        let mut seen = BTreeSet::from([txid]);
        let mut open: Vec<Txid> = transaction.input.iter().map(|input| input.previous_output.txid).collect();
        while let Some(txid) = open.pop() {
            if cluster.is_too_large() {
                break;
            }
            if self.block_of(&txid).is_some() || !seen.insert(txid) {
                continue;
            }
            let Some(relative) = self.unconfirmed_transaction(&txid) else { continue };
            cluster.transactions += 1;
            cluster.vbytes += signed_vbytes(relative);
            open.extend(relative.input.iter().map(|input| input.previous_output.txid));
            let outputs = (0..).zip(&relative.output).map(|(vout, _)| OutPoint { txid, vout });
            let spender = |outpoint| {
                let approved = self.approved(&outpoint).map(|(txid, _)| txid);
                self.final_spend(&outpoint).or(approved)
            };
            open.extend(outputs.filter_map(spender));
        }
        cluster
    }

    /// A transaction that is final, or that this node approved and that may become so.
    fn unconfirmed_transaction(&self, txid: &Txid) -> Option<&Transaction> {
        let record = self.record(txid)?;
        match (&record.proof, &record.proposal) {
            (Some(proof), _) => Some(proof.transaction()),
            (None, Some(proposal)) => Some(proposal.transaction()),
            (None, None) => None,
        }
    }
}
