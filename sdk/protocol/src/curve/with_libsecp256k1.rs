//! With libsecp256k1, and BIP32 of the crate `bitcoin`.

use super::context::secp;
use bitcoin::{
    XOnlyPublicKey,
    bip32::{DerivationPath, Xpriv},
    key::Keypair,
    secp256k1::{Message, PublicKey, Scalar, SecretKey, schnorr::Signature},
};

/// A secret key and its public key, erased when it is dropped.
#[derive(Clone)]
pub(crate) struct SigningKey(Keypair);

impl SigningKey {
    pub(crate) fn new(secret: &SecretKey) -> Self {
        Self(Keypair::from_secret_key(secp(), secret))
    }

    pub(crate) fn public(&self) -> XOnlyPublicKey {
        self.0.x_only_public_key().0
    }

    pub(crate) fn sign(&self, digest: [u8; 32]) -> Signature {
        secp().sign_schnorr_no_aux_rand(&Message::from_digest(digest), &self.0)
    }
}

impl Drop for SigningKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

pub(crate) fn verify(key: &XOnlyPublicKey, digest: [u8; 32], signature: &Signature) -> bool {
    secp().verify_schnorr(signature, &Message::from_digest(digest), key).is_ok()
}

pub(super) fn public_key(secret: &SecretKey) -> PublicKey {
    PublicKey::from_secret_key(secp(), secret)
}

pub(super) fn derive(parent: &Xpriv, path: &DerivationPath) -> Option<Xpriv> {
    parent.derive_priv(secp(), path).ok()
}

pub(super) fn add_tweak(key: &PublicKey, tweak: &Scalar) -> Option<PublicKey> {
    key.add_exp_tweak(secp(), tweak).ok()
}
