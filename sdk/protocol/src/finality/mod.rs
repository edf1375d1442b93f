//! Proof that a transaction is final, and its verification by wallet and payee (design, section 10).
//!
//! * **Enforced**: all inputs are coins of one joint account. q nodes approved a target of custody `joint`
//!   ([`crate::vote::VoteTarget`]), so f + 1 honest ones checked that the coins are the account's, that its wallet did
//!   not choose its half of the key against the federation's, and until which height no recovery path opens. The
//!   complete transaction is the rest of the proof: a key-path signature under `P_wallet + P_fed` cannot exist unless q
//!   nodes released shares, each after recording its commit durably (V4), so no conflicting transaction can ever be
//!   signed with the federation. **It is final without a confirmation only below its deadline** (V10,
//!   [`FinalityProof::holds_at`]): a transaction that its owner kept secret until a recovery path opened proves
//!   nothing.
//! * **Attested**: the coins are in the sole custody of their owner. q nodes signed that they committed to the
//!   transaction with this witness; miners are bound by nothing.

mod bytes;

pub use bytes::ProofBytesError;

use crate::{
    Epoch, Federation, Round,
    digest::verify,
    tagged::tagged,
    vote::{ApprovalCertificate, CertificateError, Custody, VoteTarget, spent_hash, verify_commits},
};
use bitcoin::{
    OutPoint, TapSighashType, Transaction, TxOut, Txid, XOnlyPublicKey,
    hashes::Hash as _,
    secp256k1::schnorr,
    sighash::{Prevouts, SighashCache},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which promise stands behind a final transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalityKind {
    /// No conflicting transaction can be signed.
    Enforced,
    /// q nodes promise not to finalise another; miners do not.
    Attested,
}

/// The evidence that a transaction is final. The party that relays it need not be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum FinalityProof {
    /// The finished transaction of a joint account.
    Enforced {
        /// Complete with witnesses, in hex.
        #[serde(with = "crate::consensus_hex")]
        transaction: Transaction,
        /// The spent outputs, in input order. The certificate is bound to them.
        spent: Vec<TxOut>,
        /// What q nodes approved. The paying account is not shown to a payee, who would learn all its addresses.
        certificate: Box<ApprovalCertificate>,
    },
    /// A signed transaction of sole custody with the commits of q nodes.
    Attested {
        /// Complete with witnesses, in hex.
        #[serde(with = "crate::consensus_hex")]
        transaction: Transaction,
        /// The rounds of its inputs, in input order.
        rounds: Vec<Round>,
        /// Commit signatures.
        commits: BTreeMap<crate::NodeId, schnorr::Signature>,
    },
}
tagged!("kind": FinalityProof);

impl FinalityProof {
    /// The epoch whose members' signatures it rests on.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Enforced { certificate, .. } => certificate.target.epoch().unwrap_or(Epoch::FIRST),
            Self::Attested { rounds, .. } => rounds.first().map_or(Epoch::FIRST, |round| round.epoch()),
        }
    }

    /// The final transaction.
    pub fn transaction(&self) -> &Transaction {
        match self {
            Self::Enforced { transaction, .. } | Self::Attested { transaction, .. } => transaction,
        }
    }

    /// Its id.
    pub fn txid(&self) -> Txid {
        self.transaction().compute_txid()
    }

    /// Which promise it claims to prove.
    pub fn kind(&self) -> FinalityKind {
        match self {
            Self::Enforced { .. } => FinalityKind::Enforced,
            Self::Attested { .. } => FinalityKind::Attested,
        }
    }

    /// Whose keys the inputs needed, as votes, certificates and commits name it.
    pub fn custody(&self) -> Custody {
        match self {
            Self::Enforced { certificate, .. } => certificate.target.custody(),
            Self::Attested { transaction, .. } => Custody::sole(transaction),
        }
    }

    /// Whether the transaction counts as final without a confirmation for who sees it for the first time at this tip
    /// (rule V10): below its deadline, and never if it only moves coins home. The tip has to be one's own and fresh.
    /// What is attested has no deadline.
    pub fn holds_at(&self, tip_height: u32) -> bool {
        self.custody().deadline().is_none_or(|deadline| tip_height < deadline)
    }

    /// Checks the proof, without its deadline: see [`FinalityProof::holds_at`].
    ///
    /// # Errors
    /// The proof does not hold; its sender is at fault, and the transaction must not be taken for final.
    pub fn verify(&self, federation: &Federation) -> Result<(), FinalityError> {
        match self {
            Self::Enforced { transaction, spent, certificate } => {
                check_target(&certificate.target, transaction, spent)?;
                certificate.verify(federation)?;
                verify_witnesses(transaction, spent)
            }
            Self::Attested { transaction, rounds, commits } => {
                if rounds.len() != transaction.input.len() {
                    return Err(FinalityError::Inputs);
                }
                let outpoints = transaction.input.iter().map(|input| input.previous_output);
                let rounds = outpoints.zip(rounds.iter().copied());
                let target = VoteTarget::new(transaction.compute_txid(), self.custody(), rounds);
                Ok(verify_commits(federation, &target, commits)?)
            }
        }
    }

    /// The outpoints it spends.
    pub fn outpoints(&self) -> impl Iterator<Item = OutPoint> + '_ {
        self.transaction().input.iter().map(|input| input.previous_output)
    }
}

/// Whether the certificate is about this transaction, these outputs, and a joint account.
fn check_target(
    target: &VoteTarget,
    transaction: &Transaction,
    spent: &[TxOut],
) -> Result<(), FinalityError> {
    let Custody::Joint { spent: approved, .. } = target.custody() else { return Err(FinalityError::Custody) };
    let inputs = target.inputs();
    let same = target.txid() == transaction.compute_txid()
        && !spent.is_empty()
        && spent.len() == transaction.input.len()
        && inputs.len() == transaction.input.len()
        && transaction.input.iter().all(|input| inputs.contains_key(&input.previous_output));
    if !same {
        return Err(FinalityError::Inputs);
    }
    if spent_hash(spent) == approved { Ok(()) } else { Err(FinalityError::Spent) }
}

/// Whether each witness is exactly one key-path signature of all inputs and outputs (BIP341, `SIGHASH_DEFAULT`).
fn verify_witnesses(transaction: &Transaction, spent: &[TxOut]) -> Result<(), FinalityError> {
    let mut cache = SighashCache::new(transaction);
    for (index, (input, output)) in transaction.input.iter().zip(spent).enumerate() {
        let wrong = FinalityError::Witness { index };
        let key = output.script_pubkey.is_p2tr().then(|| output.script_pubkey.as_bytes().get(2..)).flatten();
        let key = key.and_then(|key| XOnlyPublicKey::from_slice(key).ok()).ok_or(wrong.clone())?;
        let sighash = cache
            .taproot_key_spend_signature_hash(index, &Prevouts::All(spent), TapSighashType::Default)
            .map_err(|_| wrong.clone())?;
        let mut items = input.witness.iter();
        let signature = items.next().and_then(|item| schnorr::Signature::from_slice(item).ok());
        let valid = signature.is_some_and(|signature| verify(&key, sighash.to_byte_array(), &signature));
        if !valid || items.next().is_some() {
            return Err(wrong);
        }
    }
    Ok(())
}

/// Why a proof of finality does not hold. Its sender is at fault; do not hand over the goods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FinalityError {
    /// The evidence does not fit the transaction's inputs.
    #[error("the evidence does not fit the transaction's inputs")]
    Inputs,
    /// The certificate is for coins in sole custody.
    #[error("the certificate is not for coins of a joint account")]
    Custody,
    /// The spent outputs are not those that the nodes approved.
    #[error("the spent outputs are not those that the nodes approved")]
    Spent,
    /// The witness is not exactly one valid key-path signature.
    #[error("the witness of input {index} is not a valid key-path signature")]
    Witness {
        /// Which.
        index: usize,
    },
    /// Approvals or commits do not make a quorum.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, testing, vote::sign_commit};
    use bitcoin::{Amount, Witness};

    fn check(world: &testing::World, proof: &FinalityProof) -> Result<(), FinalityError> {
        proof.verify(&world.federation)
    }

    #[test]
    fn a_payment_of_a_joint_account_is_final_by_certificate_and_witness_and_by_nothing_less() {
        let world = testing::federation(4);
        let proof = world.final_payment();
        assert_eq!(check(&world, &proof), Ok(()));
        let spent = world.proposal().psbt.unsigned_tx.input[0].previous_output;
        assert_eq!(proof.outpoints().collect::<Vec<_>>(), [spent]);
        assert_eq!((proof.holds_at(testing::DEADLINE - 1), proof.holds_at(testing::DEADLINE)), (true, false));

        type Change = fn(&mut Transaction, &mut Vec<TxOut>, &mut ApprovalCertificate);
        let changed = |change: Change| {
            let FinalityProof::Enforced { mut transaction, mut spent, mut certificate } = proof.clone()
            else {
                panic!("enforced")
            };
            change(&mut transaction, &mut spent, &mut certificate);
            check(&world, &FinalityProof::Enforced { transaction, spent, certificate })
        };
        let (inputs, witness) = (Err(FinalityError::Inputs), Err(FinalityError::Witness { index: 0 }));
        assert_eq!(changed(|transaction, _, _| transaction.output[0].value -= Amount::from_sat(1)), inputs);
        assert_eq!(changed(|transaction, _, _| transaction.input[0].witness = Witness::new()), witness);
        assert_eq!(changed(|transaction, _, _| transaction.input[0].witness.push([0])), witness);
        let value = changed(|_, spent, _| spent[0].value += Amount::from_sat(1));
        assert_eq!(value, Err(FinalityError::Spent));
        assert_eq!(changed(|_, spent, _| spent.clear()), inputs);
        assert_eq!(changed(|_, spent, _| spent.push(spent[0].clone())), inputs);
        let nothing = changed(|transaction, spent, _| {
            transaction.input.clear();
            spent.clear();
        });
        assert_eq!(nothing, inputs);
        let few = changed(|_, _, certificate| certificate.approvals.retain(|node, _| node.0 < 3));
        assert!(matches!(few, Err(FinalityError::Certificate(_))), "{few:?}");
        let sole = changed(|transaction, _, certificate| {
            let (target, custody) = (&certificate.target, Custody::sole(transaction));
            certificate.target = VoteTarget::new(target.txid(), custody, target.inputs().clone());
        });
        assert_eq!(sole, Err(FinalityError::Custody));
        let later = changed(|_, spent, certificate| {
            let (target, custody) = (&certificate.target, Custody::joint(testing::DEADLINE + 1, &*spent));
            certificate.target = VoteTarget::new(target.txid(), custody, target.inputs().clone());
        });
        assert!(matches!(later, Err(FinalityError::Certificate(_))), "{later:?}");
    }

    /// The payer of an approved payment never has it signed, and shows it with a signature of a key of its own, for an
    /// output of its own in place of the coin.
    #[test]
    fn a_payer_cannot_sign_for_another_output_under_a_real_certificate() {
        let world = testing::federation(4);
        let FinalityProof::Enforced { mut transaction, mut spent, certificate } = world.final_payment()
        else {
            panic!("enforced")
        };
        let own = crate::digest::IdentityKey::from_bytes(&[0x66; 32]).expect("valid");
        spent[0].script_pubkey = bitcoin::ScriptBuf::new_p2tr_tweaked(
            bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(own.public()),
        );
        let sighash = SighashCache::new(&transaction)
            .taproot_key_spend_signature_hash(0, &Prevouts::All(&spent), TapSighashType::Default)
            .expect("one input");
        let signature = own.sign(sighash.to_byte_array());
        transaction.input[0].witness = Witness::from_slice(&[signature.as_ref()]);
        assert_eq!(verify_witnesses(&transaction, &spent), Ok(()), "the witness alone holds");
        let forged = FinalityProof::Enforced { transaction, spent, certificate };
        assert_eq!(check(&world, &forged), Err(FinalityError::Spent));
    }

    #[test]
    fn a_transaction_of_sole_custody_is_attested_by_a_quorum_with_its_witness_and_rounds() {
        let world = testing::federation(4);
        let mut transaction = world.proposal().psbt.unsigned_tx;
        transaction.input[0].witness.push([7]);
        let rounds = vec![Round(7)];
        let inputs = [(transaction.input[0].previous_output, rounds[0])];
        let target = VoteTarget::new(transaction.compute_txid(), Custody::sole(&transaction), inputs);
        let commits = (1..).map(NodeId).zip(&world.keys);
        let commits: BTreeMap<_, _> = commits
            .map(|(node, key)| (node, sign_commit(world.federation.context(), key, &target)))
            .take(3)
            .collect();
        let proof = |transaction: &Transaction, rounds: &[Round], commits: &BTreeMap<_, _>| {
            let (transaction, rounds, commits) = (transaction.clone(), rounds.to_vec(), commits.clone());
            let proof = FinalityProof::Attested { transaction, rounds, commits };
            assert!(proof.holds_at(u32::MAX), "no recovery path opens");
            check(&world, &proof)
        };
        assert_eq!(proof(&transaction, &rounds, &commits), Ok(()));
        assert_eq!(proof(&transaction, &[], &commits), Err(FinalityError::Inputs));
        let refused = |result| assert!(matches!(result, Err(FinalityError::Certificate(_))), "{result:?}");
        refused(proof(&transaction, &[Round(8)], &commits));
        let two = commits.clone().into_iter().take(2).collect();
        refused(proof(&transaction, &rounds, &two));
        let mut exchanged = transaction.clone();
        exchanged.input[0].witness.push([8]);
        assert_eq!(exchanged.compute_txid(), transaction.compute_txid());
        refused(proof(&exchanged, &rounds, &commits));
    }
}
