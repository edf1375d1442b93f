//! Payments that are made once, however often their caller asks for them.
//!
//! Who asks for a payment and does not hear of its end (a page that was closed, a server that was restarted) asks
//! again with the same key, and is told of the same payment. Which payment a key stands for is saved in the same step
//! as the payment, before anything of it leaves.

use crate::wallet::{SavedState, StateChange, StateError, WalletError, read_state, state_value, under_state};
use bitcoin::{
    Txid,
    hashes::{Hash as _, sha256},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Keys that are remembered; the oldest are forgotten.
pub const IDEMPOTENCY_KEYS_MAX: usize = 10_000;

/// What was paid with a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Paid {
    txid: Txid,
    /// The request's fingerprint.
    request: sha256::Hash,
    /// Counts the keys.
    number: u64,
}

/// Keys, by their hash: they may be long, and may be somebody's name.
#[derive(Debug, Default)]
pub(super) struct Once {
    paid: BTreeMap<sha256::Hash, Paid>,
    /// The same, the oldest first.
    order: BTreeMap<u64, sha256::Hash>,
    touched: BTreeSet<sha256::Hash>,
}

impl Once {
    fn insert(&mut self, key: sha256::Hash, paid: Paid) {
        self.order.insert(paid.number, key);
        self.paid.insert(key, paid);
        while self.paid.len() > IDEMPOTENCY_KEYS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.paid.remove(&oldest);
            self.touched.insert(oldest);
        }
    }

    pub(super) fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut saved = Vec::new();
        for (key, hash, value) in under_state(state, "once/") {
            let hash: sha256::Hash = hash.parse().map_err(|error| StateError::damaged(key, error))?;
            saved.push((hash, read_state::<Paid>(key, value)?));
        }
        saved.sort_by_key(|(_, paid)| paid.number);
        // Counted anew: what is on a disk may have any number, and two may have the same.
        for ((hash, paid), number) in saved.into_iter().zip(0..) {
            self.insert(hash, Paid { number, ..paid });
        }
        Ok(())
    }

    /// What was paid with a key, if it was used: an error if that was something else.
    pub(super) fn known(&self, key: &str, request: sha256::Hash) -> Option<Result<Txid, WalletError>> {
        let paid = self.paid.get(&sha256::Hash::hash(key.as_bytes()))?;
        let txid = paid.txid;
        Some(if paid.request == request { Ok(txid) } else { Err(WalletError::KeyReused { txid }) })
    }

    pub(super) fn remember(&mut self, key: &str, request: sha256::Hash, txid: Txid) {
        let key = sha256::Hash::hash(key.as_bytes());
        let number = self.order.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        self.insert(key, Paid { txid, request, number });
        self.touched.insert(key);
    }

    /// What has to be saved.
    pub(super) fn take_change(&mut self, change: &mut StateChange) {
        for key in std::mem::take(&mut self.touched) {
            change.insert(format!("once/{key}"), self.paid.get(&key).and_then(state_value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_keys_are_forgotten_on_the_disk_too() {
        let mut once = Once::default();
        let paid =
            |number| Paid { txid: Txid::from_byte_array([0; 32]), request: sha256::Hash::hash(b""), number };
        let hash = |number: u64| sha256::Hash::hash(&number.to_be_bytes());
        let all = u64::try_from(IDEMPOTENCY_KEYS_MAX).expect("few") + 2;
        for number in 0..all {
            once.insert(hash(number), paid(number));
        }
        assert_eq!((once.paid.len(), once.order.len()), (IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_KEYS_MAX));
        let mut change = StateChange::new();
        once.take_change(&mut change);
        let gone = [0, 1].map(|number| (format!("once/{}", hash(number)), None));
        assert_eq!(change, StateChange::from(gone));
    }

    #[test]
    fn keys_on_a_damaged_disk_are_counted_anew() {
        let paid =
            |number| Paid { txid: Txid::from_byte_array([1; 32]), request: sha256::Hash::hash(b""), number };
        let mut state = SavedState::new();
        for (key, number) in [("a", u64::MAX), ("b", 7), ("c", 7)] {
            let hash = sha256::Hash::hash(key.as_bytes());
            state.insert(format!("once/{hash}"), state_value(&paid(number)).expect("written"));
        }
        let mut once = Once::default();
        once.restore(&state).expect("reads");
        assert_eq!(once.order.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(once.order.last_key_value().map(|(_, key)| *key), Some(sha256::Hash::hash(b"a")));
        state.insert("once/x".to_owned(), Vec::new());
        assert!(matches!(once.restore(&state), Err(StateError::Damaged { key, .. }) if key == "once/x"));
    }
}
