//! Lifting: what is final and falls behind is paid for by a child (child pays for parent), by whoever has an output of
//! it.

use super::{Coin, CoinState, Wallet, WalletError, build, clusters};
use crate::{account::Keychain, finality::FinalityProof, relay_policy::signed_vbytes};
use bitcoin::{Amount, FeeRate, Psbt, Txid, Weight};
use std::collections::BTreeSet;

/// Most unconfirmed ancestors that a child pays for: a cluster has 25 transactions.
const LIFTED_MAX: usize = 24;

impl Wallet {
    /// Builds the transaction that lifts an enforced one which waits for its block: it moves this wallet's largest
    /// output of it home, at a fee that brings both, and what this wallet knows of their unconfirmed ancestors, to a
    /// fee rate.
    /// Payer (by the change) and payee can do it alike.
    ///
    /// # Errors
    /// There is nothing to lift, or it pays so much already; the output is worth less than the fee; a rate out of
    /// bounds.
    pub fn create_bump(&mut self, txid: Txid, rate: FeeRate) -> Result<Psbt, WalletError> {
        build::check_rate(rate)?;
        let home = self.peek_next(Keychain::Change)?;
        let (weight, paid) = self.unconfirmed_package(txid, rate)?;
        let states = self.book.unspent(self.demands());
        let spendable = states.filter(|(_, state)| matches!(state, CoinState::Spendable { .. }));
        let free = |coin: &&Coin| coin.outpoint.txid == txid && !self.is_frozen(&coin.outpoint);
        let own = spendable.map(|(coin, _)| coin).filter(free);
        let coin: &Coin = own.max_by_key(|coin| coin.value).ok_or(WalletError::NothingToLift { txid })?;
        let coins = self.describe_coin(coin).into_iter().collect();
        let funds = self.funds(coins, home);
        let psbt = build::lift(rate, weight, paid, &funds)?;
        let vbytes = signed_vbytes(&psbt.unsigned_tx);
        let room = psbt
            .unsigned_tx
            .input
            .iter()
            .all(|input| funds.clusters.fit_lift(&input.previous_output, vbytes));
        room.then_some(psbt).ok_or_else(clusters::too_large)
    }

    /// The unconfirmed transactions that one descends from, as far as this wallet knows, nearest first.
    pub(crate) fn unconfirmed_ancestors(&self, txid: Txid) -> Vec<Txid> {
        let (mut all, mut seen) = (vec![txid], BTreeSet::from([txid]));
        let mut next = 0;
        while let Some(one) = all.get(next) {
            let parents = self.waiting_proof(*one).into_iter().flat_map(FinalityProof::outpoints);
            let new: Vec<Txid> =
                parents.map(|outpoint| outpoint.txid).filter(|parent| seen.insert(*parent)).collect();
            all.extend(new.into_iter().filter(|parent| self.waiting_proof(*parent).is_some()));
            next += 1;
        }
        all.split_off(1)
    }

    /// The proof of a transaction that waits for its block.
    fn waiting_proof(&self, txid: Txid) -> Option<&FinalityProof> {
        let entry = self.book.entry(txid);
        let waits = entry.is_none_or(|entry| entry.block.is_none() && entry.conflicted.is_none());
        self.proofs.get(&txid).filter(|_| waits)
    }

    /// Weight and fee of a transaction and of those of its unconfirmed ancestors that pay less than `rate`.
    fn unconfirmed_package(&self, txid: Txid, rate: FeeRate) -> Result<(Weight, Amount), WalletError> {
        let (mut weight, mut paid) = (Weight::ZERO, Amount::ZERO);
        let (mut open, mut seen) = (vec![txid], BTreeSet::from([txid]));
        while let Some(one) = open.pop() {
            let Some(proof) = self.waiting_proof(one) else { continue };
            let Some((own_weight, own_fee)) = cost(proof) else { continue };
            if rate.fee_wu(own_weight).is_some_and(|wanted| own_fee < wanted) {
                weight += own_weight;
                paid = paid.checked_add(own_fee).unwrap_or(Amount::MAX_MONEY);
            }
            let parents = proof.outpoints().map(|outpoint| outpoint.txid);
            open.extend(parents.filter(|parent| seen.len() < LIFTED_MAX && seen.insert(*parent)));
        }
        if weight == Weight::ZERO { Err(WalletError::NothingToLift { txid }) } else { Ok((weight, paid)) }
    }
}

/// Weight and fee of an enforced transaction, whose spent outputs its proof names.
fn cost(proof: &FinalityProof) -> Option<(Weight, Amount)> {
    let FinalityProof::Enforced { transaction, spent, .. } = proof else { return None };
    let sum = |outputs: &[bitcoin::TxOut]| {
        outputs.iter().map(|output| output.value).try_fold(Amount::ZERO, Amount::checked_add)
    };
    Some((transaction.weight(), sum(spent)?.checked_sub(sum(&transaction.output)?)?))
}
