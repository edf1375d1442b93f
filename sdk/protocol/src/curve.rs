//! What is computed with public keys: BIP340 verification, BIP32 children and BIP341 outputs.
//!
//! Two engines give the same answers. libsecp256k1 is the faster one, and the one that signs. Anybody who only
//! verifies can choose `k256` (feature `k256-verify`), which FROST needs anyway: without libsecp256k1 and its table
//! of the generator a page loads a fifth less. Both implement BIP340 and BIP341 to the letter; tests hold them
//! against each other, at the edges too.

use bitcoin::{
    TapNodeHash, TapTweakHash, XOnlyPublicKey,
    bip32::{ChildNumber, Xpub},
    key::{Parity, TweakedPublicKey},
    secp256k1::{PublicKey, Scalar, SecretKey, schnorr::Signature},
};

pub(crate) use engine::verify;
#[cfg(feature = "k256-verify")]
use with_k256 as engine;
#[cfg(not(feature = "k256-verify"))]
use with_libsecp256k1 as engine;

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

/// The output key of an internal key and a Merkle root (BIP341).
pub(crate) fn taproot_output(internal: XOnlyPublicKey, root: TapNodeHash) -> Option<TweakedPublicKey> {
    let tweak = TapTweakHash::from_key_and_tweak(internal, Some(root)).to_scalar();
    let output = engine::add_tweak(&internal.public_key(Parity::Even), &tweak)?;
    Some(TweakedPublicKey::dangerous_assume_tweaked(output.x_only_public_key().0))
}

#[cfg(any(test, not(feature = "k256-verify")))]
mod with_libsecp256k1 {
    use super::{PublicKey, Scalar, Signature, XOnlyPublicKey};
    use crate::digest::secp;
    use bitcoin::secp256k1::Message;

    pub(crate) fn verify(key: &XOnlyPublicKey, digest: [u8; 32], signature: &Signature) -> bool {
        secp().verify_schnorr(signature, &Message::from_digest(digest), key).is_ok()
    }

    pub(super) fn add_tweak(key: &PublicKey, tweak: &Scalar) -> Option<PublicKey> {
        key.add_exp_tweak(secp(), tweak).ok()
    }
}

#[cfg(any(test, feature = "k256-verify"))]
mod with_k256 {
    use super::{PublicKey, Scalar, Signature, XOnlyPublicKey};
    use k256::{
        ProjectivePoint,
        elliptic_curve::{PrimeField as _, sec1::ToEncodedPoint as _},
        schnorr,
    };

    pub(crate) fn verify(key: &XOnlyPublicKey, digest: [u8; 32], signature: &Signature) -> bool {
        let Ok(key) = schnorr::VerifyingKey::from_bytes(&key.serialize()) else { return false };
        let Ok(signature) = schnorr::Signature::try_from(signature.as_ref().as_slice()) else { return false };
        key.verify_raw(&digest, &signature).is_ok()
    }

    pub(super) fn add_tweak(key: &PublicKey, tweak: &Scalar) -> Option<PublicKey> {
        let key = crate::frost::weights::point(key)?;
        let tweak: Option<k256::Scalar> = k256::Scalar::from_repr(tweak.to_be_bytes().into()).into();
        let sum = (key + ProjectivePoint::GENERATOR * tweak?).to_affine().to_encoded_point(true);
        PublicKey::from_slice(sum.as_bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ChildNumber, Parity, Scalar, SecretKey, Signature, TapNodeHash, child, taproot_output, with_k256,
        with_libsecp256k1 as libsecp256k1,
    };
    use crate::digest::IdentityKey;
    use proptest::prelude::*;

    fn key(seed: [u8; 32]) -> IdentityKey {
        let mut seed = seed;
        seed[0] = 1;
        IdentityKey::from_bytes(&seed).expect("between zero and the group order")
    }

    proptest! {
        #[test]
        fn both_engines_agree(seed: [u8; 32], digest: [u8; 32], at in 0_usize..64, flip in 0_u8..3) {
            let key = key(seed);
            let public = key.public();
            let mut signature = key.sign(digest).serialize();
            signature[at] ^= flip;
            let signature = Signature::from_slice(&signature).expect("64 bytes");
            let verified = libsecp256k1::verify(&public, digest, &signature);
            prop_assert_eq!(verified, flip == 0);
            prop_assert_eq!(with_k256::verify(&public, digest, &signature), verified);

            let tweak = Scalar::from_be_bytes(seed).unwrap_or(Scalar::MAX);
            for parity in [Parity::Even, Parity::Odd] {
                let point = public.public_key(parity);
                let sum = libsecp256k1::add_tweak(&point, &tweak);
                prop_assert_eq!(with_k256::add_tweak(&point, &tweak), sum);
            }
        }
    }

    #[test]
    fn both_engines_refuse_the_same_edges() {
        // The field's prime and the group's order (SEC 2), and what is just inside.
        const PRIME: &str = "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f";
        const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let key = key([5; 32]);
        let (public, digest) = (key.public(), [7; 32]);
        let good = key.sign(digest).serialize();
        let (r, s) = good.split_at(32);
        let number = |text: &str| hex::decode(text).expect("hex");
        let negated = SecretKey::from_slice(s).expect("a number below the order").negate().secret_bytes();
        let signatures = [
            [number(PRIME).as_slice(), s].concat(),
            [r, number(ORDER).as_slice()].concat(),
            [r, [0; 32].as_slice()].concat(),
            [[0; 32].as_slice(), s].concat(),
            // The point with the other parity of y.
            [r, negated.as_slice()].concat(),
            [0; 64].to_vec(),
            [0xff; 64].to_vec(),
        ];
        for signature in signatures {
            let signature = Signature::from_slice(&signature).expect("64 bytes");
            for verify in [libsecp256k1::verify, with_k256::verify] {
                assert!(!verify(&public, digest, &signature), "{signature}");
            }
        }
        for verify in [libsecp256k1::verify, with_k256::verify] {
            assert!(verify(&public, digest, &Signature::from_slice(&good).expect("64 bytes")));
        }
    }

    #[test]
    fn a_sum_at_infinity_is_no_key() {
        let public = key([0; 32]).public().public_key(Parity::Even);
        let mut secret = [0; 32];
        secret[0] = 1;
        let secret = SecretKey::from_slice(&secret).expect("a key");
        let even = secret.x_only_public_key(crate::digest::secp()).1 == Parity::Even;
        let inverse = if even { secret.negate() } else { secret };
        for add in [libsecp256k1::add_tweak, with_k256::add_tweak] {
            assert_eq!(add(&public, &inverse.into()), None);
        }
    }

    #[test]
    fn children_and_outputs_are_those_of_the_bitcoin_crate() {
        use bitcoin::hashes::Hash as _;
        use bitcoin::key::TapTweak as _;
        let world = crate::testing::federation(4);
        let parent = world.account.xpub();
        let number = ChildNumber::Normal { index: 7 };
        let (child, _) = child(parent, number).expect("a usable child");
        assert_eq!(child, parent.ckd_pub(crate::digest::secp(), number).expect("a usable child"));
        let internal = child.public_key.x_only_public_key().0;
        let root = TapNodeHash::from_byte_array([3; 32]);
        let (output, _) = internal.tap_tweak(crate::digest::secp(), Some(root));
        assert_eq!(taproot_output(internal, root), Some(output));
    }
}
