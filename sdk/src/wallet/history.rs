//! What happened, as its owner reads it.

use super::{HistoryEntry, Wallet};
use crate::{finality::FinalityProof, relay_policy::bounded_sum};
use bitcoin::{Amount, ScriptBuf};

/// What the proof of a transaction tells beside its entry in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryDetails {
    /// What miners got of it, if this wallet paid; `None` while it is not proved.
    pub fee: Option<Amount>,
    /// Whom this wallet paid, and how much; without its own addresses.
    pub paid: Vec<(ScriptBuf, Amount)>,
    /// When its block was made, in Unix seconds by the block's header; `None` in no block.
    pub time: Option<u32>,
}

impl Wallet {
    /// The history in the order of blocks, and of what happened to the wallet where that is the same; what may still
    /// come into a block is last, and what came to nothing is where it was. A wallet that was restored from its words
    /// has the same order as one that saw it all.
    pub fn history_by_block(&self) -> Vec<&HistoryEntry> {
        let mut latest = 0;
        let height = |entry: &HistoryEntry| {
            if let Some(block) = entry.block.filter(|block| self.chain.contains(block)) {
                latest = latest.max(block.height);
                return block.height;
            }
            let waits = entry.finality.is_some() || self.proposals.contains_key(&entry.txid);
            if waits && entry.conflicted.is_none() { u32::MAX } else { latest }
        };
        let heights: Vec<u32> = self.history().iter().map(height).collect();
        let mut entries: Vec<_> = self.history().iter().zip(heights).collect();
        entries.sort_by_key(|(_, height)| *height);
        entries.into_iter().map(|(entry, _)| entry).collect()
    }

    /// What is known of an entry by the wallet's proof of it.
    pub fn history_details(&self, entry: &HistoryEntry) -> HistoryDetails {
        let block = entry.block.filter(|block| self.chain.contains(block));
        let time = block.and_then(|block| self.chain.header(block.height)).map(|header| header.time);
        let proof = self.proof(entry.txid).filter(|_| entry.spent > Amount::ZERO);
        let Some(FinalityProof::Enforced { transaction, spent, .. }) = proof else {
            return HistoryDetails { time, ..HistoryDetails::default() };
        };
        let value = |outputs: &[bitcoin::TxOut]| bounded_sum(outputs.iter().map(|output| output.value));
        let fee = value(spent).checked_sub(value(&transaction.output));
        let others = transaction.output.iter().filter(|output| !self.owns(&output.script_pubkey));
        let paid = others.map(|output| (output.script_pubkey.clone(), output.value)).collect();
        HistoryDetails { fee, paid, time }
    }
}
