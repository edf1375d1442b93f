//! Transactions that this node has said something about, and what final ones spend.

use crate::records::TxRecord;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::wire::FinalSpend;
use std::collections::{BTreeSet, HashMap};

/// Records of transactions.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    records: HashMap<Txid, TxRecord>,
    /// What final transactions spend, also of coins that this node does not know.
    final_spends: HashMap<OutPoint, FinalSpend>,
    /// Transactions with a vote or certificate and no proof.
    open: BTreeSet<Txid>,
}

impl Transactions {
    pub(super) fn get(&self, txid: &Txid) -> Option<&TxRecord> {
        self.records.get(txid)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Txid, &TxRecord)> {
        self.records.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn open(&self) -> &BTreeSet<Txid> {
        &self.open
    }

    pub(super) fn close(&mut self, txid: &Txid) {
        self.open.remove(txid);
    }

    pub(super) fn final_spend(&self, outpoint: &OutPoint) -> Option<FinalSpend> {
        self.final_spends.get(outpoint).copied()
    }

    pub(super) fn put_final_spend(&mut self, outpoint: OutPoint, spend: FinalSpend) {
        self.final_spends.insert(outpoint, spend);
    }

    pub(super) fn put(&mut self, record: TxRecord) {
        let txid = record.target.txid();
        if record.proof.is_some() {
            self.open.remove(&txid);
        } else if record.vote.is_some() || record.certificate.is_some() {
            self.open.insert(txid);
        }
        self.records.insert(txid, record);
    }

    /// Takes a record away.
    pub(super) fn remove(&mut self, txid: &Txid) -> Option<TxRecord> {
        self.open.remove(txid);
        self.records.remove(txid)
    }

    /// Forgets what a final transaction spends: it has come to rest.
    pub(super) fn forget_final_spend(&mut self, outpoint: &OutPoint) {
        self.final_spends.remove(outpoint);
    }
}
