//! Signatures of members that were found to be good, so that each is verified once: a coordinator meets a vote as it
//! comes and in the certificate, and nonce commitments as they come and in its own part; a wallet meets a certificate
//! before it signs and in the proof.
//!
//! What is remembered is the hash of all that a verification depends on: the key itself, not whose it is. One that
//! failed is not remembered: nobody fills the memory with what is wrong.

use crate::digest;
use bitcoin::{
    XOnlyPublicKey,
    hashes::{Hash as _, HashEngine as _, sha256},
    secp256k1::schnorr,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// Places for what is remembered, 33 bytes each. A hash has one place, from which it drives out the one before.
const PLACES: usize = 4_096;

/// Shared by all copies of a federation.
#[derive(Clone, Default)]
pub(super) struct Verified(Arc<Mutex<Vec<Option<sha256::Hash>>>>);

impl Verified {
    /// Whether a signature is good (BIP340), which is found out if it is not known.
    pub(super) fn check(
        &self,
        key: &XOnlyPublicKey,
        digest: [u8; 32],
        signature: &schnorr::Signature,
    ) -> bool {
        self.once(key, digest, signature, || digest::verify(key, digest, signature))
    }

    fn once(
        &self,
        key: &XOnlyPublicKey,
        digest: [u8; 32],
        signature: &schnorr::Signature,
        verify: impl FnOnce() -> bool,
    ) -> bool {
        let mut engine = sha256::Hash::engine();
        engine.input(&key.serialize());
        engine.input(&digest);
        engine.input(signature.as_ref());
        let hash = sha256::Hash::from_engine(engine);
        let [first, second, ..] = hash.to_byte_array();
        let place = usize::from(u16::from_be_bytes([first, second])) % PLACES;
        let memory = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory().get(place) == Some(&Some(hash)) {
            return true;
        }
        if !verify() {
            return false;
        }
        let mut memory = memory();
        memory.resize(PLACES, None);
        if let Some(place) = memory.get_mut(place) {
            *place = Some(hash);
        }
        true
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verified")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::IdentityKey;

    fn ask(verified: &Verified, (secret, digest, other): (u8, u64, u8), good: bool) -> (bool, bool) {
        let key = |secret| IdentityKey::from_bytes(&[secret; 32]).expect("a key");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&digest.to_be_bytes());
        let signature = key(other).sign([7; 32]);
        let mut asked = false;
        let found = verified.once(&key(secret).public(), bytes, &signature, || {
            asked = true;
            good
        });
        (found, asked)
    }

    #[test]
    fn a_good_signature_is_verified_once_and_anything_else_each_time() {
        let verified = Verified::default();
        let of = (1, 1, 1);
        assert_eq!(ask(&verified, of, false), (false, true));
        assert_eq!(ask(&verified, of, true), (true, true), "what was wrong is not remembered");
        assert_eq!(ask(&verified.clone(), of, false), (true, false));
        for other in [(2, 1, 1), (1, 2, 1), (1, 1, 2)] {
            assert_eq!(ask(&verified, other, false), (false, true), "{other:?}");
        }
    }

    #[test]
    fn a_signature_of_a_key_is_not_one_of_another_key() {
        let [one, other] = [1, 2].map(|secret| IdentityKey::from_bytes(&[secret; 32]).expect("a key"));
        let (verified, signature) = (Verified::default(), one.sign([7; 32]));
        for _ in 0..2 {
            assert!(verified.check(&one.public(), [7; 32], &signature));
            assert!(!verified.check(&other.public(), [7; 32], &signature));
            assert!(!verified.check(&one.public(), [8; 32], &signature));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_latest_is_known() {
        let verified = Verified::default();
        let all = u64::try_from(PLACES).expect("few") * 2;
        for digest in 0..all {
            ask(&verified, (1, digest, 1), true);
            assert_eq!(ask(&verified, (1, digest, 1), false), (true, false));
        }
        assert_eq!(verified.0.lock().expect("not poisoned").len(), PLACES);
        let known = (0..all).filter(|digest| !ask(&verified, (1, *digest, 1), false).1).count();
        assert!((PLACES / 2..=PLACES).contains(&known), "{known}");
    }
}
