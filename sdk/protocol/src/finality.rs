//! Proof that a transaction is final, and its verification by wallet and payee (design, section 10).
//!
//! * **Enforced**: all inputs are coins of one joint account. The complete transaction is the proof: a key-path
//!   signature under `P_wallet + P_fed` cannot exist unless q nodes released shares, each after recording its commit
//!   durably (V4), so no conflicting transaction can ever be signed. The account certificate shows that the
//!   federation checked that the wallet did not choose its half against `P_fed`.
//! * **Attested**: the coins are in the sole custody of their owner. q nodes signed that they committed to the
//!   transaction; miners are bound by nothing.

use crate::{
    AccountId, Epoch, Federation, Round,
    account::{AccountCertificate, AccountError, Address, JointAccount, KeychainIndex},
    digest::verify,
    proposal::{ProposalError, SpendPlan},
    tagged::tagged,
    vote::{CertificateError, VoteTarget, verify_commits},
};
use bitcoin::{OutPoint, Transaction, TxOut, Txid, secp256k1::schnorr};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, btree_map::Entry};

/// Which promise stands behind a final transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalityKind {
    /// No conflicting transaction can be signed.
    Enforced,
    /// q nodes promise not to finalise another; miners do not.
    Attested,
}

/// A spent output of a joint account, as evidence names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentOutput {
    /// Value and script.
    pub output: TxOut,
    /// Where its key stands in the account.
    pub position: KeychainIndex,
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
        /// The spent outputs, in input order.
        spent: Vec<SpentOutput>,
        /// The paying account.
        account: Box<AccountCertificate>,
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

/// Accounts whose certificate has been verified before, so that it is verified once only.
pub type VerifiedAccounts = BTreeMap<AccountId, JointAccount>;

impl FinalityProof {
    /// The epoch whose members' signatures it rests on.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Enforced { account, .. } => account.epoch,
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

    /// Checks the proof. Accounts that verify are kept in `accounts`.
    ///
    /// # Errors
    /// The proof does not hold; its sender is at fault, and the transaction must not be taken for final.
    pub fn verify(
        &self,
        federation: &Federation,
        accounts: &mut VerifiedAccounts,
    ) -> Result<(), FinalityError> {
        match self {
            Self::Enforced { transaction, spent, account } => {
                let id = account.record.id(federation);
                let account = match accounts.entry(id) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(account.verify(federation)?),
                };
                verify_enforced(transaction, spent, account)
            }
            Self::Attested { transaction, rounds, commits } => {
                if rounds.len() != transaction.input.len() {
                    return Err(FinalityError::Inputs);
                }
                let outpoints = transaction.input.iter().map(|input| input.previous_output);
                let rounds = outpoints.zip(rounds.iter().copied());
                let target = VoteTarget::new(transaction.compute_txid(), rounds);
                Ok(verify_commits(federation, &target, commits)?)
            }
        }
    }

    /// The outpoints it spends.
    pub fn outpoints(&self) -> impl Iterator<Item = OutPoint> + '_ {
        self.transaction().input.iter().map(|input| input.previous_output)
    }
}

fn verify_enforced(
    transaction: &Transaction,
    spent: &[SpentOutput],
    account: &JointAccount,
) -> Result<(), FinalityError> {
    if spent.len() != transaction.input.len() || spent.is_empty() {
        return Err(FinalityError::Inputs);
    }
    let addresses = spent
        .iter()
        .enumerate()
        .map(|(index, spent)| {
            let address = account.address(spent.position).map_err(|_| FinalityError::Script { index })?;
            let same = address.script_pubkey == spent.output.script_pubkey;
            same.then_some(address).ok_or(FinalityError::Script { index })
        })
        .collect::<Result<Vec<Address>, FinalityError>>()?;
    let outputs: Vec<TxOut> = spent.iter().map(|spent| spent.output.clone()).collect();
    let plan = SpendPlan::new(transaction, account.id(), &addresses, &outputs)?;
    for (index, (input, plan)) in transaction.input.iter().zip(&plan.inputs).enumerate() {
        let mut items = input.witness.iter();
        let signature = items.next().and_then(|item| schnorr::Signature::from_slice(item).ok());
        let valid = signature.is_some_and(|signature| verify(&plan.output_key, plan.sighash, &signature));
        if !valid || items.next().is_some() {
            return Err(FinalityError::Witness { index });
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
    /// A spent output is not of the account.
    #[error("input {index} does not spend an address of the paying account")]
    Script {
        /// Which.
        index: usize,
    },
    /// The witness is not exactly one valid key-path signature.
    #[error("the witness of input {index} is not a valid key-path signature")]
    Witness {
        /// Which.
        index: usize,
    },
    /// The paying account is not certified.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The commits do not make a quorum.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The spend cannot be computed.
    #[error(transparent)]
    Spend(#[from] ProposalError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, testing, vote::sign_commit};
    use bitcoin::{Amount, Witness};

    fn check(world: &testing::World, proof: &FinalityProof) -> Result<(), FinalityError> {
        proof.verify(&world.federation, &mut VerifiedAccounts::new())
    }

    #[test]
    fn a_payment_of_a_joint_account_is_final_by_its_witness_and_by_nothing_less() {
        let world = testing::federation(4);
        let proof = world.final_payment();
        assert_eq!(check(&world, &proof), Ok(()));
        let spent = world.proposal().psbt.unsigned_tx.input[0].previous_output;
        assert_eq!(proof.outpoints().collect::<Vec<_>>(), [spent]);

        type Change = fn(&mut Transaction, &mut Vec<SpentOutput>, &mut AccountCertificate);
        let changed = |change: Change| {
            let FinalityProof::Enforced { mut transaction, mut spent, mut account } = proof.clone() else {
                panic!("enforced")
            };
            change(&mut transaction, &mut spent, &mut account);
            check(&world, &FinalityProof::Enforced { transaction, spent, account })
        };
        let witness = Err(FinalityError::Witness { index: 0 });
        assert_eq!(changed(|transaction, _, _| transaction.output[0].value -= Amount::from_sat(1)), witness);
        assert_eq!(changed(|transaction, _, _| transaction.input[0].witness = Witness::new()), witness);
        assert_eq!(changed(|transaction, _, _| transaction.input[0].witness.push([0])), witness);
        assert_eq!(changed(|_, spent, _| spent[0].output.value += Amount::from_sat(1)), witness);
        let script = Err(FinalityError::Script { index: 0 });
        assert_eq!(changed(|_, spent, _| spent[0].position.index = 1), script);
        assert_eq!(changed(|_, spent, _| spent.clear()), Err(FinalityError::Inputs));
        assert_eq!(changed(|_, spent, _| spent.push(spent[0].clone())), Err(FinalityError::Inputs));
        let nothing = changed(|transaction, spent, _| {
            transaction.input.clear();
            spent.clear();
        });
        assert_eq!(nothing, Err(FinalityError::Inputs));
        let uncertified = changed(|_, _, account| account.acceptances.retain(|node, _| node.0 < 3));
        assert!(matches!(uncertified, Err(FinalityError::Account(_))), "{uncertified:?}");
    }

    #[test]
    fn a_transaction_of_sole_custody_is_attested_by_a_quorum_in_its_rounds() {
        let world = testing::federation(4);
        let transaction = world.proposal().psbt.unsigned_tx;
        let rounds = vec![Round(7)];
        let target =
            VoteTarget::new(transaction.compute_txid(), [(transaction.input[0].previous_output, rounds[0])]);
        let commits = (1..).map(NodeId).zip(&world.keys);
        let commits: BTreeMap<_, _> = commits
            .map(|(node, key)| (node, sign_commit(world.federation.context(), key, &target)))
            .take(3)
            .collect();
        let proof = |rounds: Vec<Round>, commits: &BTreeMap<NodeId, schnorr::Signature>| {
            let (transaction, commits) = (transaction.clone(), commits.clone());
            check(&world, &FinalityProof::Attested { transaction, rounds, commits })
        };
        assert_eq!(proof(rounds.clone(), &commits), Ok(()));
        assert_eq!(proof(Vec::new(), &commits), Err(FinalityError::Inputs));
        assert!(matches!(proof(vec![Round(8)], &commits), Err(FinalityError::Certificate(_))));
        let two = commits.into_iter().take(2).collect();
        assert!(matches!(proof(rounds, &two), Err(FinalityError::Certificate(_))));
    }
}
