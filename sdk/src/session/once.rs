//! Payments that are made once, however often their caller asks for them.
//!
//! Who asks for a payment and does not hear of its end (a page that was closed, a server that was restarted) asks
//! again with the same key, and is told of the same payment. Which payment a key stands for is saved in the same step
//! as the payment, before anything of it leaves.

use super::{Now, Session};
use crate::wallet::{
    PaymentRequest, SavedState, StateChange, StateError, WalletError, read_state, state_value, under_state,
};
use bitcoin::{
    Psbt, Txid,
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

    /// What has to be saved.
    pub(super) fn take_change(&mut self, change: &mut StateChange) {
        for key in std::mem::take(&mut self.touched) {
            change.insert(format!("once/{key}"), self.paid.get(&key).and_then(state_value));
        }
    }
}

impl Session {
    /// As [`Session::send`], but once for each key: with one that was used before, gives the payment that was made
    /// then, whatever became of it, and makes no other. Keys are remembered when the session is saved, the last
    /// [`IDEMPOTENCY_KEYS_MAX`] of them.
    ///
    /// # Errors
    /// As [`Session::send`]: the key stays free then. [`WalletError::KeyReused`] if it stands for another request.
    pub fn send_once(&mut self, now: Now, key: &str, request: &PaymentRequest) -> Result<Txid, WalletError> {
        self.once_for(key, request.fingerprint(), |session| session.send(now, request))
    }

    /// As [`Session::send_psbt`], but once for each key.
    ///
    /// # Errors
    /// As [`Session::send_psbt`]: the key stays free then. [`WalletError::KeyReused`] if it stands for another payment.
    pub fn send_psbt_once(&mut self, now: Now, key: &str, psbt: Psbt) -> Result<Txid, WalletError> {
        let fingerprint = sha256::Hash::hash(psbt.unsigned_tx.compute_txid().as_ref());
        self.once_for(key, fingerprint, |session| session.send_psbt(now, psbt))
    }

    fn once_for(
        &mut self,
        key: &str,
        fingerprint: sha256::Hash,
        send: impl FnOnce(&mut Self) -> Result<Txid, WalletError>,
    ) -> Result<Txid, WalletError> {
        let key = sha256::Hash::hash(key.as_bytes());
        if let Some(Paid { txid, request, .. }) = self.once.paid.get(&key) {
            let same = *request == fingerprint;
            return if same { Ok(*txid) } else { Err(WalletError::KeyReused { txid: *txid }) };
        }
        let txid = send(self)?;
        let number = self.once.order.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        self.once.insert(key, Paid { txid, request: fingerprint, number });
        self.once.touched.insert(key);
        Ok(txid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::{
            PaymentState,
            tests::{START, certify, drain_saving, live, opened},
        },
        wallet::tests::{confirmed, mine, request},
    };
    use bitcoin::Amount;

    #[test]
    fn a_payment_is_made_once_for_each_key_and_also_after_a_restart() {
        let mut disk = SavedState::new();
        let mut session = opened(&disk);
        certify(&mut session);
        mine(&mut session.wallet, 5);
        confirmed(&mut session.wallet, false);
        let payment = request(&mut session.wallet, false).exact(Amount::from_sat(10_000));
        let too_much = payment.clone().exact(Amount::from_sat(90_000));
        session.send_once(START, "invoice 17", &too_much).expect_err("the key stays free");
        let txid = session.send_once(START, "invoice 17", &payment).expect("pays");
        assert_eq!(session.send_once(START, "invoice 17", &payment), Ok(txid));
        assert_eq!(session.payments().count(), 1);
        let other = payment.clone().exact(Amount::from_sat(11_000));
        assert_eq!(session.send_once(START, "invoice 17", &other), Err(WalletError::KeyReused { txid }));
        drain_saving(&mut session, &mut disk);

        let mut again = opened(&disk);
        assert_eq!(again.send_once(START, "invoice 17", &payment), Ok(txid));
        assert_eq!(again.payments().map(|(txid, _)| txid).collect::<Vec<_>>(), [txid]);
        // Also when it has ended.
        again.finish(txid, PaymentState::Failed { message: "refused".to_owned(), retry: true });
        assert_eq!(again.send_once(START, "invoice 17", &payment), Ok(txid));
        assert!(matches!(again.payment(txid), Some(PaymentState::Failed { .. })));
        certify(&mut again);
        mine(&mut again.wallet, 5);
        let other = again.send_once(START, "invoice 18", &payment).expect("its coin is free again");
        assert_ne!(other, txid);
        let Some(crate::proposal::Proposal::Joint(joint)) =
            again.payments.get(&other).map(|one| one.proposal.clone())
        else {
            panic!("a joint payment")
        };
        assert_eq!(
            again.send_psbt_once(START, "invoice 19", joint.psbt.clone()),
            Ok(other),
            "as it is under way"
        );
        assert_eq!(again.send_psbt_once(START, "invoice 19", joint.psbt), Ok(other));
        let taken = again.send_once(START, "invoice 19", &payment);
        assert_eq!(taken, Err(WalletError::KeyReused { txid: other }));
    }

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

    #[test]
    fn what_differs_has_another_fingerprint() {
        let mut session = live();
        let base = request(&mut session.wallet, false);
        let to = base.destination.clone();
        let (one, two) = (Amount::from_sat(1), Amount::from_sat(2));
        let coin = bitcoin::OutPoint::null();
        let all = [
            base.clone(),
            base.clone().exact(one),
            base.clone().exact(two),
            base.clone().everything(),
            base.clone().exact(one).and(to.clone(), one),
            base.clone().exact(one).and(to, two),
            base.clone().exact(one).data(b""),
            base.clone().exact(one).data(b"x"),
            base.clone().exact(one).with_coins([coin]),
            base.exact(one).fee_rate(bitcoin::FeeRate::BROADCAST_MIN),
        ];
        let prints: BTreeSet<_> = all.iter().map(PaymentRequest::fingerprint).collect();
        assert_eq!(prints.len(), all.len());
    }
}
