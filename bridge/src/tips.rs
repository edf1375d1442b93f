//! The tip of the chain as the nodes tell of it: one that f + 1 of them say, so that one honest node is among them and
//! no f can make it look higher.

use quorate_protocol::wire::ChainTip;
use std::collections::{BTreeMap, VecDeque};

/// A stream of events from a node, by the driver's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Tips of a node that are remembered: nodes come to a block one after the other.
const REMEMBERED: usize = 16;

/// What each node said last, and what is believed.
#[derive(Debug)]
pub(crate) struct Tips {
    needed: usize,
    told: BTreeMap<LinkId, VecDeque<ChainTip>>,
    believed: Option<ChainTip>,
}

impl Tips {
    /// For a federation with so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        Self { needed: faulty_max(nodes) + 1, told: BTreeMap::new(), believed: None }
    }

    /// The tip that is believed.
    pub(crate) fn believed(&self) -> Option<ChainTip> {
        self.believed
    }

    /// A node tells of its tip. Gives the tip that is believed, if that is a new one.
    pub(crate) fn take(&mut self, link: LinkId, tip: ChainTip) -> Option<ChainTip> {
        let told = self.told.entry(link).or_default();
        if !told.contains(&tip) {
            if told.len() >= REMEMBERED {
                told.pop_front();
            }
            told.push_back(tip);
        }
        let said = self.told.values().filter(|told| told.contains(&tip)).count();
        let higher = self.believed.is_none_or(|known| known.block.height < tip.block.height);
        if said < self.needed || !higher {
            return None;
        }
        self.believed = Some(tip);
        self.believed
    }

    /// A node's stream is gone.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.told.remove(&link);
    }
}

/// The most nodes of so many that may be faulty.
pub(crate) fn faulty_max(nodes: usize) -> usize {
    nodes.saturating_sub(1) / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{BlockHash, hashes::Hash as _};
    use quorate_protocol::wire::BlockRef;

    fn tip(height: u32, byte: u8) -> ChainTip {
        ChainTip { block: BlockRef { height, hash: BlockHash::from_byte_array([byte; 32]) } }
    }

    #[test]
    fn no_f_nodes_make_the_tip_look_higher_or_silence_it() {
        let mut tips = Tips::new(7);
        let liars = [LinkId(1), LinkId(2)];
        for liar in liars {
            assert_eq!(tips.take(liar, tip(u32::MAX, 9)), None);
        }
        assert_eq!(tips.take(LinkId(3), tip(10, 1)), None);
        assert_eq!(tips.take(LinkId(4), tip(10, 2)), None, "another block at that height");
        assert_eq!(tips.take(LinkId(5), tip(10, 1)), None);
        assert_eq!(tips.take(LinkId(6), tip(10, 1)), Some(tip(10, 1)));
        assert_eq!(tips.take(LinkId(7), tip(10, 1)), None, "once");
        // Liars flood; what honest nodes said is still there.
        for height in 0..100 {
            liars.iter().for_each(|liar| assert_eq!(tips.take(*liar, tip(1_000 + height, 9)), None));
        }
        // Nodes come to a block one after the other, and go on.
        assert_eq!(tips.take(LinkId(3), tip(11, 1)), None);
        assert_eq!(tips.take(LinkId(3), tip(12, 1)), None);
        assert_eq!(tips.take(LinkId(4), tip(11, 1)), None);
        assert_eq!(tips.take(LinkId(5), tip(11, 1)), Some(tip(11, 1)));
        assert_eq!(tips.believed(), Some(tip(11, 1)));
    }

    #[test]
    fn a_node_that_is_gone_says_nothing_any_more() {
        let mut tips = Tips::new(4);
        assert_eq!(tips.take(LinkId(1), tip(5, 1)), None);
        tips.forget(LinkId(1));
        assert_eq!(tips.take(LinkId(2), tip(5, 1)), None);
        assert_eq!(tips.take(LinkId(3), tip(5, 1)), Some(tip(5, 1)));
    }
}
