//! Signed bytes: one explicit layout per purpose under a constant BIP340 tag.
//!
//! Every digest is `SHA256(SHA256(tag) || SHA256(tag) || fields)` (BIP340, "tagged hashes"). Integers are big-endian
//! and fields have a fixed length or carry a `u32` length in front, so two different statements never share bytes.
//! Everything that a node or wallet signs starts with a [`Context`]: network, federation and epoch, so that no
//! signature can be replayed elsewhere (rule V8).

use crate::{Epoch, FederationId, curve::SigningKey};
use bitcoin::{
    hashes::{Hash as _, HashEngine as _, sha256},
    key::XOnlyPublicKey,
    secp256k1::{SecretKey, schnorr::Signature},
};
use std::fmt;

/// The tag of every digest in the protocol. The text is the domain; changing one is a protocol break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The roster, giving the federation's id.
    Roster,
    /// A node's vote in phase 1.
    Vote,
    /// What votes, certificates and commits are about.
    Target,
    /// The outputs that a transaction spends.
    Spent,
    /// A node's commit in phase 2 for coins of sole custody.
    Commit,
    /// An account record, giving the account's id.
    Account,
    /// A node's acceptance of an account.
    AccountAcceptance,
    /// The wallet's proof that it holds its half of the account key.
    Possession,
    /// The wallet's authorisation of one transaction.
    Authorisation,
    /// A node's nonce commitments for one transaction.
    NonceCommitments,
    /// The whole signing package of one transaction and attempt.
    Package,
    /// A node's signature shares.
    Shares,
    /// First DKG message: the polynomial commitment.
    DkgCommitment,
    /// Second DKG message: the hash of all first messages.
    DkgEcho,
    /// Last DKG message: the public result.
    DkgSuccess,
    /// The message of the trial signature over a new federation key.
    Trial,
    /// The seed of a node's deterministic DKG randomness.
    DkgSeed,
    /// A node's promise that it left a round of an outpoint.
    Promise,
    /// An owner's cancellation of a payment.
    Cancel,
    /// How far a node's durable log has come.
    LogHead,
    /// The plan of the next epoch.
    Succession,
    /// A node's word that it has ended an epoch.
    Seal,
    /// What it ended the epoch with.
    SealedTransactions,
    /// The chain of a node's durable log.
    Log,
}

impl Purpose {
    /// The tag text that is hashed twice in front of the fields.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Roster => "quorate/roster/1",
            Self::Vote => "quorate/vote/2",
            Self::Target => "quorate/target/1",
            Self::Spent => "quorate/spent/1",
            Self::Commit => "quorate/commit/2",
            Self::Account => "quorate/account/1",
            Self::AccountAcceptance => "quorate/account-acceptance/1",
            Self::Possession => "quorate/possession/1",
            Self::Authorisation => "quorate/authorisation/2",
            Self::NonceCommitments => "quorate/nonce-commitments/2",
            Self::Package => "quorate/package/2",
            Self::Shares => "quorate/shares/1",
            Self::DkgCommitment => "quorate/dkg-commitment/1",
            Self::DkgEcho => "quorate/dkg-echo/1",
            Self::DkgSuccess => "quorate/dkg-success/1",
            Self::Trial => "quorate/trial/1",
            Self::DkgSeed => "quorate/dkg-seed/1",
            Self::Promise => "quorate/promise/2",
            Self::Cancel => "quorate/cancel/1",
            Self::LogHead => "quorate/log-head/1",
            Self::Succession => "quorate/succession/1",
            Self::Seal => "quorate/seal/1",
            Self::SealedTransactions => "quorate/sealed-transactions/1",
            Self::Log => "quorate/log/1",
        }
    }
}

/// What every signature is bound to besides its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Magic bytes of the Bitcoin network, as on its peer-to-peer wire.
    pub magic: [u8; 4],
    /// The federation.
    pub federation: FederationId,
    /// The epoch of its key.
    pub epoch: Epoch,
}

/// A digest being written.
pub(crate) struct Writer(sha256::HashEngine);

impl Writer {
    pub(crate) fn new(purpose: Purpose) -> Self {
        let tag = sha256::Hash::hash(purpose.tag().as_bytes());
        let mut engine = sha256::Hash::engine();
        engine.input(tag.as_byte_array());
        engine.input(tag.as_byte_array());
        Self(engine)
    }

    pub(crate) fn signed(purpose: Purpose, context: &Context) -> Self {
        Self::new(purpose).fixed(&context.magic).fixed(&context.federation.0).u64(context.epoch.0)
    }

    /// A field whose length is the same in every message of this purpose.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.input(bytes);
        self
    }

    /// A field of variable length, with its length in front.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("no message is longer than 4 GiB");
        self.u32(length).fixed(bytes)
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.fixed(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.fixed(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.fixed(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.fixed(&value.to_be_bytes())
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        sha256::Hash::from_engine(self.0).to_byte_array()
    }
}

/// A long-term BIP340 signing key: a node's identity or a wallet's authorisation key.
///
/// Signing is deterministic (no auxiliary randomness), so the same statement is signed with the same bytes; a repeated
/// vote is byte for byte the first one (rule V2).
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Takes a secret key of 32 bytes.
    ///
    /// # Errors
    /// The bytes are zero or not below the group order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, bitcoin::secp256k1::Error> {
        let mut secret = SecretKey::from_slice(bytes)?;
        let key = Self::from(&secret);
        secret.non_secure_erase();
        Ok(key)
    }

    /// The BIP340 public key.
    pub fn public(&self) -> XOnlyPublicKey {
        self.0.public()
    }

    pub(crate) fn sign(&self, digest: [u8; 32]) -> Signature {
        self.0.sign(digest)
    }
}

impl From<&SecretKey> for IdentityKey {
    fn from(secret: &SecretKey) -> Self {
        Self(SigningKey::new(secret))
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public())
    }
}

pub(crate) use crate::curve::verify;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_deterministic_and_bound_to_its_purpose() {
        let key = IdentityKey::from_bytes(&[7; 32]).expect("a valid key");
        let context = Context { magic: [1; 4], federation: FederationId([2; 32]), epoch: Epoch(3) };
        let vote = Writer::signed(Purpose::Vote, &context).u8(1).finish();
        let commit = Writer::signed(Purpose::Commit, &context).u8(1).finish();
        assert_eq!(key.sign(vote), key.sign(vote));
        assert!(verify(&key.public(), vote, &key.sign(vote)));
        assert!(!verify(&key.public(), commit, &key.sign(vote)));
    }

    #[test]
    fn a_key_never_prints_its_secret() {
        let key = IdentityKey::from_bytes(&[7; 32]).expect("a valid key");
        assert!(!format!("{key:?}").contains(&"07".repeat(8)));
    }
}
