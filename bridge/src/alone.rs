//! How much a node may say that no other one says: coins that are not believed take room, and one faulty node could
//! think of any number of them.

use crate::tips::LinkId;
use std::{collections::BTreeMap, sync::Arc};

/// Coins that a node was the first to speak of and that are not believed yet. Of an honest node these are what others
/// have not told of so far, for a moment.
pub(crate) const ALONE_MAX: usize = 65_536;

/// Coins that each node alone speaks of.
#[derive(Debug, Default)]
pub(crate) struct Alone(BTreeMap<LinkId, Arc<()>>);

/// The room of one coin, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    link: LinkId,
    _room: Arc<()>,
}

impl Alone {
    /// Room for a coin that a node is the first to speak of; none if it has used up its own.
    pub(crate) fn claim(&mut self, link: LinkId) -> Option<Claim> {
        let rooms = self.0.entry(link).or_default();
        (Arc::strong_count(rooms) <= ALONE_MAX).then(|| Claim { link, _room: Arc::clone(rooms) })
    }

    /// A node's stream is gone, and with it what it alone said.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.0.remove(&link);
    }
}

impl Claim {
    /// Who was the first to speak of the coin.
    pub(crate) fn link(&self) -> LinkId {
        self.link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_own_room_and_gets_it_back() {
        let mut alone = Alone::default();
        let mut claims: Vec<Claim> = (0..ALONE_MAX).filter_map(|_| alone.claim(LinkId(1))).collect();
        assert_eq!(claims.len(), ALONE_MAX);
        assert!(alone.claim(LinkId(1)).is_none());
        assert!(alone.claim(LinkId(2)).is_some());
        claims.pop();
        assert!(alone.claim(LinkId(1)).is_some());
    }
}
