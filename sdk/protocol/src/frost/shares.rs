//! What all signers of an input have in common, a party's share, and the sum of all shares.
//!
//! The library says what is hashed and in which form: binding factors, group commitment, challenge, coefficients. What
//! is left are RFC 9591's sums over scalars, `z_i = d_i + e_i * rho_i + l_i * s_i * c` and `z = z_1 + ...`, with
//! BIP341's tweak and BIP340's signs, which the library does not do without making public keys on the way that nobody
//! reads: six multiplications of the generator for one share. Tests hold shares and signatures against the library's.
//! Secrets are in scalars of `k256`, whose arithmetic takes the same time for all of them; which sign they get is
//! public. (`docs/additive-key.md`)

use super::weights::{identifier, parse_scalar};
use crate::{NonceCommitment, SignatureShare, curve};
use bitcoin::{
    TapNodeHash, TapTweakHash, XOnlyPublicKey,
    hashes::Hash as _,
    secp256k1::{Parity, PublicKey, SecretKey, schnorr},
};
use frost_core::Ciphersuite as _;
use frost_secp256k1_tr as tr;
use k256::{Scalar, elliptic_curve::point::AffineCoordinates as _};
use rand_core::{CryptoRng, RngCore};
use std::collections::BTreeMap;
use zeroize::{ZeroizeOnDrop, Zeroizing};

type Nonce = frost_core::round1::Nonce<tr::Secp256K1Sha256TR>;

/// One input's secret nonces.
#[derive(ZeroizeOnDrop)]
pub(super) struct Nonces {
    hiding: Scalar,
    binding: Scalar,
}

impl Nonces {
    /// Fresh ones, as RFC 9591 makes them, with their commitment.
    pub(super) fn generate(
        share: &Scalar,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Option<(Self, NonceCommitment)> {
        let share = tr::keys::SigningShare::deserialize(&share.to_bytes()).ok()?;
        let mut nonce = || {
            let nonce = Nonce::new(&share, rng).to_scalar();
            let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(nonce.to_bytes().into());
            Some((nonce, public(&bytes)?))
        };
        let ((hiding, first), (binding, second)) = (nonce()?, nonce()?);
        let commitment = [first, second].concat().try_into().ok().map(NonceCommitment)?;
        Some((Self { hiding, binding }, commitment))
    }

    /// The same for the library.
    pub(super) fn for_library(&self) -> tr::round1::SigningNonces {
        let nonce = Nonce::from_scalar;
        tr::round1::SigningNonces::from_nonces(nonce(self.hiding), nonce(self.binding))
    }
}

/// A secret times the generator, in a time that does not depend on it.
fn public(secret: &[u8; 32]) -> Option<[u8; 33]> {
    let mut secret = SecretKey::from_slice(secret).ok()?;
    let public = curve::public_key(&secret).serialize();
    secret.non_secure_erase();
    Some(public)
}

/// What follows from an input's package and is the same for all who sign it.
#[derive(Debug)]
pub(super) struct Common {
    factors: BTreeMap<tr::Identifier, Scalar>,
    challenge: Scalar,
    /// The x coordinate of the nonces' sum, and whether everybody's nonces are negated for it.
    nonce: [u8; 32],
    negates_nonces: bool,
    /// How a party's part of the internal key becomes its part of the output key.
    negates_key: bool,
    tweak: Scalar,
    negates_output: bool,
    output: XOnlyPublicKey,
}

impl Common {
    /// Of an internal key and the root of its script tree. `None` if a key or commitment is of no use.
    pub(super) fn new(package: &tr::SigningPackage, key: &PublicKey, merkle_root: &[u8; 32]) -> Option<Self> {
        let (internal, parity) = key.x_only_public_key();
        let root = TapNodeHash::from_byte_array(*merkle_root);
        let tweak = TapTweakHash::from_key_and_tweak(internal, Some(root)).to_scalar();
        let (output, output_parity) = curve::taproot_output(internal, root)?;
        let output = output.to_x_only_public_key();
        let verifying = output.public_key(Parity::Even).serialize();
        let verifying = tr::VerifyingKey::deserialize(&verifying).ok()?;
        let factors = frost_core::compute_binding_factor_list(package, &verifying, &[]).ok()?;
        let nonces = frost_core::compute_group_commitment(package, &factors).ok()?.to_element();
        let challenge = tr::Secp256K1Sha256TR::challenge(&nonces, &verifying, package.message()).ok()?;
        let factor = |id: &tr::Identifier| {
            let factor = factors.get(id)?.serialize().try_into().ok()?;
            Some((*id, parse_scalar(&factor)?))
        };
        let nonces = nonces.to_affine();
        Some(Self {
            factors: package.signing_commitments().keys().map(factor).collect::<Option<_>>()?,
            challenge: challenge.to_scalar(),
            nonce: nonces.x().into(),
            negates_nonces: nonces.y_is_odd().into(),
            negates_key: parity == Parity::Odd,
            tweak: parse_scalar(&tweak.to_be_bytes())?,
            negates_output: output_parity == Parity::Odd,
            output,
        })
    }

    /// A party's share. `secret` is its part of the internal key.
    pub(super) fn share(
        &self,
        package: &tr::SigningPackage,
        id: u16,
        secret: &Scalar,
        nonces: &Nonces,
    ) -> Option<SignatureShare> {
        let id = identifier(id)?;
        let coefficient = frost_core::derive_interpolating_value(&id, package).ok()?;
        let nonce = Zeroizing::new(nonces.hiding + nonces.binding * self.factors.get(&id)?);
        let secret = Zeroizing::new(negated(self.negates_key, *secret) + self.tweak);
        let secret = Zeroizing::new(negated(self.negates_output, *secret));
        let share = negated(self.negates_nonces, *nonce) + coefficient * *secret * self.challenge;
        Some(SignatureShare(share.to_bytes().into()))
    }

    /// The sum of these shares, if it is a signature of the message.
    pub(super) fn sum<'a>(
        &self,
        package: &tr::SigningPackage,
        shares: impl Iterator<Item = &'a SignatureShare>,
    ) -> Option<schnorr::Signature> {
        let sum = shares.map(|share| parse_scalar(&share.0)).sum::<Option<Scalar>>()?;
        let signature = [self.nonce, sum.to_bytes().into()].concat();
        let signature = schnorr::Signature::from_slice(&signature).ok()?;
        let message = package.message().as_slice().try_into().ok()?;
        curve::verify(&self.output, message, &signature).then_some(signature)
    }
}

fn negated(is: bool, scalar: Scalar) -> Scalar {
    if is { -scalar } else { scalar }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frost_core::Field as _;
    use proptest::prelude::*;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
    use std::collections::BTreeSet;
    use tr::keys::Tweak as _;

    type Field = <<tr::Secp256K1Sha256TR as frost_core::Ciphersuite>::Group as frost_core::Group>::Field;

    /// A session of the library, of a key that is shared by a polynomial over so many signers: the same nonces, the
    /// same package, and what both make of it. Gives what was negated.
    fn session(seed: u64, signers: u16, message: [u8; 32], root: [u8; 32]) -> [bool; 3] {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let polynomial: Vec<Scalar> = (0..signers).map(|_| Field::random(&mut rng)).collect();
        let at = |id: u16| {
            let x = super::super::weights::scalar_of(id);
            polynomial.iter().rev().fold(Scalar::ZERO, |sum, coefficient| sum * x + coefficient)
        };
        let key: [u8; 32] = at(0).to_bytes().into();
        let key = PublicKey::from_slice(&public(&key).expect("not zero")).expect("a key");
        // Identifiers as they are: not in a row, and the wallet's.
        let ids: Vec<u16> = (1..signers).map(|id| id * 2).chain([super::super::WALLET_IDENTIFIER]).collect();
        let nonces: Vec<_> =
            ids.iter().map(|id| Nonces::generate(&at(*id), &mut rng).expect("a nonce")).collect();
        let commitments = ids.iter().zip(&nonces).map(|(id, (nonces, commitment))| {
            let parsed = super::super::session::parse_commitment(commitment).expect("points");
            assert_eq!(parsed, *nonces.for_library().commitments());
            (identifier(*id).expect("not zero"), parsed)
        });
        let package = tr::SigningPackage::new(commitments.collect(), &message);
        let common = Common::new(&package, &key, &root).expect("usable");
        let mut shares = BTreeMap::new();
        for (id, (nonces, _)) in ids.iter().zip(&nonces) {
            let ours = common.share(&package, *id, &at(*id), nonces).expect("a share");
            let secret: [u8; 32] = at(*id).to_bytes().into();
            let packaged = tr::keys::KeyPackage::new(
                identifier(*id).expect("not zero"),
                tr::keys::SigningShare::deserialize(&secret).expect("a scalar"),
                tr::keys::VerifyingShare::deserialize(&public(&secret).expect("not zero")).expect("a point"),
                tr::VerifyingKey::deserialize(&key.serialize()).expect("a key"),
                signers,
            );
            let theirs = tr::round2::sign_with_tweak(&package, &nonces.for_library(), &packaged, Some(&root));
            assert_eq!(theirs.expect("signs").serialize(), ours.0, "the share of {id} of {signers}");
            shares.insert(identifier(*id).expect("not zero"), ours);
        }
        let verifying = tr::VerifyingKey::deserialize(&key.serialize()).expect("a key");
        let public = tr::keys::PublicKeyPackage::new(BTreeMap::new(), verifying, Some(signers));
        let theirs: BTreeMap<_, _> = shares
            .iter()
            .map(|(id, share)| (*id, tr::round2::SignatureShare::deserialize(&share.0).expect("a scalar")))
            .collect();
        let off = frost_core::CheaterDetection::Disabled;
        let theirs =
            frost_core::aggregate_custom(&package, &theirs, &public.tweak(Some(root.as_slice())), off);
        let ours = common.sum(&package, shares.values()).expect("a signature");
        assert_eq!(theirs.expect("adds up").serialize().expect("64 bytes"), ours.serialize());
        // One share that is wrong spoils it.
        let wrong = SignatureShare(Scalar::ONE.to_bytes().into());
        assert_eq!(common.sum(&package, shares.values().skip(1).chain([&wrong])), None);
        [common.negates_nonces, common.negates_key, common.negates_output]
    }

    #[test]
    fn all_signs_are_those_of_the_library() {
        let signs: BTreeSet<[bool; 3]> = (0..48).map(|seed| session(seed, 3, [7; 32], [9; 32])).collect();
        assert_eq!(signs.len(), 8);
    }

    /// How many sessions are made: some at each run, and as many as somebody wants.
    fn sessions() -> u32 {
        std::env::var("FROST_SESSIONS").ok().and_then(|wanted| wanted.parse().ok()).unwrap_or(24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(sessions()))]

        /// Parities of key, output and nonces come in all combinations.
        #[test]
        fn shares_and_sums_are_those_of_the_library(
            seed: u64, signers in 2_u16..12, message: [u8; 32], root: [u8; 32],
        ) {
            session(seed, signers, message, root);
        }
    }
}
