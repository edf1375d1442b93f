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
use std::collections::VecDeque;

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

/// Keys, by their hash: they may be long, and may be somebody's name. The oldest is first.
#[derive(Debug, Default)]
pub(super) struct Once {
    paid: VecDeque<(sha256::Hash, Paid)>,
    /// What has to be saved.
    change: StateChange,
}

impl Once {
    pub(super) fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut saved = Vec::new();
        for (key, hash, value) in under_state(state, "once/") {
            let hash: sha256::Hash = hash.parse().map_err(|error| StateError::damaged(key, error))?;
            saved.push((hash, read_state::<Paid>(key, value)?));
        }
        saved.sort_by_key(|(_, paid)| paid.number);
        self.paid = saved.into();
        Ok(())
    }

    /// What was paid with a key, if it was used: an error if that was something else.
    pub(super) fn known(&self, key: &str, request: sha256::Hash) -> Option<Result<Txid, WalletError>> {
        let key = sha256::Hash::hash(key.as_bytes());
        let (_, paid) = self.paid.iter().find(|(known, _)| *known == key)?;
        let txid = paid.txid;
        Some(if paid.request == request { Ok(txid) } else { Err(WalletError::KeyReused { txid }) })
    }

    /// A key that is not known stands for a payment from now on.
    pub(super) fn remember(&mut self, key: &str, request: sha256::Hash, txid: Txid) {
        let key = sha256::Hash::hash(key.as_bytes());
        // As on the disk: the next one to read it has to know which is the oldest.
        let number = self.paid.back().map_or(0, |(_, last)| last.number.saturating_add(1));
        let paid = Paid { txid, request, number };
        self.change.insert(format!("once/{key}"), state_value(&paid));
        self.paid.push_back((key, paid));
        while self.paid.len() > IDEMPOTENCY_KEYS_MAX
            && let Some((oldest, _)) = self.paid.pop_front()
        {
            self.change.insert(format!("once/{oldest}"), None);
        }
    }

    /// What has to be saved.
    pub(super) fn take_change(&mut self, change: &mut StateChange) {
        change.append(&mut self.change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_keys_are_forgotten_on_the_disk_too() {
        let mut once = Once::default();
        let (txid, request) = (Txid::from_byte_array([0; 32]), sha256::Hash::hash(b""));
        let mut disk = SavedState::new();
        for number in 0..IDEMPOTENCY_KEYS_MAX + 2 {
            once.remember(&number.to_string(), request, txid);
            let mut change = StateChange::new();
            once.take_change(&mut change);
            crate::wallet::apply_change(&mut disk, change);
        }
        assert_eq!((once.paid.len(), disk.len()), (IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_KEYS_MAX));
        let mut again = Once::default();
        again.restore(&disk).expect("reads");
        for (key, known) in [("0", None), ("1", None), ("2", Some(Ok(txid)))] {
            assert_eq!(again.known(key, request), known, "{key}");
        }
        assert!(matches!(
            again.known("2", sha256::Hash::hash(b"other")),
            Some(Err(WalletError::KeyReused { .. }))
        ));
    }

    #[test]
    fn the_order_of_keys_outlives_restarts() {
        let (txid, request) = (Txid::from_byte_array([0; 32]), sha256::Hash::hash(b""));
        let mut disk = SavedState::new();
        let mut save = |once: &mut Once| {
            let mut change = StateChange::new();
            once.take_change(&mut change);
            crate::wallet::apply_change(&mut disk, change);
            let mut again = Once::default();
            again.restore(&disk).expect("reads");
            again
        };
        let mut once = Once::default();
        for number in 0..2 * IDEMPOTENCY_KEYS_MAX {
            once.remember(&number.to_string(), request, txid);
        }
        let mut once = save(&mut once);
        once.remember("x", request, txid);
        let mut once = save(&mut once);
        once.remember("y", request, txid);
        let once = save(&mut once);
        assert_eq!(once.paid.len(), IDEMPOTENCY_KEYS_MAX);
        let oldest = (IDEMPOTENCY_KEYS_MAX + 2).to_string();
        for key in ["x", "y", &oldest] {
            assert_eq!(once.known(key, request), Some(Ok(txid)), "{key}");
        }
        assert_eq!(once.known(&(IDEMPOTENCY_KEYS_MAX + 1).to_string(), request), None);
    }

    #[test]
    fn numbers_on_a_damaged_disk_stop_nothing() {
        let paid =
            |number| Paid { txid: Txid::from_byte_array([1; 32]), request: sha256::Hash::hash(b""), number };
        let mut state = SavedState::new();
        for (key, number) in [("a", u64::MAX), ("b", 7), ("c", 7)] {
            let hash = sha256::Hash::hash(key.as_bytes());
            state.insert(format!("once/{hash}"), state_value(&paid(number)).expect("written"));
        }
        let mut once = Once::default();
        once.restore(&state).expect("reads");
        once.remember("d", sha256::Hash::hash(b""), Txid::from_byte_array([2; 32]));
        assert_eq!(once.paid.len(), 4);
        state.insert("once/x".to_owned(), Vec::new());
        assert!(matches!(once.restore(&state), Err(StateError::Damaged { key, .. }) if key == "once/x"));
    }
}
