//! Addresses of a joint account, and where they stand.

use bitcoin::{
    Network, ScriptBuf, TapNodeHash, XOnlyPublicKey,
    bip32::{ChildNumber, DerivationPath},
    secp256k1::{Parity, PublicKey},
    taproot::{ControlBlock, LeafVersion, TaprootMerkleBranch},
};
use serde::{Deserialize, Serialize};

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
    pub(super) fn number(self) -> u32 {
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
    /// The parity of its point, which a control block shows.
    pub output_parity: Parity,
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

    /// What a spend by the recovery leaf shows beside the leaf (BIP341).
    pub fn control_block(&self) -> ControlBlock {
        ControlBlock {
            leaf_version: LeafVersion::TapScript,
            output_key_parity: self.output_parity,
            internal_key: self.key.x_only_public_key().0,
            merkle_branch: TaprootMerkleBranch::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip_and_foreign_paths_are_refused() {
        let position = KeychainIndex { keychain: Keychain::Change, index: 3 };
        assert_eq!(KeychainIndex::from_path(&position.path()), Some(position));
        for foreign in ["2/0", "0", "0/0/0", "0'/1"] {
            assert_eq!(KeychainIndex::from_path(&foreign.parse().expect("a path")), None);
        }
    }
}
