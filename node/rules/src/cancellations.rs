//! Payments that their owners cancelled, as far as this node has seen the signed word. No node votes for one, nor asks
//! others to, unless a release forces it: then it may be final, and all that is left is to finish it.
//!
//! Kept in memory only: what is cancelled is released as well, and the release is durable.

use bitcoin::{OutPoint, Txid};
use std::collections::BTreeSet;

/// Cancellations remembered.
const CANCELS_MAX: usize = 65_536;

/// What this node has seen cancelled.
#[derive(Debug, Default)]
pub(crate) struct Cancellations {
    payments: BTreeSet<Txid>,
    /// Outpoints that were released without a lock because of a cancellation, once each.
    used: BTreeSet<(Txid, OutPoint)>,
}

impl Cancellations {
    /// Whether an old cancellation counts for a coin that nothing locks here: once, so that it does not end what the
    /// owner did later.
    pub(crate) fn is_fresh(&mut self, txid: Txid, outpoint: OutPoint) -> bool {
        let fresh = self.used.insert((txid, outpoint));
        while self.used.len() > CANCELS_MAX {
            self.used.pop_first();
        }
        fresh
    }

    pub(crate) fn contains(&self, txid: &Txid) -> bool {
        self.payments.contains(txid)
    }

    pub(crate) fn remember(&mut self, txid: Txid) {
        self.payments.insert(txid);
        while self.payments.len() > CANCELS_MAX {
            self.payments.pop_first();
        }
    }
}
