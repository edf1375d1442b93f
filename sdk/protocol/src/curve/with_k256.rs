//! With `k256`. BIP32's private derivation is here because the crate `bitcoin` has it for libsecp256k1 only.

use bitcoin::{
    XOnlyPublicKey,
    bip32::{ChainCode, ChildNumber, DerivationPath, Fingerprint, Xpriv},
    hashes::{Hash as _, HashEngine as _, Hmac, HmacEngine, hash160, sha512},
    secp256k1::{PublicKey, Scalar, SecretKey, schnorr::Signature},
};
use k256::{
    ProjectivePoint,
    elliptic_curve::{PrimeField as _, ops::MulByGenerator as _, sec1::ToEncodedPoint as _},
    schnorr,
};
use zeroize::Zeroizing;

/// A secret key and its public key, erased when it is dropped.
#[derive(Clone)]
pub(crate) struct SigningKey {
    secret: schnorr::SigningKey,
    public: XOnlyPublicKey,
}

impl SigningKey {
    pub(crate) fn new(secret: &SecretKey) -> Self {
        let bytes = Zeroizing::new(secret.secret_bytes());
        let secret = schnorr::SigningKey::from_bytes(bytes.as_slice()).expect("between zero and the order");
        let public = XOnlyPublicKey::from_slice(&secret.verifying_key().to_bytes()).expect("a point's x");
        Self { secret, public }
    }

    pub(crate) fn public(&self) -> XOnlyPublicKey {
        self.public
    }

    pub(crate) fn sign(&self, digest: [u8; 32]) -> Signature {
        // BIP340 without randomness is BIP340 with 32 zeros of it.
        let signature = self.secret.sign_prehash_with_aux_rand(&digest, &[0; 32]);
        let signature = signature.expect("the chance of a nonce of zero is 2^-256");
        Signature::from_slice(&signature.to_bytes()).expect("64 bytes")
    }
}

pub(crate) fn verify(key: &XOnlyPublicKey, digest: [u8; 32], signature: &Signature) -> bool {
    let Ok(key) = schnorr::VerifyingKey::from_bytes(&key.serialize()) else { return false };
    let Ok(signature) = schnorr::Signature::try_from(signature.as_ref().as_slice()) else { return false };
    key.verify_raw(&digest, &signature).is_ok()
}

pub(super) fn public_key(secret: &SecretKey) -> PublicKey {
    let bytes = Zeroizing::new(secret.secret_bytes());
    let secret = Zeroizing::new(scalar(&bytes).expect("below the order"));
    key(&ProjectivePoint::mul_by_generator(&secret)).expect("the secret is not zero")
}

pub(super) fn derive(parent: &Xpriv, path: &DerivationPath) -> Option<Xpriv> {
    let mut key = *parent;
    for number in path {
        let next = child(&key, *number);
        key.private_key.non_secure_erase();
        key = next?;
    }
    Some(key)
}

/// BIP32, `CKDpriv`.
fn child(parent: &Xpriv, number: ChildNumber) -> Option<Xpriv> {
    let depth = parent.depth.checked_add(1)?;
    let public = public_key(&parent.private_key).serialize();
    let mut engine = HmacEngine::<sha512::Hash>::new(parent.chain_code.as_ref());
    if number.is_hardened() {
        engine.input(&[0]);
        engine.input(Zeroizing::new(parent.private_key.secret_bytes()).as_slice());
    } else {
        engine.input(&public);
    }
    engine.input(&u32::from(number).to_be_bytes());
    let hmac = Zeroizing::new(Hmac::from_engine(engine).to_byte_array());
    let (tweak, chain_code) = hmac.split_first_chunk::<32>()?;
    let mut tweak = SecretKey::from_slice(tweak).ok()?;
    let private_key = tweak.add_tweak(&parent.private_key.into()).ok();
    tweak.non_secure_erase();
    let [a, b, c, d, ..] = hash160::Hash::hash(&public).to_byte_array();
    Some(Xpriv {
        network: parent.network,
        depth,
        parent_fingerprint: Fingerprint::from([a, b, c, d]),
        child_number: number,
        private_key: private_key?,
        chain_code: ChainCode::from(<[u8; 32]>::try_from(chain_code).ok()?),
    })
}

pub(super) fn add_tweak(to: &PublicKey, tweak: &Scalar) -> Option<PublicKey> {
    let sum =
        crate::frost::weights::point(to)? + ProjectivePoint::mul_by_generator(&scalar(&tweak.to_be_bytes())?);
    key(&sum)
}

fn scalar(bytes: &[u8; 32]) -> Option<k256::Scalar> {
    k256::Scalar::from_repr((*bytes).into()).into()
}

/// `None` for the point at infinity.
fn key(point: &ProjectivePoint) -> Option<PublicKey> {
    PublicKey::from_slice(point.to_affine().to_encoded_point(true).as_bytes()).ok()
}
