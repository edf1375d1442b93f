//! What an unconfirmed final transaction rests on. The chain has the last word (design, section 4).

use super::{Coin, Ledger};
use bitcoin::{OutPoint, Transaction, Txid};
use quorate_protocol::{vote::NOT_BEFORE_ITS_BLOCK, wire::ConfirmedSpend};
use std::collections::{BTreeSet, VecDeque};

/// Ancestors that are looked at for coins to look up; a cluster has fewer.
const ANCESTORS_MAX: usize = 128;

/// What an unconfirmed final transaction rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ancestry {
    /// All that it descends from is in blocks, or final and not spent another way.
    Alive,
    /// It is dead, and all that descends from it.
    Conflicted(Conflict),
    /// This node has not seen that an ancestor is final.
    Unknown,
}

/// Why a transaction is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// What a block has.
    pub(crate) by: ConfirmedSpend,
    /// From the transaction to the ancestor whose input that spends, which may be itself.
    pub(crate) path: Vec<Txid>,
}

impl Ledger {
    /// What a block spends an outpoint with. That of a coin which this node does not know is known if something final
    /// spends it.
    fn chain_spend(&self, outpoint: &OutPoint) -> Option<ConfirmedSpend> {
        let of_coin = self.coin(outpoint).and_then(Coin::spent);
        of_coin.or_else(|| self.unknown_spent.get(outpoint).copied())
    }

    /// Whether the chain has spent an input of a final transaction, or of one of its unconfirmed ancestors, another
    /// way.
    pub(crate) fn ancestry(&self, txid: Txid) -> Ancestry {
        // The shortest way first: it is shown to wallets.
        let (mut open, mut seen) = (VecDeque::from([vec![txid]]), BTreeSet::from([txid]));
        let mut unknown = false;
        while let Some(path) = open.pop_front() {
            let Some(txid) = path.last().copied().filter(|txid| self.block_of(txid).is_none()) else {
                continue;
            };
            let Some(proof) = self.proof(&txid) else {
                unknown = true;
                continue;
            };
            for outpoint in proof.outpoints() {
                let coin = self.coin(&outpoint);
                let spent = self.chain_spend(&outpoint);
                if let Some(by) = spent.filter(|spent| spent.txid != txid) {
                    return Ancestry::Conflicted(Conflict { by, path });
                }
                if coin.is_some_and(|coin| coin.created.is_some()) {
                    continue;
                }
                // That its transaction is in a block does not say that the coin is still there.
                let parent = self.proof(&outpoint.txid).is_some() && self.block_of(&outpoint.txid).is_none();
                unknown |= !parent && spent.is_none();
                if seen.insert(outpoint.txid) {
                    open.push_back([path.as_slice(), &[outpoint.txid]].concat());
                }
            }
        }
        if unknown { Ancestry::Unknown } else { Ancestry::Alive }
    }

    /// Coins that unconfirmed ancestors of these spend, and of which this node does not know where they come from.
    pub(crate) fn unknown_below(&self, outpoints: &[OutPoint]) -> Vec<OutPoint> {
        let (mut open, mut seen) = (outpoints.to_vec(), BTreeSet::new());
        let mut unknown = Vec::new();
        while let Some(outpoint) = open.pop().filter(|_| seen.len() < ANCESTORS_MAX) {
            let proof = self.proof(&outpoint.txid).filter(|_| self.block_of(&outpoint.txid).is_none());
            let Some(proof) = proof.filter(|_| seen.insert(outpoint.txid)) else { continue };
            for input in proof.outpoints() {
                if !self.knows_origin(&input) {
                    unknown.push(input);
                }
                open.push(input);
            }
        }
        unknown
    }

    /// Why a final transaction is dead, if it is.
    pub(crate) fn conflict(&self, txid: Txid) -> Option<Conflict> {
        match self.ancestry(txid) {
            Ancestry::Conflicted(conflict) => Some(conflict),
            Ancestry::Alive | Ancestry::Unknown => None,
        }
    }

    /// The transactions on the way from a dead one to the ancestor that a block contradicts.
    pub(crate) fn transactions_of(&self, path: &[Txid]) -> Vec<Transaction> {
        path.iter().filter_map(|txid| self.proof(txid)).map(|proof| proof.transaction().clone()).collect()
    }

    /// Final transactions that spend one of these outpoints, other than a block does, and all final ones that descend
    /// from them.
    pub(crate) fn contradicted(&self, spent: &[OutPoint]) -> BTreeSet<Txid> {
        let other = |outpoint: &OutPoint| {
            let in_block = self.chain_spend(outpoint).map(|spent| spent.txid);
            self.final_spend(outpoint).filter(|txid| in_block.is_some_and(|other| other != *txid))
        };
        let mut open: Vec<Txid> = spent.iter().filter_map(other).collect();
        let mut dead = BTreeSet::new();
        while let Some(txid) = open.pop() {
            if dead.insert(txid) {
                open.extend(self.outputs_of(txid).iter().filter_map(|outpoint| self.final_spend(outpoint)));
            }
        }
        dead
    }

    /// The outpoints that a final transaction creates.
    pub(crate) fn outputs_of(&self, txid: Txid) -> Vec<OutPoint> {
        let outputs = self.proof(&txid).map_or(0, |proof| proof.transaction().output.len());
        (0..).take(outputs).map(|vout| OutPoint { txid, vout }).collect()
    }

    /// Whether somebody may have been told that a transaction is final by enforcement: for a block to contradict it is
    /// the worst that can happen to a federation. What only moves coins home is not final before its block.
    pub(crate) fn is_promised(&self, txid: &Txid) -> bool {
        let deadline = self.proof(txid).and_then(|proof| proof.custody().deadline());
        deadline.is_some_and(|deadline| deadline != NOT_BEFORE_ITS_BLOCK)
    }
}
