//! Up to where a wallet knows what became of its coins.

use super::{Wallet, state::Settled};
use bitcoin::{OutPoint, ScriptBuf};

/// Blocks that nodes undo at most: what was told of deeper ones is not told otherwise later.
const UNDO_BLOCKS: u32 = 288;
/// Blocks after which a wallet asks for its whole history again, however well it knows it: a month. What one server
/// kept from it, another one tells.
const WHOLE_EACH: u32 = 4_320;

/// The height below which a wallet knows which coins were spent; nothing if it has to be told everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SettledUntil(Option<u32>);

impl SettledUntil {
    pub(crate) fn height(self) -> Option<u32> {
        self.0
    }
}

impl Wallet {
    /// What it need not be told again.
    pub(crate) fn settled_until(&self) -> SettledUntil {
        let tip = self.chain.tip().height;
        let recent = self.settled.filter(|settled| tip < settled.whole.saturating_add(WHOLE_EACH));
        let below = recent.map(|settled| settled.tip.min(tip).saturating_sub(UNDO_BLOCKS));
        SettledUntil(below.filter(|height| *height > 0))
    }

    /// It was told everything that is known at its tip; `whole` if from the beginning on.
    pub(crate) fn settle_until_now(&mut self, whole: bool) {
        let tip = self.chain.tip().height;
        let before = self.settled.filter(|_| !whole);
        let now = Settled { tip, whole: before.map_or(tip, |settled| settled.whole) };
        if self.settled != Some(now) && (whole || before.is_some()) {
            self.settled = Some(now);
            self.touched.settled = true;
        }
    }

    /// Coins in blocks that nothing spends, as far as this wallet knows.
    pub(crate) fn confirmed_coins(&self) -> impl Iterator<Item = (OutPoint, &ScriptBuf)> + '_ {
        let in_block = |coin: &&super::Coin| coin.block.is_some_and(|block| self.chain.contains(&block));
        let open = self.book.coins().open();
        let coins = open.filter(|coin| coin.spent_by.is_none() && coin.conflicted.is_none());
        coins.filter(in_block).map(|coin| (coin.outpoint, &coin.script_pubkey))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wallet::{
        SavedState, apply_change,
        tests::{mine, wallet},
    };

    #[test]
    fn a_wallet_knows_after_a_restart_what_it_was_told() {
        let mut told = wallet();
        mine(&mut told, 300);
        told.settle_until_now(false);
        assert_eq!(told.settled_until().height(), None, "never from the beginning on");
        told.settle_until_now(true);
        assert_eq!(told.settled_until().height(), Some(12));
        let mut saved = SavedState::new();
        apply_change(&mut saved, told.take_change());
        let mut again = wallet();
        again.restore(&saved).expect("its own state");
        assert_eq!(again.settled_until(), told.settled_until());
        mine(&mut again, 305);
        again.settle_until_now(false);
        assert_eq!(again.settled_until().height(), Some(17));
        mine(&mut again, 300 + WHOLE_EACH);
        assert_eq!(again.settled_until().height(), None, "a month later it asks for everything again");
    }
}
