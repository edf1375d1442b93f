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
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// Signatures that are remembered, some 100 bytes each; the oldest go.
const SIGNATURES_MAX: usize = 4_096;

/// Shared by all copies of a federation.
#[derive(Clone, Default)]
pub(super) struct Verified(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    known: HashSet<sha256::Hash>,
    /// The same, the oldest first.
    order: VecDeque<sha256::Hash>,
}

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
        let key = sha256::Hash::from_engine(engine);
        let memory = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory().known.contains(&key) {
            return true;
        }
        if !verify() {
            return false;
        }
        let mut memory = memory();
        if memory.known.insert(key) {
            memory.order.push_back(key);
        }
        while memory.order.len() > SIGNATURES_MAX
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.known.remove(&oldest);
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
    fn the_oldest_are_forgotten() {
        let verified = Verified::default();
        let all = u64::try_from(SIGNATURES_MAX).expect("few") + 1;
        for digest in 0..all {
            ask(&verified, (1, digest, 1), true);
        }
        assert_eq!(ask(&verified, (1, 1, 1), true), (true, false));
        assert_eq!(ask(&verified, (1, 0, 1), true), (true, true));
        let memory = verified.0.lock().expect("not poisoned");
        assert_eq!((memory.known.len(), memory.order.len()), (SIGNATURES_MAX, SIGNATURES_MAX));
    }
}
