use super::{
    ChildNumber, DerivationPath, Parity, SecretKey, Signature, TapNodeHash, Xpriv, Xpub, child, neutered,
    taproot_output, with_k256, with_libsecp256k1 as libsecp256k1,
};
use crate::digest::IdentityKey;
use bitcoin::{NetworkKind, secp256k1::Scalar};
use proptest::prelude::*;

fn secret(mut seed: [u8; 32]) -> SecretKey {
    seed[0] = 1;
    SecretKey::from_slice(&seed).expect("between zero and the group order")
}

fn key(seed: [u8; 32]) -> IdentityKey {
    IdentityKey::from(&secret(seed))
}

proptest! {
    #[test]
    fn both_engines_agree(seed: [u8; 32], digest: [u8; 32], at in 0_usize..64, flip in 0_u8..3) {
        let key = key(seed);
        let public = key.public();
        let secret = secret(seed);
        let other = with_k256::SigningKey::new(&secret);
        prop_assert_eq!((other.public(), other.sign(digest)), (public, key.sign(digest)));
        prop_assert_eq!(with_k256::public_key(&secret), libsecp256k1::public_key(&secret));
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

proptest! {
    #[test]
    fn both_engines_derive_the_same_keys(seed: [u8; 16], path in prop::collection::vec(any::<u32>(), 0..5)) {
        let master = Xpriv::new_master(NetworkKind::Test, &seed).expect("a master key");
        let path: DerivationPath = path.into_iter().map(ChildNumber::from).collect();
        let key = with_k256::derive(&master, &path).expect("a usable key");
        prop_assert_eq!(key, libsecp256k1::derive(&master, &path).expect("a usable key"));
        prop_assert_eq!(neutered(&key), Xpub::from_priv(crate::curve::secp(), &key));
    }
}

#[test]
fn no_key_is_derived_below_the_deepest() {
    let mut deepest = Xpriv::new_master(NetworkKind::Test, &[7; 16]).expect("a master key");
    deepest.depth = u8::MAX;
    let path: DerivationPath = [ChildNumber::Normal { index: 0 }].as_slice().into();
    for derive in [libsecp256k1::derive, with_k256::derive] {
        assert_eq!(derive(&deepest, &path), None);
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
    let even = secret.x_only_public_key(crate::curve::secp()).1 == Parity::Even;
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
    assert_eq!(child, parent.ckd_pub(crate::curve::secp(), number).expect("a usable child"));
    let internal = child.public_key.x_only_public_key().0;
    let root = TapNodeHash::from_byte_array([3; 32]);
    let (output, parity) = internal.tap_tweak(crate::curve::secp(), Some(root));
    assert_eq!(taproot_output(internal, root), Some((output, parity)));
}
