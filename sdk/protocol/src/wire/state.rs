//! States of outpoints and transactions as they are told to wallets (design, section 4).
//!
//! [`UtxoRecord`] carries facts; [`UtxoState`] is a projection of them. Applying a record is a join: the same record
//! twice, or two nodes' records in any order, give the same result. Facts of blocks are replaced as a whole by those
//! of a later tip, because a reorganisation can take them back; facts of the protocol only grow.

use crate::{
    NodeId, Round,
    evidence::Evidence,
    finality::{FinalityKind, FinalityProof},
    release::ReleaseCertificate,
    tagged::{self, tagged},
};
use bitcoin::{Amount, BlockHash, OutPoint, ScriptBuf, Txid};
use serde::{Deserialize, Deserializer, Serialize};

/// A block by height and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockRef {
    /// Height.
    pub height: u32,
    /// Hash, in display order.
    pub hash: BlockHash,
}

/// A node's durable vote for one transaction on an outpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The transaction it is locked for.
    pub txid: Txid,
    /// In which round.
    pub round: Round,
    /// Unix time of the vote, in milliseconds; for display only.
    pub locked_at: u64,
}

/// A final transaction that spends an outpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalSpend {
    /// The transaction.
    pub txid: Txid,
    /// Which promise stands behind it.
    pub kind: FinalityKind,
}

/// A spend in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConfirmedSpend {
    /// The transaction.
    pub txid: Txid,
    /// The block.
    pub block: BlockRef,
}

/// Facts about one outpoint, as one node or a join of several sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UtxoRecord {
    /// The outpoint.
    pub outpoint: OutPoint,
    /// Value, in satoshis.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub value: Amount,
    /// Output script, in hex.
    pub script_pubkey: ScriptBuf,
    /// Height of the tip that the block facts are as of.
    pub tip_height: u32,
    /// Block that created it, if any yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<BlockRef>,
    /// Set if the creating transaction can be in no block any more: this one in a block spends an input of it, or of an
    /// ancestor. The output is no coin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicted: Option<ConfirmedSpend>,
    /// Set if the creating transaction is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_parent: Option<FinalityKind>,
    /// Its voting round. Only a release certificate raises it, and ends the lock of the round before.
    #[serde(default)]
    pub round: Round,
    /// Locked for a transaction in this round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
    /// Approvals known for that transaction: the quorum once there is a certificate.
    #[serde(default)]
    pub votes: u16,
    /// Spent by a final transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spend: Option<FinalSpend>,
    /// Spent in a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<ConfirmedSpend>,
}

/// The state of an outpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum UtxoState {
    /// Spendable: confirmed, or output of a final transaction.
    Unspent,
    /// A node has durably voted for a transaction that spends it.
    Locked {
        /// The transaction.
        txid: Txid,
        /// Unix time in milliseconds.
        locked_at: u64,
    },
    /// The transaction has its approval certificate; signatures are being collected.
    SpentPending {
        /// The transaction.
        txid: Txid,
        /// Approvals known.
        votes: u16,
    },
    /// The spending transaction is final.
    SpentFinalized {
        /// The transaction.
        txid: Txid,
        /// Which promise stands behind it.
        kind: FinalityKind,
    },
    /// It is no coin: a block contradicts the transaction that creates it.
    Conflicted {
        /// The transaction in the block, which spends an input of that transaction or of an ancestor.
        txid: Txid,
        /// Height of the block.
        height: u32,
        /// Its hash.
        block_hash: BlockHash,
    },
    /// The spending transaction is in a block.
    Confirmed {
        /// The transaction.
        txid: Txid,
        /// Height of the block.
        height: u32,
        /// Its hash.
        block_hash: BlockHash,
    },
}
tagged!("state": UtxoState);

impl UtxoRecord {
    /// The state that the facts amount to.
    pub fn state(&self) -> UtxoState {
        if let Some(ConfirmedSpend { txid, block }) = self.conflicted {
            return UtxoState::Conflicted { txid, height: block.height, block_hash: block.hash };
        }
        if let Some(ConfirmedSpend { txid, block }) = self.spent {
            return UtxoState::Confirmed { txid, height: block.height, block_hash: block.hash };
        }
        if let Some(FinalSpend { txid, kind }) = self.spend {
            return UtxoState::SpentFinalized { txid, kind };
        }
        match self.lock {
            Some(Lock { txid, .. }) if self.votes > 0 => UtxoState::SpentPending { txid, votes: self.votes },
            Some(Lock { txid, locked_at, .. }) => UtxoState::Locked { txid, locked_at },
            None => UtxoState::Unspent,
        }
    }

    /// Takes in what another record of the same outpoint knows; tells whether anything changed.
    pub fn join(&mut self, other: &Self) -> bool {
        let before = self.clone();
        if other.tip_height > self.tip_height {
            self.tip_height = other.tip_height;
            self.created = other.created;
            self.spent = other.spent;
            self.conflicted = other.conflicted;
        } else if other.tip_height == self.tip_height {
            self.created = self.created.or(other.created);
            self.spent = self.spent.or(other.spent);
            self.conflicted = earlier(self.conflicted, other.conflicted);
        }
        self.final_parent = self.final_parent.or(other.final_parent);
        self.spend = self.spend.or(other.spend);
        if other.round > self.round {
            (self.round, self.lock, self.votes) = (other.round, other.lock, other.votes);
        } else if other.round == self.round {
            match (self.lock, other.lock) {
                (Some(mine), Some(theirs)) if theirs.txid == mine.txid => {
                    self.votes = self.votes.max(other.votes);
                    self.lock = Some(Lock { locked_at: mine.locked_at.min(theirs.locked_at), ..mine });
                }
                // Nodes may have locked it for different transactions; any rule will do that all follow.
                (Some(mine), Some(theirs)) if theirs.txid < mine.txid => {
                    (self.lock, self.votes) = (Some(theirs), other.votes);
                }
                (None, Some(_)) => (self.lock, self.votes) = (other.lock, other.votes),
                (Some(_), _) | (None, None) => {}
            }
        }
        let tip = std::mem::replace(&mut self.tip_height, before.tip_height);
        let changed = *self != before;
        self.tip_height = tip;
        changed
    }
}

/// Of two conflicts that nodes tell of one coin at one tip, the same one whoever is asked first.
fn earlier(mine: Option<ConfirmedSpend>, theirs: Option<ConfirmedSpend>) -> Option<ConfirmedSpend> {
    match (mine, theirs) {
        (Some(mine), Some(theirs)) => Some(mine.min(theirs)),
        (one, other) => one.or(other),
    }
}

/// Why a node rejects a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RejectReason {
    /// An input is locked for another transaction.
    Conflict {
        /// The input.
        outpoint: OutPoint,
        /// The transaction that has it.
        txid: Txid,
    },
    /// An input is already spent by a final or confirmed transaction.
    Spent {
        /// The input.
        outpoint: OutPoint,
        /// The transaction that spent it.
        txid: Txid,
    },
    /// The node does not know an input. It may be late: retry.
    UnknownCoin {
        /// The input.
        outpoint: OutPoint,
    },
    /// An input is not confirmed deep enough, or an immature coinbase output. Retry later.
    Unconfirmed {
        /// The input.
        outpoint: OutPoint,
        /// Confirmations it has.
        confirmations: u32,
        /// Confirmations it needs.
        needed: u32,
    },
    /// Value or script of an input are not as the wallet says.
    WrongCoin {
        /// The input.
        outpoint: OutPoint,
    },
    /// An input's recovery path opens too soon (horizon rule). Move the coins to the account itself first.
    Horizon {
        /// The input.
        outpoint: OutPoint,
        /// Height at which its recovery path opens.
        opens_at: u32,
    },
    /// With its unconfirmed relatives it is more than a mempool keeps together. Retry after a block, or with a coin
    /// that is confirmed.
    UnconfirmedChain {
        /// Most transactions of a cluster.
        transactions: usize,
        /// Most virtual bytes of a cluster.
        vbytes: usize,
    },
    /// The deadline is not above the node's tip, or later than the inputs allow (rule V10). Propose the payment with
    /// one in between.
    Deadline {
        /// The proposal's, a block height.
        deadline: u32,
        /// Height of the node's tip.
        tip: u32,
        /// The latest that the inputs allow.
        latest: u32,
    },
    /// The fee is below the node's floor at present. Pay more, or try again when blocks have room.
    FeeTooLow {
        /// Fee rate, in satoshis per 1,000 weight units.
        rate: u64,
        /// The floor.
        floor: u64,
    },
    /// An input is being released, or its round is not known to the node. Retry.
    Round {
        /// The input.
        outpoint: OutPoint,
        /// The node's round.
        round: Round,
    },
    /// A lock time or relative lock time has not passed. Retry later.
    TimeLock,
    /// A script does not verify.
    Script {
        /// The input's index.
        index: usize,
    },
    /// The proposal is not valid in itself.
    Invalid {
        /// What is wrong.
        message: String,
    },
}
tagged!("reason": RejectReason);

impl RejectReason {
    /// Whether the same transaction may be approved later.
    pub fn retry(&self) -> bool {
        match self {
            Self::UnknownCoin { .. }
            | Self::Unconfirmed { .. }
            | Self::UnconfirmedChain { .. }
            | Self::Round { .. }
            | Self::TimeLock => true,
            Self::Conflict { .. }
            | Self::Spent { .. }
            | Self::WrongCoin { .. }
            | Self::Horizon { .. }
            | Self::Deadline { .. }
            | Self::FeeTooLow { .. }
            | Self::Script { .. }
            | Self::Invalid { .. } => false,
        }
    }
}

/// One node's reject, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeReject {
    /// The node.
    pub node: NodeId,
    /// Why.
    #[serde(flatten)]
    pub reason: RejectReason,
}

impl<'de> Deserialize<'de> for NodeReject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct By {
            node: NodeId,
        }
        tagged::both(deserializer).map(|(By { node }, reason)| Self { node, reason })
    }
}

/// Where a transaction stands (design, section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum TransactionStatus {
    /// Accepted by its coordinator.
    Pending,
    /// Votes are being collected.
    Voting {
        /// Approvals so far.
        votes: u16,
        /// Approvals needed.
        quorum: u16,
        /// Nodes asked.
        nodes: u16,
    },
    /// It has its approval certificate.
    Approved,
    /// Signature shares or commits are being collected.
    Signing {
        /// Attempt, from 1.
        attempt: u32,
    },
    /// It is final; the proof is complete.
    Signed {
        /// The proof.
        proof: Box<FinalityProof>,
    },
    /// Final, and handed to the Bitcoin network.
    Broadcasting {
        /// What the node's backend says against it, if it does not take it; it is tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
    },
    /// In a block, as the node sees it; a wallet computes this itself.
    Confirmed {
        /// The block.
        block: BlockRef,
    },
    /// A block contradicts it or an ancestor: it can be in no block any more, unless that block is undone. Ask for the
    /// proof with `ProofQuery`.
    Conflicted {
        /// What the block has.
        by: ConfirmedSpend,
    },
    /// So many nodes rejected it that no certificate is possible.
    Rejected {
        /// The rejects.
        rejects: Vec<NodeReject>,
        /// Whether the same transaction may pass later.
        retry: bool,
        /// Proof that its inputs are free again; empty if no node that answered had locked them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
    },
    /// It did not finish in time, or the chain refused it.
    Failed {
        /// What happened.
        message: String,
        /// Whether to submit it again.
        retry: bool,
        /// Proof that its inputs are free again; empty if they are not known to be.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
    },
    /// A proven cheat could not be worked around.
    AbortedByzantine {
        /// The nodes.
        culprits: Vec<NodeId>,
        /// What convicts them.
        evidence: Vec<Evidence>,
    },
}
tagged!("status": TransactionStatus);

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash as _;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = UtxoRecord> {
        let conflict = prop::option::of(0_u8..3);
        (
            0_u32..4,
            any::<bool>(),
            any::<bool>(),
            prop::option::of((0_u32..3, 0_u16..3)),
            any::<bool>(),
            conflict,
        )
            .prop_map(|(tip_height, created, spent, lock, spend, conflict)| {
                let txid = Txid::from_byte_array([1; 32]);
                // The block facts of one height are the same for everyone who sees that tip.
                let block = BlockRef { height: tip_height, hash: BlockHash::all_zeros() };
                UtxoRecord {
                    outpoint: OutPoint { txid, vout: 0 },
                    value: Amount::from_sat(1000),
                    script_pubkey: ScriptBuf::new(),
                    tip_height,
                    created: created.then_some(block),
                    conflicted: conflict
                        .map(|by| ConfirmedSpend { txid: Txid::from_byte_array([by; 32]), block }),
                    final_parent: None,
                    round: Round(lock.map_or(0, |(round, _)| round)),
                    lock: lock.map(|(round, _)| Lock { txid, round: Round(round), locked_at: 0 }),
                    votes: lock.map_or(0, |(_, votes)| votes),
                    spend: spend.then_some(FinalSpend { txid, kind: FinalityKind::Enforced }),
                    spent: spent.then_some(ConfirmedSpend { txid, block }),
                }
            })
    }

    proptest! {
        #[test]
        fn join_is_idempotent_and_order_does_not_matter(a in records(), b in records(), c in records()) {
            let join = |parts: &[&UtxoRecord]| {
                let mut result = parts[0].clone();
                for part in &parts[1..] {
                    result.join(part);
                }
                result
            };
            prop_assert_eq!(join(&[&a, &b, &c]), join(&[&c, &b, &a]));
            prop_assert_eq!(join(&[&a, &b, &c]), join(&[&b, &a, &c, &a, &b]));
        }
    }
}
