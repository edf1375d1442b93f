//! How much memory what a node says may take that no other one says: one faulty node could think of any number of coins
//! and proofs.

use crate::tips::LinkId;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of what a node says and too few others do. Of an honest node that is what others have not told of so far: for
/// a moment, and some 1 KB for each coin.
pub(crate) const ALONE_BYTES_MAX: usize = 256 << 20;
/// Of a coin or proof, beside its scripts and witnesses.
pub(crate) const OVERHEAD_BYTES: usize = 1_024;

/// What each node takes.
#[derive(Debug, Default)]
pub(crate) struct Alone(BTreeMap<LinkId, Arc<AtomicUsize>>);

/// Room for something that a node says, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Alone {
    /// None if the node has used up its room.
    pub(crate) fn claim(&mut self, link: LinkId, bytes: usize) -> Option<Claim> {
        let bytes = bytes.saturating_add(OVERHEAD_BYTES);
        let taken = self.0.entry(link).or_default();
        // Who holds the hub claims, and nobody else; what is dropped meanwhile only makes room.
        let fits = taken.load(Ordering::Relaxed).saturating_add(bytes) <= ALONE_BYTES_MAX;
        fits.then(|| {
            taken.fetch_add(bytes, Ordering::Relaxed);
            Claim { bytes, taken: Arc::clone(taken) }
        })
    }

    /// A node's stream is gone, and with it what it alone said.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.0.remove(&link);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_own_room_and_gets_it_back() {
        let mut alone = Alone::default();
        let half = ALONE_BYTES_MAX / 2 - OVERHEAD_BYTES;
        let first = alone.claim(LinkId(1), half).expect("room");
        let _second = alone.claim(LinkId(1), half).expect("room");
        assert!(alone.claim(LinkId(1), 0).is_none());
        assert!(alone.claim(LinkId(2), half).is_some());
        drop(first);
        assert!(alone.claim(LinkId(1), half).is_some());
        assert!(alone.claim(LinkId(1), usize::MAX).is_none());
    }
}
