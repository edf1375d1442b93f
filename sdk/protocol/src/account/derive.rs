//! Keys, scripts and addresses of a joint account.

use super::{AccountError, AccountRecord, descriptor};
use crate::{AccountId, Federation, curve};
use bitcoin::{
    Network, ScriptBuf, TapNodeHash, XOnlyPublicKey,
    bip32::{ChainCode, ChildNumber, DerivationPath, Fingerprint, Xpub},
    hashes::{Hash as _, sha256},
    opcodes::all::{OP_CHECKSIGVERIFY, OP_CSV},
    secp256k1::PublicKey,
    taproot::LeafVersion,
};
use serde::{Deserialize, Serialize};

/// The text whose SHA-256 is the chain code of every joint account key (BIP328 does the same for `MuSig2`).
pub const CHAIN_CODE_TEXT: &str = "Quorate joint account";

/// Which of an account's two chains of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keychain {
    /// Addresses that are given out, `/0/i`.
    Receive,
    /// Change, `/1/i`.
    Change,
}

impl Keychain {
    fn number(self) -> u32 {
        match self {
            Self::Receive => 0,
            Self::Change => 1,
        }
    }
}

/// A keychain with an index below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeychainIndex {
    /// The keychain.
    pub keychain: Keychain,
    /// The index in it.
    pub index: u32,
}

impl KeychainIndex {
    /// The derivation path below the account's key, `0/i` or `1/i`.
    pub fn path(self) -> DerivationPath {
        let child = |index| ChildNumber::Normal { index: index & 0x7fff_ffff };
        [child(self.keychain.number()), child(self.index)].as_slice().into()
    }

    /// Reads a path as [`KeychainIndex::path`] writes it.
    pub fn from_path(path: &DerivationPath) -> Option<Self> {
        let [ChildNumber::Normal { index: keychain }, ChildNumber::Normal { index }] = path.as_ref() else {
            return None;
        };
        let keychain = match keychain {
            0 => Keychain::Receive,
            1 => Keychain::Change,
            _ => return None,
        };
        Some(Self { keychain, index: *index })
    }
}

/// Everything about one address of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where it stands.
    pub position: KeychainIndex,
    /// The joint child key, with its parity.
    pub key: PublicKey,
    /// The sum of the BIP32 tweaks from the account key to `key`, a public scalar.
    pub tweak: [u8; 32],
    /// The recovery leaf.
    pub leaf: ScriptBuf,
    /// Hash of the one leaf, the Merkle root of the output.
    pub merkle_root: TapNodeHash,
    /// The output key after the Taproot tweak.
    pub output_key: XOnlyPublicKey,
    /// The output script.
    pub script_pubkey: ScriptBuf,
    /// The recovery child's key.
    pub recovery_key: XOnlyPublicKey,
}

impl Address {
    /// The address in the network's text form (BIP350).
    pub fn to_address(&self, network: Network) -> bitcoin::Address {
        bitcoin::Address::p2tr_tweaked(
            bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(self.output_key),
            network,
        )
    }
}

/// A checked account with its derived keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointAccount {
    id: AccountId,
    record: AccountRecord,
    xpub: Xpub,
    chains: [Chain; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    joint: Xpub,
    tweak: [u8; 32],
    recovery: Xpub,
}

impl JointAccount {
    /// Derives the account of a record. The caller has checked the record or made it.
    ///
    /// # Errors
    /// A derived key is not usable.
    pub fn new(federation: &Federation, record: AccountRecord) -> Result<Self, AccountError> {
        let key = record.wallet_key.combine(federation.group_key()).map_err(|_| AccountError::Key)?;
        let chain_code = sha256::Hash::hash(CHAIN_CODE_TEXT.as_bytes()).to_byte_array();
        let xpub = Xpub {
            network: federation.network().into(),
            depth: 0,
            parent_fingerprint: Fingerprint::default(),
            child_number: ChildNumber::Normal { index: 0 },
            public_key: key,
            chain_code: ChainCode::from(chain_code),
        };
        let chain = |keychain: Keychain| {
            let child = ChildNumber::Normal { index: keychain.number() };
            let (joint, tweak) = curve::child(&xpub, child).ok_or(AccountError::Key)?;
            let (recovery, _) = curve::child(&record.recovery_xpub, child).ok_or(AccountError::Key)?;
            Ok::<_, AccountError>(Chain { joint, tweak: tweak.secret_bytes(), recovery })
        };
        let chains = [chain(Keychain::Receive)?, chain(Keychain::Change)?];
        Ok(Self { id: record.id(federation), record, xpub, chains })
    }

    /// The account's id.
    pub fn id(&self) -> AccountId {
        self.id
    }

    /// The record it was derived from.
    pub fn record(&self) -> &AccountRecord {
        &self.record
    }

    /// The joint key as an extended public key.
    pub fn xpub(&self) -> &Xpub {
        &self.xpub
    }

    /// Derives one address.
    ///
    /// # Errors
    /// The index is 2^31 or more, or the child key is not usable.
    pub fn address(&self, position: KeychainIndex) -> Result<Address, AccountError> {
        let [receive, change] = &self.chains;
        let chain = match position.keychain {
            Keychain::Receive => receive,
            Keychain::Change => change,
        };
        let child = ChildNumber::from_normal_idx(position.index).map_err(|_| AccountError::Key)?;
        let (joint, tweak) = curve::child(&chain.joint, child).ok_or(AccountError::Key)?;
        let key = joint.public_key;
        let tweak = tweak
            .add_tweak(
                &bitcoin::secp256k1::Scalar::from_be_bytes(chain.tweak).map_err(|_| AccountError::Key)?,
            )
            .map_err(|_| AccountError::Key)?;
        let (recovery, _) = curve::child(&chain.recovery, child).ok_or(AccountError::Key)?;
        let recovery_key = recovery.public_key.x_only_public_key().0;
        let leaf = recovery_leaf(&recovery_key, self.record.recovery_delay);
        let merkle_root = TapNodeHash::from_script(&leaf, LeafVersion::TapScript);
        let output =
            curve::taproot_output(key.x_only_public_key().0, merkle_root).ok_or(AccountError::Key)?;
        Ok(Address {
            position,
            key,
            tweak: tweak.secret_bytes(),
            leaf,
            merkle_root,
            output_key: output.to_x_only_public_key(),
            script_pubkey: ScriptBuf::new_p2tr_tweaked(output),
            recovery_key,
        })
    }

    /// The account as an output descriptor with its checksum (BIP380, BIP386, BIP389): watch it, or recover from it,
    /// with any descriptor wallet.
    pub fn descriptor(&self) -> String {
        descriptor::describe(&self.xpub, &self.record.recovery_xpub.to_string(), self.record.recovery_delay)
    }
}

/// `and_v(v:pk(key), older(delay))` as miniscript compiles it.
fn recovery_leaf(key: &XOnlyPublicKey, delay: u16) -> ScriptBuf {
    ScriptBuf::builder()
        .push_x_only_key(key)
        .push_opcode(OP_CHECKSIGVERIFY)
        .push_int(i64::from(delay))
        .push_opcode(OP_CSV)
        .into_script()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use miniscript::{Descriptor, DescriptorPublicKey};

    #[test]
    fn addresses_are_those_of_the_descriptor() {
        let world = testing::federation(4);
        let text = world.account.descriptor();
        let descriptor: Descriptor<DescriptorPublicKey> = text.parse().expect("miniscript accepts it");
        assert_eq!(descriptor.to_string(), text, "checksum included");
        let chains = descriptor.into_single_descriptors().expect("two chains");
        for (chain, keychain) in chains.iter().zip([Keychain::Receive, Keychain::Change]) {
            for index in [0, 1, 77] {
                let ours = world.account.address(KeychainIndex { keychain, index }).expect("derives");
                let theirs = chain.at_derivation_index(index).expect("derives");
                assert_eq!(ours.script_pubkey, theirs.script_pubkey());
            }
        }
    }

    #[test]
    fn the_tweak_leads_from_the_account_key_to_the_child() {
        let account = testing::federation(4).account;
        let address =
            account.address(KeychainIndex { keychain: Keychain::Change, index: 9 }).expect("derives");
        let tweak = bitcoin::secp256k1::Scalar::from_be_bytes(address.tweak).expect("in range");
        assert_eq!(
            account.xpub().public_key.add_exp_tweak(crate::digest::secp(), &tweak).expect("adds"),
            address.key
        );
    }

    #[test]
    fn paths_round_trip_and_foreign_paths_are_refused() {
        let position = KeychainIndex { keychain: Keychain::Change, index: 3 };
        assert_eq!(KeychainIndex::from_path(&position.path()), Some(position));
        for foreign in ["2/0", "0", "0/0/0", "0'/1"] {
            assert_eq!(KeychainIndex::from_path(&foreign.parse().expect("a path")), None);
        }
    }
}
