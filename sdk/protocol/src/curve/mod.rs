//! What is computed with keys: BIP340 signatures, BIP32 children and BIP341 outputs.
//!
//! Two engines give the same answers, to the byte. libsecp256k1 is the faster one, and the one of nodes and native
//! wallets. Where every byte is fetched the other one is `k256` (feature `k256-engine`), which FROST needs anyway:
//! without libsecp256k1 and its table of the generator a page loads a tenth less. Both take the same time for every
//! secret. Tests hold them against each other, at the edges too.

use bitcoin::{
    TapNodeHash, TapTweakHash, XOnlyPublicKey,
    bip32::{ChildNumber, DerivationPath, Xpriv, Xpub},
    key::{Parity, TweakedPublicKey},
    secp256k1::{PublicKey, SecretKey, schnorr::Signature},
};

mod context;
#[cfg(any(test, feature = "k256-engine"))]
mod with_k256;
#[cfg(any(test, not(feature = "k256-engine")))]
mod with_libsecp256k1;

pub use context::secp;
pub(crate) use engine::{SigningKey, verify};
#[cfg(feature = "k256-engine")]
use with_k256 as engine;
#[cfg(not(feature = "k256-engine"))]
use with_libsecp256k1 as engine;

/// The public key of a secret.
pub fn public_key(secret: &SecretKey) -> PublicKey {
    engine::public_key(secret)
}

/// A BIP340 signature without auxiliary randomness: the same digest is signed with the same bytes.
pub fn sign(secret: &SecretKey, digest: [u8; 32]) -> Signature {
    SigningKey::new(secret).sign(digest)
}

/// The public half of an extended key (BIP32).
pub fn neutered(key: &Xpriv) -> Xpub {
    Xpub {
        network: key.network,
        depth: key.depth,
        parent_fingerprint: key.parent_fingerprint,
        child_number: key.child_number,
        public_key: public_key(&key.private_key),
        chain_code: key.chain_code,
    }
}

/// The private key at a path (BIP32); `None` where the path is too deep, or leads to a key that is not usable.
pub fn derive(parent: &Xpriv, path: &DerivationPath) -> Option<Xpriv> {
    engine::derive(parent, path)
}

/// A child key that is not hardened, and the tweak that leads to it (BIP32); `None` where the child is not usable.
pub(crate) fn child(parent: &Xpub, number: ChildNumber) -> Option<(Xpub, SecretKey)> {
    let (tweak, chain_code) = parent.ckd_pub_tweak(number).ok()?;
    let child = Xpub {
        network: parent.network,
        depth: parent.depth.checked_add(1)?,
        parent_fingerprint: parent.fingerprint(),
        child_number: number,
        public_key: engine::add_tweak(&parent.public_key, &tweak.into())?,
        chain_code,
    };
    Some((child, tweak))
}

/// The output key of an internal key and a Merkle root, and the parity of its point (BIP341).
pub(crate) fn taproot_output(
    internal: XOnlyPublicKey,
    root: TapNodeHash,
) -> Option<(TweakedPublicKey, Parity)> {
    let tweak = TapTweakHash::from_key_and_tweak(internal, Some(root)).to_scalar();
    let output = engine::add_tweak(&internal.public_key(Parity::Even), &tweak)?;
    let (output, parity) = output.x_only_public_key();
    Some((TweakedPublicKey::dangerous_assume_tweaked(output), parity))
}

#[cfg(test)]
mod tests;
