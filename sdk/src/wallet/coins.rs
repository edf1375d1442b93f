//! Coins and history: what the wallet knows, and how well it knows it.

use crate::{
    account::KeychainIndex,
    finality::FinalityKind,
    headers::HeaderChain,
    wire::{BlockRef, ConfirmedSpend},
};
use bitcoin::{Amount, OutPoint, ScriptBuf, Txid, constants::COINBASE_MATURITY};
use serde::{Deserialize, Serialize};

/// Blocks that a node may be behind this wallet when it votes.
pub(super) const BEHIND: u32 = 6;
/// Blocks that a payment is given at least: one that is voted for and not finished at its deadline holds all its coins.
pub(super) const LEAD: u32 = 6;

/// An output of the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coin {
    /// The outpoint.
    pub outpoint: OutPoint,
    /// Value.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub value: Amount,
    /// Output script.
    pub script_pubkey: ScriptBuf,
    /// Where its key stands.
    pub position: KeychainIndex,
    /// Set if the creating transaction is final by a verified proof.
    pub finality: Option<FinalityKind>,
    /// Deadline of the creating transaction, if it is final by enforcement: what spends the coin before it is confirmed
    /// has to have one that is not later (rule V10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u32>,
    /// Set if the creating transaction is in a block by a verified proof.
    pub block: Option<BlockRef>,
    /// Whether it is a block reward, which matures after 100 blocks.
    #[serde(default)]
    pub coinbase: bool,
    /// Set if the creating transaction can be in no block any more: this one in a block contradicts it or an ancestor,
    /// by a verified proof. The output is no coin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicted: Option<ConfirmedSpend>,
    /// Spent by a final or confirmed transaction, verified.
    pub spent_by: Option<Txid>,
    /// Reserved by a payment of this wallet.
    pub locked_by: Option<Txid>,
    /// What the server says of it at present.
    #[serde(skip)]
    pub(super) claim: Claim,
}

/// A server's word on whether there is a coin, what holds it, and for which round. It can be wrong, so it is not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// That there is such a coin: its transaction is final, or in a block.
    pub(super) made: bool,
    pub(super) round: u32,
    pub(super) holder: Option<Txid>,
}

/// What can be done with a coin, by what the wallet verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoinState {
    /// It can be paid with, in payments whose deadline is not later than this height.
    Spendable {
        /// The height.
        until: u32,
    },
    /// Announced, but not verified; or final by attestation only, or not deep enough in the chain: it waits for blocks.
    Incoming,
    /// A block reward that waits for its hundredth block.
    Immature,
    /// Held by a payment, or by one that can be in no block any more: then its recovery path has to open.
    Locked,
    /// It is no coin: a block contradicts the transaction that creates it.
    Conflicted {
        /// What the block has.
        by: ConfirmedSpend,
    },
    /// Its recovery path opens too soon for the federation to co-sign a payment: it can be moved within the account,
    /// and is spendable again when that is confirmed.
    Expired {
        /// Height at which its owner can move it alone.
        opens_at: u32,
    },
}

/// What the nodes demand of a coin (rules V1 and V10), and the chain by which the wallet sees it.
#[derive(Clone, Copy)]
pub(super) struct Demands<'a> {
    pub(super) chain: &'a HeaderChain,
    pub(super) confirmations: u32,
    pub(super) recovery_delay: u32,
    pub(super) recovery_margin: u32,
}

impl Coin {
    /// One of which nothing is known but what it is.
    pub(super) fn new(outpoint: OutPoint, value: Amount, script: ScriptBuf, position: KeychainIndex) -> Self {
        Self {
            outpoint,
            value,
            script_pubkey: script,
            position,
            finality: None,
            deadline: None,
            block: None,
            coinbase: false,
            conflicted: None,
            spent_by: None,
            locked_by: None,
            claim: Claim::default(),
        }
    }

    /// Whether it is final, or in a block of this chain, by a verified proof.
    pub(super) fn is_verified(&self, chain: &HeaderChain) -> bool {
        self.finality.is_some() || self.block.is_some_and(|block| chain.contains(&block))
    }

    /// What can be done with it.
    pub(super) fn state(&self, demands: &Demands<'_>) -> CoinState {
        if let Some(by) = self.conflicted {
            return CoinState::Conflicted { by };
        }
        if self.spent_by.or(self.held_by()).is_some() {
            return CoinState::Locked;
        }
        let chain = demands.chain;
        let block = self.block.filter(|block| chain.contains(block));
        let depth = block.map_or(0, |block| chain.confirmations(&block));
        if self.coinbase && depth < COINBASE_MATURITY {
            return CoinState::Immature;
        }
        let tip = chain.tip().height;
        let from = block.map_or(tip, |block| block.height);
        let opens_at = from.saturating_add(demands.recovery_delay);
        let horizon = opens_at.saturating_sub(demands.recovery_margin);
        // With an enforced parent it is payable before it is deep. Nodes may be some blocks behind, or want more
        // confirmations than the network's default, and go by the parent's deadline until then.
        let parent = self.deadline.filter(|_| depth < demands.confirmations.saturating_add(BEHIND));
        let early = parent.map(|deadline| deadline.min(horizon.saturating_sub(BEHIND)));
        match early.filter(|until| *until > tip.saturating_add(LEAD)) {
            _ if block.is_some() && tip.saturating_add(LEAD) >= horizon => CoinState::Expired { opens_at },
            Some(until) => CoinState::Spendable { until },
            None if depth >= demands.confirmations => CoinState::Spendable { until: horizon },
            None => CoinState::Incoming,
        }
    }

    /// The payment that holds it: one of this wallet, or by the server's word that of another device with the same
    /// words.
    pub fn held_by(&self) -> Option<Txid> {
        self.locked_by.or(self.claim.holder)
    }
}

/// What a wallet has, by how sure it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Verified and free.
    pub spendable: Amount,
    /// Announced, but not verified; or verified, and waiting for blocks ([`CoinState::Incoming`]).
    pub incoming: Amount,
    /// Reserved by a payment that is under way.
    pub locked: Amount,
    /// Block rewards that wait for their hundredth block.
    pub immature: Amount,
    /// Too old to pay with: to be moved within the account first ([`CoinState::Expired`]).
    pub expired: Amount,
}

/// A transaction that concerns the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The transaction.
    pub txid: Txid,
    /// Paid to this wallet.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub received: Amount,
    /// Spent by this wallet, change and fee included.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub spent: Amount,
    /// Set once it is final by a verified proof.
    pub finality: Option<FinalityKind>,
    /// Set once it is in a block by a verified proof.
    pub block: Option<BlockRef>,
    /// Set if it can be in no block any more, by a verified proof: this one in a block contradicts it or an ancestor.
    /// Nothing was paid by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicted: Option<ConfirmedSpend>,
}
