//! A proof in bytes: a third of its JSON. For storage, files and queues; on the wire proofs are JSON.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | format, 1 |
//! | 1 | 0: enforced, 1: attested |
//! | | the transaction with its witnesses, as the Bitcoin network has it (BIP144) |
//! | | enforced only: the spent outputs, as many as inputs, and the deadline (4, little-endian) |
//! | 4 each | the inputs' rounds, little-endian |
//! | varint | how many nodes signed |
//! | 66 each | a node's number (2, little-endian) and its signature (BIP340); numbers ascend |
//!
//! What follows from the transaction is left out, so that it cannot contradict it.

use super::FinalityProof;
use crate::{
    NodeId, Round,
    vote::{ApprovalCertificate, Custody, VoteTarget},
};
use bitcoin::{
    Transaction, TxOut, VarInt,
    consensus::{Decodable, Encodable},
    secp256k1::schnorr,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

const FORMAT: u8 = 1;
const ENFORCED: u8 = 0;
const ATTESTED: u8 = 1;
const SIGNATURE_BYTES: usize = 64;

/// The bytes are no proof. Who made them is at fault; nothing is to be gained by trying again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no proof of finality in bytes: {what}")]
pub struct ProofBytesError {
    what: String,
}

impl ProofBytesError {
    fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string() }
    }
}

type Signatures = BTreeMap<NodeId, schnorr::Signature>;

impl FinalityProof {
    /// The proof in bytes; see [`FinalityProof::from_bytes`] for the way back. Only a proof that
    /// [`FinalityProof::verify`] accepts is sure to come back: of one that contradicts its own transaction the
    /// contradiction is lost, or the bytes cannot be read.
    ///
    /// ```
    /// # use quorate_protocol::{finality::FinalityProof, testing};
    /// let proof = testing::federation(4).final_payment();
    /// let bytes = proof.to_bytes();
    /// assert_eq!(FinalityProof::from_bytes(&bytes)?, proof);
    /// # Ok::<_, quorate_protocol::finality::ProofBytesError>(())
    /// ```
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        let (rounds, signatures): (Vec<Round>, &Signatures) = match self {
            Self::Enforced { transaction, spent, certificate } => {
                bytes.push(ENFORCED);
                put(&mut bytes, transaction);
                for output in spent {
                    put(&mut bytes, output);
                }
                let target = &certificate.target;
                put(&mut bytes, &target.custody().deadline().unwrap_or(u32::MAX));
                let round = |input: &bitcoin::TxIn| target.inputs().get(&input.previous_output).copied();
                let rounds = transaction.input.iter().map(|input| round(input).unwrap_or_default());
                (rounds.collect(), &certificate.approvals)
            }
            Self::Attested { transaction, rounds, commits } => {
                bytes.push(ATTESTED);
                put(&mut bytes, transaction);
                (rounds.clone(), commits)
            }
        };
        for round in rounds {
            put(&mut bytes, &round.0);
        }
        put(&mut bytes, &VarInt::from(signatures.len()));
        for (node, signature) in signatures {
            put(&mut bytes, &node.0);
            bytes.extend_from_slice(signature.as_ref());
        }
        bytes
    }

    /// Reads what [`FinalityProof::to_bytes`] has written, to the last byte. That it can be read proves nothing: see
    /// [`FinalityProof::verify`].
    ///
    /// # Errors
    /// It is of another format, incomplete, or more than a proof.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofBytesError> {
        let mut rest = bytes;
        let rest = &mut rest;
        let format: u8 = take(rest)?;
        if format != FORMAT {
            return Err(ProofBytesError::new(format_args!("format {format} is not known here")));
        }
        let kind: u8 = take(rest)?;
        let transaction: Transaction = take(rest)?;
        let proof = match kind {
            ENFORCED => {
                let inputs = transaction.input.len();
                let spent = (0..inputs).map(|_| take(rest)).collect::<Result<Vec<TxOut>, _>>()?;
                let deadline = take(rest)?;
                let rounds = take_rounds(rest, inputs)?;
                let approvals = take_signatures(rest)?;
                let outpoints = transaction.input.iter().map(|input| input.previous_output);
                if outpoints.clone().collect::<BTreeSet<_>>().len() < inputs {
                    return Err(ProofBytesError::new("an input is there twice"));
                }
                let custody = Custody::joint(deadline, &spent);
                let target = VoteTarget::new(transaction.compute_txid(), custody, outpoints.zip(rounds));
                let certificate = Box::new(ApprovalCertificate { target, approvals });
                Self::Enforced { transaction, spent, certificate }
            }
            ATTESTED => {
                let rounds = take_rounds(rest, transaction.input.len())?;
                Self::Attested { transaction, rounds, commits: take_signatures(rest)? }
            }
            other => return Err(ProofBytesError::new(format_args!("kind {other} is not known here"))),
        };
        if rest.is_empty() { Ok(proof) } else { Err(ProofBytesError::new("there is more behind it")) }
    }
}

fn put(bytes: &mut Vec<u8>, what: &impl Encodable) {
    what.consensus_encode(bytes).expect("memory takes everything");
}

fn take<T: Decodable>(rest: &mut &[u8]) -> Result<T, ProofBytesError> {
    T::consensus_decode(rest).map_err(ProofBytesError::new)
}

fn take_rounds(rest: &mut &[u8], inputs: usize) -> Result<Vec<Round>, ProofBytesError> {
    (0..inputs).map(|_| take(rest).map(Round)).collect()
}

fn take_signatures(rest: &mut &[u8]) -> Result<Signatures, ProofBytesError> {
    let VarInt(count) = take(rest)?;
    let mut signatures = Signatures::new();
    // Ends with the bytes, whatever the count says.
    for _ in 0..count {
        let node = NodeId(take(rest)?);
        let (signature, left) = rest
            .split_first_chunk::<SIGNATURE_BYTES>()
            .ok_or_else(|| ProofBytesError::new("a signature is incomplete"))?;
        *rest = left;
        if signatures.last_key_value().is_some_and(|(last, _)| *last >= node) {
            return Err(ProofBytesError::new("the nodes are not in order"));
        }
        let signature = schnorr::Signature::from_slice(signature).map_err(ProofBytesError::new)?;
        signatures.insert(node, signature);
    }
    Ok(signatures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static PROOF: LazyLock<FinalityProof> = LazyLock::new(|| testing::federation(4).final_payment());

    #[test]
    fn a_proof_comes_back_whole_and_is_a_third_of_its_json() {
        let proof = PROOF.clone();
        let bytes = proof.to_bytes();
        assert_eq!(FinalityProof::from_bytes(&bytes), Ok(proof.clone()));
        let json = serde_json::to_vec(&proof).expect("written");
        assert!(bytes.len() * 5 < json.len() * 2, "{} of {}", bytes.len(), json.len());
        let FinalityProof::Enforced { transaction, certificate, .. } = proof else { panic!("enforced") };
        let rounds = vec![Round(7); transaction.input.len()];
        let attested = FinalityProof::Attested { transaction, rounds, commits: certificate.approvals };
        assert_eq!(FinalityProof::from_bytes(&attested.to_bytes()), Ok(attested));
    }

    #[test]
    fn nothing_is_missing_and_nothing_is_left_over() {
        let mut bytes = PROOF.to_bytes();
        for length in 0..bytes.len() {
            FinalityProof::from_bytes(&bytes[..length]).expect_err("a part");
        }
        bytes.push(0);
        FinalityProof::from_bytes(&bytes).expect_err("more");
        bytes.pop();
        for (place, wrong) in [(0, 2), (0, b'{'), (1, 2)] {
            let mut other = bytes.clone();
            other[place] = wrong;
            FinalityProof::from_bytes(&other).expect_err("another format or kind");
        }
        // Two nodes in the wrong order, and one twice.
        let (first, second) = (bytes.len() - 3 * 66, bytes.len() - 2 * 66);
        for number in [9, 1] {
            let mut other = bytes.clone();
            other[if number == 9 { first } else { second }] = number;
            FinalityProof::from_bytes(&other).expect_err("not in order");
        }
    }

    proptest! {
        /// There is one way to write a proof down.
        #[test]
        fn what_can_be_read_is_written_the_same_way(place in 0_usize..700, byte: u8) {
            let mut bytes = PROOF.to_bytes();
            let place = place % bytes.len();
            bytes[place] = byte;
            if let Ok(proof) = FinalityProof::from_bytes(&bytes) {
                prop_assert_eq!(proof.to_bytes(), bytes);
            }
        }
    }
}
