//! Joint accounts: the record a wallet registers, its certificate, and everything derived from it.
//!
//! An account's key is `P = P_wallet + P_fed` (design, section 3). With a fixed, published chain code (the manner of
//! BIP328) `P` becomes an extended public key whose non-hardened children `/0/i` (receive) and `/1/i` (change) are
//! the internal keys of ordinary Taproot outputs with one script leaf, `and_v(v:pk(recovery child),
//! older(recovery_delay))`. The account is therefore an ordinary descriptor that any wallet can watch, and recover
//! without Quorate once the delay has passed.

mod address;
mod checksum;
mod derive;
mod descriptor;

/// Addresses after the last one that had a coin, per keychain, that nodes follow with an account (the gap limit of
/// BIP44).
pub const ACCOUNT_GAP: u32 = 20;

pub use address::{Address, Keychain, KeychainIndex};
pub use checksum::checksum;
pub use derive::{CHAIN_CODE_TEXT, JointAccount};
pub use descriptor::{AccountDescriptor, DescriptorError};

use crate::{
    AccountId, Epoch, Federation, NodeId,
    digest::{self, IdentityKey, Purpose, Writer},
    federation::recovery_delays,
    vote::{CertificateError, verify_all},
};
use bitcoin::{
    Amount, XOnlyPublicKey,
    bip32::Xpub,
    secp256k1::{PublicKey, SecretKey, schnorr},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the nodes enforce for an account besides the protocol's own rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountPolicy {
    /// Most that one transaction may pay to others, fee not included, in satoshis; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bitcoin::amount::serde::as_sat::opt")]
    pub payment_max: Option<Amount>,
}

/// An account as its wallet describes it. Public, but private in effect: anybody who has it sees all addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// The wallet's half of the key, `P_wallet`.
    pub wallet_key: PublicKey,
    /// BIP340 key that authorises transactions of the account towards the nodes.
    pub authorisation_key: XOnlyPublicKey,
    /// Extended public key of the recovery path.
    pub recovery_xpub: Xpub,
    /// Blocks after which a coin can be moved by the recovery key alone (BIP68 height units), within
    /// [`crate::federation::recovery_delays`].
    pub recovery_delay: u16,
    /// What the nodes enforce for it.
    #[serde(default)]
    pub policy: AccountPolicy,
    /// Proof that the wallet holds the secret of `wallet_key`, bound to this federation and the epoch of its key.
    /// Without it a wallet could register `X - P_fed` and own the sum alone (a rogue key).
    pub possession: schnorr::Signature,
}

impl AccountRecord {
    /// Makes and proves a record. Its delay is checked by [`AccountRecord::check`].
    pub fn new(
        federation: &Federation,
        wallet: &SecretKey,
        authorisation_key: XOnlyPublicKey,
        recovery_xpub: Xpub,
        recovery_delay: u16,
        policy: AccountPolicy,
    ) -> Self {
        let placeholder = [0; 64];
        let mut record = Self {
            wallet_key: crate::curve::public_key(wallet),
            authorisation_key,
            recovery_xpub,
            recovery_delay,
            policy,
            possession: schnorr::Signature::from_slice(&placeholder).expect("64 bytes"),
        };
        record.possession = IdentityKey::from(wallet).sign(record.possession_digest(federation));
        record
    }

    /// The account's id: tagged hash of all fields but the proof.
    pub fn id(&self, federation: &Federation) -> AccountId {
        AccountId(
            Writer::signed(Purpose::Account, &federation.key_context())
                .fixed(&federation.group_key().serialize())
                .fixed(&self.wallet_key.serialize())
                .fixed(&self.authorisation_key.serialize())
                .fixed(&self.recovery_xpub.encode())
                .u16(self.recovery_delay)
                .u64(self.policy.payment_max.map_or(u64::MAX, Amount::to_sat))
                .finish(),
        )
    }

    fn possession_digest(&self, federation: &Federation) -> [u8; 32] {
        Writer::signed(Purpose::Possession, &federation.key_context()).fixed(&self.id(federation).0).finish()
    }

    /// Checks the proof of possession and the delay.
    ///
    /// # Errors
    /// The record's maker is at fault; no node accepts it, so retrying does not help.
    pub fn check(&self, federation: &Federation) -> Result<(), AccountError> {
        let roster = federation.roster();
        let (min, max) = recovery_delays(roster.network, roster.recovery_margin);
        if !(min..=max).contains(&self.recovery_delay) {
            return Err(AccountError::Delay { delay: self.recovery_delay, min, max });
        }
        if bitcoin::NetworkKind::from(federation.network()) != self.recovery_xpub.network {
            return Err(AccountError::Network);
        }
        let key = self.wallet_key.x_only_public_key().0;
        if digest::verify(&key, self.possession_digest(federation), &self.possession) {
            Ok(())
        } else {
            Err(AccountError::Possession)
        }
    }

    /// A node's acceptance, after [`AccountRecord::check`].
    pub fn accept(&self, federation: &Federation, key: &IdentityKey) -> schnorr::Signature {
        key.sign(acceptance_digest(federation, federation.epoch(), self.id(federation)))
    }

    /// Whether `node` accepted this record.
    pub fn verify_acceptance(
        &self,
        federation: &Federation,
        node: NodeId,
        signature: &schnorr::Signature,
    ) -> bool {
        let digest = acceptance_digest(federation, federation.epoch(), self.id(federation));
        federation.verify(node, digest, signature)
    }
}

fn acceptance_digest(federation: &Federation, epoch: Epoch, id: AccountId) -> [u8; 32] {
    Writer::signed(Purpose::AccountAcceptance, &federation.context_of(epoch)).fixed(&id.0).finish()
}

/// An account record with the acceptance of at least q nodes. It travels with proposals and final transactions, so
/// that a node or payee that never heard of the account needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountCertificate {
    /// The record.
    pub record: AccountRecord,
    /// When it was accepted. It stays valid in later epochs: the federation key, and with it the account, is the same.
    pub epoch: Epoch,
    /// Signatures of the nodes that accepted it.
    pub acceptances: BTreeMap<NodeId, schnorr::Signature>,
}

impl AccountCertificate {
    /// Checks everything and derives the account.
    ///
    /// # Errors
    /// Its sender is at fault.
    pub fn verify(&self, federation: &Federation) -> Result<JointAccount, AccountError> {
        self.record.check(federation)?;
        let digest = acceptance_digest(federation, self.epoch, self.record.id(federation));
        verify_all(federation, self.epoch, digest, &self.acceptances)?;
        JointAccount::new(federation, self.record.clone())
    }
}

/// Why an account record or certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccountError {
    /// The proof of possession does not verify.
    #[error("the proof that the wallet holds its half of the key is not valid for this federation and epoch")]
    Possession,
    /// A short delay would cost a fee for every refresh and leave no time to pay; a long one makes leaving slow.
    #[error("a recovery delay of {delay} blocks is outside {min} to {max} blocks")]
    Delay {
        /// Given, in blocks.
        delay: u16,
        /// Least.
        min: u16,
        /// Most.
        max: u16,
    },
    /// The recovery key is of another network.
    #[error("the recovery key is of another network than the federation")]
    Network,
    /// The two halves cancel out or a derived key is not usable (chance below 2^-120, unless arranged).
    #[error("the account's key is not usable")]
    Key,
    /// Too few or bad acceptances.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}
