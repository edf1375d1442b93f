//! What votes, certificates, commits and promises are about.
//!
//! # Why a payee needs nothing but the certificate
//!
//! A payee sees neither the paying account nor the coins on the chain. What it has to know of them is in the target
//! that q nodes approved, so f + 1 honest ones checked it (rule V1): that the inputs are coins of one joint account
//! whose owner does not hold its key alone ([`Custody::Joint`]), which outputs they are ([`Custody::Joint::spent`]),
//! and how long no recovery path among them opens ([`Custody::Joint::deadline`], rule V10). The spent outputs have to
//! be in it: a signature is checked against the key of a spent output, and a payer that could name another output
//! would sign for it with a key of its own, under a certificate that is real (ADR 8).
//!
//! For coins in sole custody the target names the whole witness by the wtxid, so that nobody can exchange it.

use crate::{
    Epoch, Federation, Round, SpentHash, TargetHash,
    digest::{Context, Purpose, Writer},
    tagged::tagged,
};
use bitcoin::{OutPoint, Transaction, TxOut, Txid, Wtxid, hashes::Hash as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An input's outpoint and the round that it is voted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InputRound {
    /// The outpoint that is spent.
    pub outpoint: OutPoint,
    /// Its round.
    pub round: Round,
}

/// Deadline of a transaction that only moves coins home: it is not final before its block, and nothing that descends
/// from it is.
pub const NOT_BEFORE_ITS_BLOCK: u32 = 0;

/// Whose keys the inputs need, and what the nodes' word is bound to because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum Custody {
    /// Coins of one joint account: finality is enforced.
    Joint {
        /// Block height until which the transaction counts as final without a confirmation (rule V10);
        /// [`NOT_BEFORE_ITS_BLOCK`] for one that is final by its block alone.
        deadline: u32,
        /// Hash of the outputs that it spends.
        spent: SpentHash,
    },
    /// Coins in the sole custody of their owner: finality is attested.
    Sole {
        /// The transaction's witness id (BIP141), in display order.
        wtxid: Wtxid,
    },
}
tagged!("kind": Custody);

impl Custody {
    /// A payment from a joint account, by the outputs that it spends in input order.
    pub fn joint<'a>(deadline: u32, spent: impl IntoIterator<Item = &'a TxOut>) -> Self {
        Self::Joint { deadline, spent: spent_hash(spent) }
    }

    /// A signed transaction of coins in sole custody.
    pub fn sole(transaction: &Transaction) -> Self {
        Self::Sole { wtxid: transaction.compute_wtxid() }
    }

    /// Block height until which the transaction counts as final without a confirmation; `None` for sole custody, whose
    /// coins have no recovery path that opens.
    pub fn deadline(&self) -> Option<u32> {
        match self {
            Self::Joint { deadline, .. } => Some(*deadline),
            Self::Sole { .. } => None,
        }
    }

    /// Whether the deadline has passed at this tip. What only moves coins home never had one.
    pub fn is_over(&self, tip_height: u32) -> bool {
        self.deadline().is_some_and(|deadline| deadline != NOT_BEFORE_ITS_BLOCK && tip_height >= deadline)
    }
}

/// Hash of the outputs that a transaction spends: `tagged_hash("quorate/spent/1", for each input, value(u64) ||
/// script length(u32) || script)`, integers big-endian.
///
/// ```
/// use quorate::vote::spent_hash;
/// # fn example(psbt: &bitcoin::Psbt) {
/// let spent: Vec<_> = psbt.inputs.iter().filter_map(|input| input.witness_utxo.as_ref()).collect();
/// println!("spends {}", spent_hash(spent));
/// # }
/// ```
pub fn spent_hash<'a>(spent: impl IntoIterator<Item = &'a TxOut>) -> SpentHash {
    let hashed = spent.into_iter().fold(Writer::new(Purpose::Spent), |writer, output| {
        writer.u64(output.value.to_sat()).bytes(output.script_pubkey.as_bytes())
    });
    SpentHash(hashed.finish())
}

/// What a vote or commit is about: a transaction, whose keys it needs, and the rounds of its inputs, sorted by
/// outpoint.
///
/// Its hash is `tagged_hash("quorate/target/1", custody(1) || txid(32) || wtxid or spent_hash(32) || deadline(u32) ||
/// for each input, txid(32) || vout(u32) || round(u32))`, integers big-endian, ids in internal byte order, custody 1
/// for a joint account and 0, with deadline 0, for sole custody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "TargetParts", into = "TargetParts")]
pub struct VoteTarget {
    txid: Txid,
    custody: Custody,
    inputs: BTreeMap<OutPoint, Round>,
}

#[derive(Serialize, Deserialize)]
struct TargetParts {
    txid: Txid,
    custody: Custody,
    inputs: Vec<InputRound>,
}

impl From<TargetParts> for VoteTarget {
    fn from(parts: TargetParts) -> Self {
        let inputs = parts.inputs.into_iter().map(|input| (input.outpoint, input.round));
        Self::new(parts.txid, parts.custody, inputs)
    }
}

impl From<VoteTarget> for TargetParts {
    fn from(target: VoteTarget) -> Self {
        let inputs = target.inputs.into_iter().map(|(outpoint, round)| InputRound { outpoint, round });
        Self { txid: target.txid, custody: target.custody, inputs: inputs.collect() }
    }
}

impl VoteTarget {
    /// A transaction with the round of each input; order does not matter.
    pub fn new(txid: Txid, custody: Custody, inputs: impl IntoIterator<Item = (OutPoint, Round)>) -> Self {
        Self { txid, custody, inputs: inputs.into_iter().collect() }
    }

    /// The transaction.
    pub fn txid(&self) -> Txid {
        self.txid
    }

    /// Whose keys its inputs need.
    pub fn custody(&self) -> Custody {
        self.custody
    }

    /// Rounds by input.
    pub fn inputs(&self) -> &BTreeMap<OutPoint, Round> {
        &self.inputs
    }

    /// The epoch that all rounds are of; `None` if there is no input or they differ, in which case nobody votes.
    pub fn epoch(&self) -> Option<Epoch> {
        let mut epochs = self.inputs.values().map(|round| round.epoch());
        let first = epochs.next()?;
        epochs.all(|other| other == first).then_some(first)
    }

    /// The hash of all of it: what nodes sign.
    pub fn hash(&self) -> TargetHash {
        let writer = Writer::new(Purpose::Target);
        let writer = match &self.custody {
            Custody::Joint { deadline, spent } => {
                writer.u8(1).fixed(self.txid.as_ref()).fixed(&spent.0).u32(*deadline)
            }
            Custody::Sole { wtxid } => {
                writer.u8(0).fixed(self.txid.as_ref()).fixed(wtxid.as_byte_array()).u32(0)
            }
        };
        let inputs = self.inputs.iter().fold(writer, |writer, (outpoint, round)| {
            writer.fixed(outpoint.txid.as_ref()).u32(outpoint.vout).u32(round.0)
        });
        TargetHash(inputs.finish())
    }

    /// The epoch of the rounds, and the digest for a purpose in it.
    pub(super) fn digest_in(&self, purpose: Purpose, federation: &Federation) -> Option<(Epoch, Writer)> {
        let epoch = self.epoch()?;
        Some((epoch, self.digest(purpose, &federation.context_of(epoch))))
    }

    pub(super) fn digest(&self, purpose: Purpose, context: &Context) -> Writer {
        Writer::signed(purpose, context).fixed(&self.hash().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Amount;

    fn output(value: u64) -> TxOut {
        TxOut { value: Amount::from_sat(value), script_pubkey: bitcoin::ScriptBuf::from_bytes(vec![0x51]) }
    }

    fn target(custody: Custody, vout: u32, round: u32) -> VoteTarget {
        let txid = Txid::all_zeros();
        VoteTarget::new(txid, custody, [(OutPoint { txid, vout }, Round(round))])
    }

    #[test]
    fn every_part_of_a_target_is_in_its_hash_and_in_its_json() {
        let sole = |byte| Custody::Sole { wtxid: Wtxid::from_byte_array([byte; 32]) };
        let all = [
            target(Custody::joint(7, [&output(5)]), 0, 0),
            target(Custody::joint(8, [&output(5)]), 0, 0),
            target(Custody::joint(7, [&output(6)]), 0, 0),
            target(Custody::joint(7, [&output(5), &output(5)]), 0, 0),
            target(Custody::joint(7, [&output(5)]), 1, 0),
            target(Custody::joint(7, [&output(5)]), 0, 1),
            target(sole(0), 0, 0),
            target(sole(1), 0, 0),
        ];
        let hashes: std::collections::BTreeSet<_> = all.iter().map(VoteTarget::hash).collect();
        assert_eq!(hashes.len(), all.len());
        for target in all {
            let json = serde_json::to_string(&target).expect("serialises");
            assert_eq!(serde_json::from_str::<VoteTarget>(&json).expect("parses"), target, "{json}");
        }
    }

    #[test]
    fn a_deadline_is_over_at_its_height_and_what_moves_home_has_none() {
        let joint = |deadline| Custody::joint(deadline, []);
        assert!(!joint(10).is_over(9) && joint(10).is_over(10));
        assert!(!joint(NOT_BEFORE_ITS_BLOCK).is_over(u32::MAX));
        assert!(!Custody::Sole { wtxid: Wtxid::all_zeros() }.is_over(u32::MAX));
    }
}
