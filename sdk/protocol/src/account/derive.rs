//! A joint account: the sum of two keys, and what follows from it.

use super::{
    AccountError, AccountRecord,
    address::{Address, KeychainIndex},
    descriptor::AccountDescriptor,
};
use crate::{AccountId, Federation};
use bitcoin::{
    bip32::{ChainCode, ChildNumber, Fingerprint, Xpub},
    hashes::{Hash as _, sha256},
};

/// The text whose SHA-256 is the chain code of every joint account key (BIP328 does the same for `MuSig2`).
pub const CHAIN_CODE_TEXT: &str = "Quorate joint account";

/// A checked account with its derived keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointAccount {
    id: AccountId,
    record: AccountRecord,
    descriptor: AccountDescriptor,
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
        let descriptor = AccountDescriptor::new(xpub, record.recovery_xpub, record.recovery_delay)?;
        Ok(Self { id: record.id(federation), record, descriptor })
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
        self.descriptor.joint()
    }

    /// Derives one address.
    ///
    /// # Errors
    /// The index is 2^31 or more, or the child key is not usable.
    pub fn address(&self, position: KeychainIndex) -> Result<Address, AccountError> {
        self.descriptor.address(position)
    }

    /// The account as an output descriptor: watch it, or recover from it, with any descriptor wallet. The record does
    /// not say where its recovery key comes from; the wallet that has the words does
    /// ([`AccountDescriptor::with_origin`]).
    pub fn descriptor(&self) -> &AccountDescriptor {
        &self.descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Keychain, testing};
    use miniscript::{Descriptor, DescriptorPublicKey};

    #[test]
    fn addresses_are_those_of_the_descriptor() {
        let world = testing::federation(4);
        let text = world.account.descriptor().to_string();
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
            account.xpub().public_key.add_exp_tweak(crate::curve::secp(), &tweak).expect("adds"),
            address.key
        );
    }
}
