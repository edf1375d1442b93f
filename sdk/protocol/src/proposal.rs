//! Proposals: what a wallet asks the federation to finalise, and every check that needs no chain.
//!
//! A payment from a joint account is an unsigned PSBT (BIP174, BIP371) with the account's id and an authorisation
//! signature; one from coins of sole custody is the signed transaction itself. [`JointProposal::check`] rebuilds
//! keys, scripts and sighashes from the account, so a node signs only digests that it computed itself. What remains
//! for the node (rule V1) is whether the coins exist, have these values and scripts, and are spendable.

use crate::{
    AccountId, Federation,
    account::{Address, JointAccount, KeychainIndex},
    digest::{IdentityKey, Purpose, Writer, verify},
    relay_policy::{self, RelayError},
    tagged::tagged,
    vote::Custody,
};
use bitcoin::{
    Amount, OutPoint, Psbt, TapSighashType, Transaction, TxOut, Txid, Weight, XOnlyPublicKey,
    bip32::{DerivationPath, Fingerprint},
    hashes::Hash as _,
    secp256k1::{PublicKey, schnorr},
    sighash::{Prevouts, SighashCache},
    taproot::LeafVersion,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Witness weight of one Taproot key-path input: item count, length, 64-byte signature.
const KEY_SPEND_WITNESS_WEIGHT: u64 = 66;
/// Weight of the segwit marker and flag.
const SEGWIT_MARKER_WEIGHT: u64 = 2;

/// What a wallet asks the federation to finalise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum Proposal {
    /// A payment from a joint account; finality will be enforced.
    Joint(Box<JointProposal>),
    /// A signed transaction of coins in sole custody; finality will be attested only.
    Sole {
        /// The complete transaction, in hex.
        #[serde(with = "crate::consensus_hex")]
        transaction: Transaction,
    },
}
tagged!("custody": Proposal);

impl Proposal {
    /// The transaction's id, which signatures do not change.
    pub fn txid(&self) -> Txid {
        self.transaction().compute_txid()
    }

    /// The outpoints that it spends, in input order.
    pub fn outpoints(&self) -> Vec<OutPoint> {
        self.transaction().input.iter().map(|input| input.previous_output).collect()
    }

    /// Whose keys its inputs need. What a PSBT does not say of a spent output counts as nothing; it fails its check.
    pub fn custody(&self) -> Custody {
        match self {
            Self::Joint(joint) => {
                let spent = joint.psbt.inputs.iter().filter_map(|input| input.witness_utxo.as_ref());
                Custody::joint(joint.deadline, spent)
            }
            Self::Sole { transaction } => Custody::sole(transaction),
        }
    }

    /// The transaction; without witnesses if it is of a joint account.
    pub fn transaction(&self) -> &Transaction {
        match self {
            Self::Joint(joint) => &joint.psbt.unsigned_tx,
            Self::Sole { transaction } => transaction,
        }
    }
}

/// A payment from a joint account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JointProposal {
    /// The unsigned transaction with, per input, the spent output and the BIP371 origin of its internal key; base64.
    /// Nodes refuse what has more than that and the recovery leaf: see [`JointProposal::check_lean`].
    #[serde(with = "psbt_base64")]
    pub psbt: Psbt,
    /// The paying account.
    pub account: AccountId,
    /// Block height until which the payment counts as final without a confirmation (rule V10);
    /// [`crate::vote::NOT_BEFORE_ITS_BLOCK`] for one that only moves old coins home.
    pub deadline: u32,
    /// Signature of the account's authorisation key over account, txid and deadline.
    pub authorisation: schnorr::Signature,
}

mod psbt_base64 {
    use bitcoin::Psbt;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(psbt: &Psbt, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(psbt)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Psbt, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        crate::psbt::parse(&text).map_err(D::Error::custom)
    }
}

impl JointProposal {
    /// Authorises the transaction of `psbt` for the account, until a block height. What nodes do not need of the PSBT
    /// is left out: they refuse it.
    pub fn authorise(
        federation: &Federation,
        account: AccountId,
        key: &IdentityKey,
        psbt: Psbt,
        deadline: u32,
    ) -> Self {
        let psbt = crate::psbt::without_unneeded(psbt);
        let txid = psbt.unsigned_tx.compute_txid();
        let authorisation = key.sign(authorisation_digest(federation, account, txid, deadline));
        Self { psbt, account, deadline, authorisation }
    }

    /// The same without what nodes do not need of the PSBT, and refuse in a proposal that is new to them: the
    /// authorisation is of the transaction and the deadline.
    ///
    /// ```
    /// use quorate::proposal::JointProposal;
    /// fn as_nodes_take_it(saved: JointProposal) -> JointProposal {
    ///     let lean = saved.without_unneeded();
    ///     assert!(lean.check_lean().is_ok());
    ///     lean
    /// }
    /// ```
    pub fn without_unneeded(self) -> Self {
        Self { psbt: crate::psbt::without_unneeded(self.psbt), ..self }
    }

    /// Whether the PSBT has nothing that nodes do not need. A proposal that is new to a node has to be so; one that
    /// was taken in before this was a rule stays good.
    ///
    /// # Errors
    /// It has; [`JointProposal::without_unneeded`] leaves it out.
    pub fn check_lean(&self) -> Result<(), ProposalError> {
        crate::psbt::unneeded(&self.psbt).map_or(Ok(()), |what| Err(ProposalError::Unneeded { what }))
    }

    /// Whether the account's owner signed for this transaction and deadline: the cheapest of all checks.
    ///
    /// ```
    /// use quorate::{Federation, account::JointAccount, proposal::JointProposal};
    /// fn is_worth_more(proposal: &JointProposal, federation: &Federation, account: &JointAccount) -> bool {
    ///     proposal.account == account.id() && proposal.is_authorised(federation, account)
    /// }
    /// ```
    pub fn is_authorised(&self, federation: &Federation, account: &JointAccount) -> bool {
        let txid = self.psbt.unsigned_tx.compute_txid();
        let digest = authorisation_digest(federation, self.account, txid, self.deadline);
        verify(&account.record().authorisation_key, digest, &self.authorisation)
    }

    /// Checks the proposal against its account, without the chain.
    ///
    /// # Errors
    /// The wallet is at fault; the same proposal never passes.
    pub fn check(
        &self,
        federation: &Federation,
        account: &JointAccount,
    ) -> Result<CheckedProposal, ProposalError> {
        let transaction = &self.psbt.unsigned_tx;
        if self.account != account.id() {
            return Err(ProposalError::Account { expected: account.id(), found: self.account });
        }
        if !self.is_authorised(federation, account) {
            return Err(ProposalError::Authorisation);
        }
        relay_policy::check_shape(transaction)?;
        relay_policy::check_size(self.psbt.serialize().len())?;
        let (addresses, spent) = self.inputs(account)?;
        let own_outputs = self.own_outputs(account)?;
        let weight = transaction.weight().to_wu()
            + SEGWIT_MARKER_WEIGHT
            + KEY_SPEND_WITNESS_WEIGHT * u64::try_from(spent.len()).unwrap_or(u64::MAX);
        let fee = relay_policy::check_fee(transaction, &spent, Weight::from_wu(weight))?;
        check_policy(transaction, account, &own_outputs)?;
        let plan = SpendPlan::new(transaction, self.account, &addresses, &spent)?;
        let returns_home = own_outputs.len() == transaction.output.len();
        let custody = Custody::joint(self.deadline, &spent);
        let transaction = transaction.clone();
        let weight = Weight::from_wu(weight);
        Ok(CheckedProposal { transaction, custody, plan, addresses, spent, fee, weight, returns_home })
    }

    fn inputs(&self, account: &JointAccount) -> Result<(Vec<Address>, Vec<TxOut>), ProposalError> {
        let mut addresses = Vec::new();
        let mut spent = Vec::new();
        for (index, input) in self.psbt.inputs.iter().enumerate() {
            let output = input.witness_utxo.as_ref().ok_or(ProposalError::InputData { index })?;
            let position = origin(account, input.tap_internal_key, &input.tap_key_origins)
                .ok_or(ProposalError::InputData { index })?;
            let address = account.address(position).map_err(|_| ProposalError::InputData { index })?;
            let sighash_ok = input.sighash_type.is_none_or(|kind| kind == TapSighashType::Default.into());
            if address.script_pubkey != output.script_pubkey || !sighash_ok {
                return Err(ProposalError::InputScript { index });
            }
            addresses.push(address);
            spent.push(output.clone());
        }
        Ok((addresses, spent))
    }

    /// Indices of outputs that verifiably belong to the account: their script is rebuilt from the path that the PSBT
    /// names.
    fn own_outputs(&self, account: &JointAccount) -> Result<BTreeSet<usize>, ProposalError> {
        let mut own = BTreeSet::new();
        for (index, (output, data)) in self.psbt.unsigned_tx.output.iter().zip(&self.psbt.outputs).enumerate()
        {
            let Some(position) = origin(account, data.tap_internal_key, &data.tap_key_origins) else {
                continue;
            };
            let address = account.address(position).map_err(|_| ProposalError::OutputData { index })?;
            if address.script_pubkey != output.script_pubkey {
                return Err(ProposalError::OutputData { index });
            }
            own.insert(index);
        }
        Ok(own)
    }
}

type Origins =
    std::collections::BTreeMap<XOnlyPublicKey, (Vec<bitcoin::TapLeafHash>, (Fingerprint, DerivationPath))>;

fn origin(
    account: &JointAccount,
    internal: Option<XOnlyPublicKey>,
    origins: &Origins,
) -> Option<KeychainIndex> {
    let (_, (fingerprint, path)) = origins.get(&internal?)?;
    (*fingerprint == account.xpub().fingerprint()).then(|| KeychainIndex::from_path(path)).flatten()
}

/// Fills in what BIP371 wants of an input or output of the account: internal key, its origin, and for inputs the
/// recovery leaf.
pub fn describe_input(account: &JointAccount, address: &Address, input: &mut bitcoin::psbt::Input) {
    let internal = address.key.x_only_public_key().0;
    let origin = (account.xpub().fingerprint(), address.position.path());
    input.tap_internal_key = Some(internal);
    input.tap_key_origins.insert(internal, (Vec::new(), origin));
    input.tap_merkle_root = Some(address.merkle_root);
    input.tap_scripts.insert(address.control_block(), (address.leaf.clone(), LeafVersion::TapScript));
}

/// Fills in what BIP371 wants of an output of the account: internal key and its origin.
pub fn describe_output(account: &JointAccount, address: &Address, output: &mut bitcoin::psbt::Output) {
    let internal = address.key.x_only_public_key().0;
    output.tap_internal_key = Some(internal);
    output
        .tap_key_origins
        .insert(internal, (Vec::new(), (account.xpub().fingerprint(), address.position.path())));
}

fn authorisation_digest(federation: &Federation, account: AccountId, txid: Txid, deadline: u32) -> [u8; 32] {
    Writer::signed(Purpose::Authorisation, &federation.key_context())
        .fixed(&account.0)
        .fixed(txid.as_ref())
        .u32(deadline)
        .finish()
}

fn check_policy(
    transaction: &Transaction,
    account: &JointAccount,
    own: &BTreeSet<usize>,
) -> Result<(), ProposalError> {
    let outputs = transaction.output.iter().enumerate();
    let paid: Amount =
        outputs.filter(|(index, _)| !own.contains(index)).map(|(_, output)| output.value).sum();
    match account.record().policy.payment_max {
        Some(limit) if paid > limit => Err(ProposalError::Policy { limit, paid }),
        Some(_) | None => Ok(()),
    }
}

/// A joint proposal after every check that needs no chain.
#[derive(Clone, Debug)]
pub struct CheckedProposal {
    /// The unsigned transaction.
    pub transaction: Transaction,
    /// What votes on it say of its keys: deadline and spent outputs.
    pub custody: Custody,
    /// What the parties sign.
    pub plan: SpendPlan,
    /// The account's address of each input.
    pub addresses: Vec<Address>,
    /// The outputs that the wallet says it spends; a node compares them with its own view.
    pub spent: Vec<TxOut>,
    /// Fee, in satoshis.
    pub fee: Amount,
    /// What it will weigh when it is signed.
    pub weight: Weight,
    /// Whether every output goes back to the account, which the horizon rule always allows.
    pub returns_home: bool,
}

impl CheckedProposal {
    /// The transaction with one key-path signature per input.
    ///
    /// # Errors
    /// A signature is missing or does not verify under its output key.
    pub fn complete(&self, signatures: &[schnorr::Signature]) -> Result<Transaction, ProposalError> {
        let mut transaction = self.transaction.clone();
        if signatures.len() != self.plan.inputs.len() {
            return Err(ProposalError::Signature { index: signatures.len() });
        }
        let inputs = transaction.input.iter_mut().zip(&self.plan.inputs).zip(signatures).enumerate();
        for (index, ((input, plan), signature)) in inputs {
            if !verify(&plan.output_key, plan.sighash, signature) {
                return Err(ProposalError::Signature { index });
            }
            input.witness = bitcoin::Witness::from_slice(&[signature.as_ref()]);
        }
        Ok(transaction)
    }
}

/// What the parties of one payment sign: computed by each of them from the proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpendPlan {
    /// The transaction.
    pub txid: Txid,
    /// The paying account.
    pub account: AccountId,
    /// One entry per input, in order.
    pub inputs: Vec<SpendInput>,
}

/// What is signed for one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpendInput {
    /// The joint child key.
    pub key: PublicKey,
    /// BIP32 tweak from the account key to it.
    pub tweak: [u8; 32],
    /// Merkle root of the Taproot tweak.
    pub merkle_root: [u8; 32],
    /// BIP341 signature hash, `SIGHASH_DEFAULT`.
    pub sighash: [u8; 32],
    /// The key under which the final signature verifies.
    pub output_key: XOnlyPublicKey,
}

impl SpendPlan {
    pub(crate) fn new(
        transaction: &Transaction,
        account: AccountId,
        addresses: &[Address],
        spent: &[TxOut],
    ) -> Result<Self, ProposalError> {
        let mut cache = SighashCache::new(transaction);
        let inputs = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| {
                let sighash = cache
                    .taproot_key_spend_signature_hash(index, &Prevouts::All(spent), TapSighashType::Default)
                    .map_err(|_| ProposalError::InputData { index })?;
                Ok(SpendInput {
                    key: address.key,
                    tweak: address.tweak,
                    merkle_root: address.merkle_root.to_byte_array(),
                    sighash: sighash.to_byte_array(),
                    output_key: address.output_key,
                })
            })
            .collect::<Result<_, ProposalError>>()?;
        Ok(Self { txid: transaction.compute_txid(), account, inputs })
    }
}

/// Why a proposal is refused. The wallet that made it is at fault; retrying the same one does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposalError {
    /// It names another account than the one it came with.
    #[error("the proposal is of account {found}, not {expected}")]
    Account {
        /// The account at hand.
        expected: AccountId,
        /// The account named.
        found: AccountId,
    },
    /// The account's owner did not sign it.
    #[error("the account's authorisation signature is not valid for this transaction")]
    Authorisation,
    /// It has something that no rule reads, and that every node would have to keep.
    #[error("{what}, which nodes do not need: leave it out")]
    Unneeded {
        /// What.
        what: String,
    },
    /// An input lacks its spent output or the origin of its key.
    #[error("input {index} lacks its witness UTXO or the BIP371 origin of its internal key")]
    InputData {
        /// Which input.
        index: usize,
    },
    /// An input's script is not the account's, or it asks for another sighash type.
    #[error("input {index} does not spend an address of the account with SIGHASH_DEFAULT")]
    InputScript {
        /// Which input.
        index: usize,
    },
    /// An output claims to be the account's and is not.
    #[error("output {index} names a key of the account that does not give its script")]
    OutputData {
        /// Which output.
        index: usize,
    },
    /// Over the account's own limit.
    #[error("the account's policy allows payments up to {limit}, this one is {paid}")]
    Policy {
        /// Limit of the record.
        limit: Amount,
        /// Sum of outputs to others.
        paid: Amount,
    },
    /// A final signature does not verify.
    #[error("the signature of input {index} is missing or not valid")]
    Signature {
        /// Which input.
        index: usize,
    },
    /// Not a transaction that the network would relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        account::Keychain,
        testing::{self, World},
    };
    use bitcoin::{ScriptBuf, TxIn, absolute::LockTime, transaction::Version};

    fn address(world: &World, keychain: Keychain, index: u32) -> Address {
        world.account.address(KeychainIndex { keychain, index }).expect("derives")
    }

    /// Pays 60,000 of a coin of 100,000 to somebody, with change.
    fn psbt(world: &World) -> Psbt {
        let coin = address(world, Keychain::Receive, 0);
        let change = address(world, Keychain::Change, 0);
        let output = |value, script_pubkey| TxOut { value: Amount::from_sat(value), script_pubkey };
        let somebody = ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash());
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: Txid::all_zeros(), vout: 1 },
                ..TxIn::default()
            }],
            output: vec![output(60_000, somebody), output(39_000, change.script_pubkey.clone())],
        };
        let mut psbt = Psbt::from_unsigned_tx(transaction).expect("unsigned");
        psbt.inputs[0].witness_utxo = Some(output(100_000, coin.script_pubkey.clone()));
        describe_input(&world.account, &coin, &mut psbt.inputs[0]);
        describe_output(&world.account, &change, &mut psbt.outputs[1]);
        psbt
    }

    fn authorise(world: &World, psbt: Psbt) -> JointProposal {
        JointProposal::authorise(&world.federation, world.account.id(), &world.authorisation, psbt, 1_000)
    }

    fn check(world: &World, psbt: Psbt) -> Result<CheckedProposal, ProposalError> {
        authorise(world, psbt).check(&world.federation, &world.account)
    }

    #[test]
    fn a_good_proposal_gives_fee_and_plan_and_survives_json() {
        let world = testing::federation(4);
        let checked = check(&world, psbt(&world)).expect("good");
        assert_eq!(checked.fee, Amount::from_sat(1_000));
        assert!(!checked.returns_home);
        let proposal = Proposal::Joint(Box::new(authorise(&world, psbt(&world))));
        let json = serde_json::to_string(&proposal).expect("serialises");
        assert_eq!(serde_json::from_str::<Proposal>(&json).expect("parses"), proposal);
    }

    #[test]
    fn a_psbt_that_signs_something_else_is_refused() {
        let world = testing::federation(4);
        let mut swapped = authorise(&world, psbt(&world));
        swapped.psbt.unsigned_tx.output[0].value = Amount::from_sat(60_001);
        let error = swapped.check(&world.federation, &world.account).expect_err("changed after signing");
        assert_eq!(error, ProposalError::Authorisation);
        let mut stretched = authorise(&world, psbt(&world));
        stretched.deadline += 1;
        let error = stretched.check(&world.federation, &world.account).expect_err("changed after signing");
        assert_eq!(error, ProposalError::Authorisation);

        let mut foreign = psbt(&world);
        foreign.inputs[0].witness_utxo.as_mut().expect("set").script_pubkey = ScriptBuf::new();
        assert_eq!(check(&world, foreign).expect_err("foreign"), ProposalError::InputScript { index: 0 });

        let mut sighash = psbt(&world);
        sighash.inputs[0].sighash_type = Some(TapSighashType::None.into());
        assert_eq!(check(&world, sighash).expect_err("sighash"), ProposalError::InputScript { index: 0 });

        let mut bare = psbt(&world);
        bare.inputs[0].tap_key_origins.clear();
        assert_eq!(check(&world, bare).expect_err("no origin"), ProposalError::InputData { index: 0 });

        let mut stolen_change = psbt(&world);
        stolen_change.unsigned_tx.output[1].script_pubkey =
            stolen_change.unsigned_tx.output[0].script_pubkey.clone();
        assert_eq!(check(&world, stolen_change).expect_err("change"), ProposalError::OutputData { index: 1 });
    }

    #[test]
    fn dust_and_absurd_fees_are_refused() {
        let world = testing::federation(4);
        let mut dust = psbt(&world);
        dust.unsigned_tx.output[0].value = Amount::from_sat(100);
        assert!(matches!(check(&world, dust), Err(ProposalError::Relay(RelayError::Dust { index: 0, .. }))));
        let mut greedy = psbt(&world);
        greedy.inputs[0].witness_utxo.as_mut().expect("set").value = Amount::from_sat(90_000_000);
        assert!(matches!(check(&world, greedy), Err(ProposalError::Relay(RelayError::FeeTooHigh { .. }))));
        let mut broke = psbt(&world);
        broke.inputs[0].witness_utxo.as_mut().expect("set").value = Amount::from_sat(90_000);
        assert!(matches!(check(&world, broke), Err(ProposalError::Relay(RelayError::Amounts))));
    }
}
