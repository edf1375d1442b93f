//! Spends that a wallet is shown before the coins that they spend: what is only claimed of a coin counts for nothing,
//! so they wait until it is verified.

use super::Wallet;
use crate::{finality::FinalityProof, wire::RawTransactionProof};
use bitcoin::{Transaction, Txid};

/// How many are kept; the oldest one goes. A server that fills them with others' transactions has the wallet learn of a
/// spend at its next connection, as it would if it kept it back.
const EARLY_MAX: usize = 32;

/// What shows a spend; it was verified.
#[derive(Clone, Debug)]
pub(crate) enum Early {
    Final(Box<FinalityProof>),
    Mined(Txid, Box<RawTransactionProof>),
}

impl Early {
    fn transaction(&self) -> &Transaction {
        match self {
            Self::Final(proof) => proof.transaction(),
            Self::Mined(_, proof) => &proof.transaction,
        }
    }
}

impl Wallet {
    /// Keeps a spend that meant nothing to this wallet, if a coin is claimed that it spends.
    pub(super) fn keep_early(&mut self, early: Early) {
        let mut inputs = early.transaction().input.iter().map(|input| input.previous_output);
        if !inputs.any(|input| self.book.coin(&input).is_some_and(|coin| !coin.is_verified(&self.chain))) {
            return;
        }
        let is_same = |one: &Early| match (one, &early) {
            (Early::Final(one), Early::Final(other)) => one.txid() == other.txid(),
            (Early::Mined(one, _), Early::Mined(other, _)) => one == other,
            (Early::Final(_), Early::Mined(..)) | (Early::Mined(..), Early::Final(_)) => false,
        };
        self.early.retain(|one| !is_same(one));
        if self.early.len() >= EARLY_MAX {
            self.early.remove(0);
        }
        self.early.push(early);
    }

    /// Spends of coins of a transaction that is verified now; they are to be taken in anew.
    pub(crate) fn take_early(&mut self, parent: Txid) -> Vec<Early> {
        let spends = |early: &Early| {
            early.transaction().input.iter().any(|input| input.previous_output.txid == parent)
        };
        let (taken, left) = std::mem::take(&mut self.early).into_iter().partition(spends);
        self.early = left;
        taken
    }
}
