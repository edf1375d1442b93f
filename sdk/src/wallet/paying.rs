//! From a wish to pay to a proposal that this wallet signs its part of.

use super::{
    Coin, CoinState, PaymentAmount, PaymentRequest, Wallet, WalletError,
    build::{self, Funds, SpendableCoin},
};
use crate::{
    NodeId,
    account::{Address, Keychain},
    frost::{NodeCommitments, WalletSignature, wallet_sign},
    proposal::{JointProposal, Proposal},
    relay_policy::bounded_sum,
    release::SignedCancel,
    vote::{ApprovalCertificate, NOT_BEFORE_ITS_BLOCK},
};
use bitcoin::{Amount, FeeRate, OutPoint, Psbt, Txid};
use rand_core::CryptoRngCore;
use std::collections::{BTreeMap, BTreeSet};

impl Wallet {
    /// Builds a payment as a PSBT, without reserving or sending anything.
    ///
    /// # Errors
    /// Dust, too little money, money that comes back only with payments under way, a fee rate out of bounds, no amount,
    /// a named coin that is not spendable; a fee out of proportion, if the request names no rate and `default_rate`,
    /// which is a server's word, makes it so.
    pub fn create_psbt(
        &mut self,
        request: &PaymentRequest,
        default_rate: FeeRate,
    ) -> Result<Psbt, WalletError> {
        let change = self.peek_next(Keychain::Change)?;
        let others = request.others.iter().map(|(destination, _)| destination);
        let home = others.chain([&request.destination]).all(|to| self.owns(&to.script_pubkey()));
        let everything = request.amount == Some(PaymentAmount::Everything);
        for outpoint in request.coins.iter().flatten() {
            let outpoint = *outpoint;
            let coin = self.book.coin(&outpoint).filter(|coin| self.book.is_unspent(coin));
            let state = coin.map(|coin| coin.state(&self.demands()));
            match state.ok_or(WalletError::Coin { outpoint, retry: false })? {
                CoinState::Expired { opens_at } if !(home && everything) => {
                    return Err(WalletError::Horizon { outpoint, opens_at });
                }
                CoinState::Conflicted { .. } => return Err(WalletError::Coin { outpoint, retry: false }),
                CoinState::Expired { .. }
                | CoinState::Spendable { .. }
                | CoinState::Incoming
                | CoinState::Immature
                | CoinState::Locked => {}
            }
        }
        let aging: BTreeSet<OutPoint> = self.aging().iter().map(|coin| coin.outpoint).collect();
        let coins = self.book.unspent(self.demands()).filter_map(|(coin, state)| {
            let usable = match state {
                CoinState::Spendable { .. } => true,
                CoinState::Expired { .. } => home && everything,
                CoinState::Incoming
                | CoinState::Immature
                | CoinState::Locked
                | CoinState::Conflicted { .. } => false,
            };
            let wanted = match &request.coins {
                Some(named) => named.contains(&coin.outpoint),
                None => !self.is_frozen(&coin.outpoint),
            };
            let described = self.describe_coin(coin).filter(|_| usable && wanted)?;
            Some(SpendableCoin { aging: aging.contains(&coin.outpoint), ..described })
        });
        let funds = self.funds(coins.collect(), change);
        let psbt = build::build(request, request.fee_rate.unwrap_or(default_rate), &funds)
            .map_err(|error| if request.coins.is_none() { self.or_busy(error) } else { error })?;
        if request.fee_rate.is_none() {
            self.check_unasked_fee(&psbt, default_rate)?;
        }
        Ok(psbt)
    }

    /// What is missing may be in a payment that is under way.
    fn or_busy(&self, error: WalletError) -> WalletError {
        let WalletError::InsufficientFunds { needed, spendable, .. } = error else { return error };
        let outputs = self.proposals.values().flat_map(|proposal| &proposal.transaction.output);
        let own = outputs.filter(|output| self.owns(&output.script_pubkey));
        let busy = bounded_sum(own.map(|output| output.value));
        if busy > Amount::ZERO && needed <= bounded_sum([spendable, busy]) {
            return WalletError::CoinsBusy { needed, spendable, busy };
        }
        error
    }

    /// Refuses a fee that only a server asks for and that is out of proportion.
    pub(crate) fn check_unasked_fee(&self, psbt: &Psbt, rate: FeeRate) -> Result<(), WalletError> {
        build::check_unasked_fee(psbt, rate, &self.addresses)
    }

    pub(super) fn describe_coin(&self, coin: &Coin) -> Option<SpendableCoin> {
        let address = self.addresses.get(&coin.script_pubkey)?.clone();
        let confirmed = coin.block.is_some_and(|block| self.chain.contains(&block));
        let crowded = self.is_crowded(&coin.outpoint);
        let (outpoint, value) = (coin.outpoint, coin.value);
        Some(SpendableCoin { outpoint, value, confirmed, aging: false, crowded, address })
    }

    pub(super) fn funds(&self, coins: Vec<SpendableCoin>, change: Address) -> Funds<'_> {
        let incoming = self.balance().incoming;
        let clusters = self.clusters();
        Funds { account: &self.account, addresses: &self.addresses, coins, incoming, change, clusters }
    }

    /// Authorises a PSBT of this account, its own or one that came from outside, and reserves its coins.
    ///
    /// # Errors
    /// It spends anything that is not a spendable coin of this wallet, lies about a coin, or breaks a rule that the
    /// nodes enforce.
    pub fn propose(&mut self, psbt: Psbt) -> Result<Proposal, WalletError> {
        let deadline = self.deadline(&psbt)?;
        let key = &self.keys()?.authorisation;
        let proposal = JointProposal::authorise(&self.federation, self.account.id(), key, psbt, deadline);
        self.take_proposal(&proposal)?;
        Ok(Proposal::Joint(Box::new(proposal)))
    }

    /// The latest deadline that the coins of a PSBT allow (rule V10), after a check that they are this wallet's.
    pub(super) fn deadline(&self, psbt: &Psbt) -> Result<u32, WalletError> {
        let home = psbt.unsigned_tx.output.iter().all(|output| self.owns(&output.script_pubkey));
        let mut latest = u32::MAX;
        let mut moves_home = false;
        for (input, data) in psbt.unsigned_tx.input.iter().zip(&psbt.inputs) {
            let outpoint = input.previous_output;
            let coin = self.book.coin(&outpoint).filter(|coin| coin.spent_by.is_none());
            let same = coin.zip(data.witness_utxo.as_ref()).filter(|(coin, output)| {
                coin.value == output.value && coin.script_pubkey == output.script_pubkey
            });
            let (coin, _) = same.ok_or(WalletError::Coin { outpoint, retry: false })?;
            match coin.state(&self.demands()) {
                CoinState::Spendable { until } => latest = latest.min(until),
                CoinState::Expired { .. } if home => moves_home = true,
                CoinState::Expired { opens_at } => return Err(WalletError::Horizon { outpoint, opens_at }),
                CoinState::Conflicted { .. } => return Err(WalletError::Coin { outpoint, retry: false }),
                CoinState::Incoming | CoinState::Immature | CoinState::Locked => {
                    return Err(WalletError::Coin { outpoint, retry: true });
                }
            }
        }
        Ok(if moves_home { NOT_BEFORE_ITS_BLOCK } else { latest })
    }

    /// Takes in a proposal of this account, as it was saved or has just been made.
    pub(crate) fn take_proposal(&mut self, proposal: &JointProposal) -> Result<(), WalletError> {
        let checked = proposal.check(&self.federation, &self.account)?;
        let txid = checked.plan.txid;
        for output in &checked.transaction.output {
            self.mark_used(&output.script_pubkey)?;
        }
        self.book.propose(&checked, &self.addresses);
        self.proposals.insert(txid, checked);
        Ok(())
    }

    /// Frees the coins of a proposal that the federation refused for good.
    pub fn abandon(&mut self, txid: Txid) {
        self.proposals.remove(&txid);
        self.book.abandon(txid);
        // What another payment under way spends too stays its.
        for proposal in self.proposals.values() {
            self.book.hold(proposal);
        }
    }

    /// The owner's signed wish that a payment should not happen.
    ///
    /// # Errors
    /// The wallet only watches.
    pub fn sign_cancel(&self, txid: Txid) -> Result<SignedCancel, WalletError> {
        Ok(SignedCancel::sign(&self.federation, &self.keys()?.authorisation, txid))
    }

    /// Makes the wallet's part of a signing session, for a transaction that it proposed.
    ///
    /// # Errors
    /// The certificate or commitments do not verify, or the wallet never proposed this transaction: the asker
    /// is at fault.
    pub fn sign(
        &self,
        attempt: u32,
        certificate: &ApprovalCertificate,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<WalletSignature, WalletError> {
        let proposal = self.proposals.get(&certificate.target.txid()).ok_or(WalletError::NotProposed)?;
        let ours: Vec<OutPoint> =
            proposal.transaction.input.iter().map(|input| input.previous_output).collect();
        let inputs = certificate.target.inputs();
        let same = inputs.len() == ours.len() && ours.iter().all(|outpoint| inputs.contains_key(outpoint));
        if !same || certificate.target.custody() != proposal.custody {
            return Err(WalletError::NotProposed);
        }
        certificate.verify(&self.federation).map_err(crate::account::AccountError::from)?;
        let secret = self.keys()?.secret();
        let mut rng = rng;
        Ok(wallet_sign(
            &self.federation,
            &proposal.plan,
            &certificate.target,
            attempt,
            nodes,
            &secret,
            &self.keys()?.authorisation,
            &mut rng,
        )?)
    }
}
