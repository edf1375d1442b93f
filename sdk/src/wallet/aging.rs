//! Coins grow old: they can be paid with until their recovery path opens soon (the horizon), and are moved home before.

use super::{Coin, CoinState, Wallet, WalletError, build};
use crate::{account::Keychain, relay_policy::INPUTS_MAX};
use bitcoin::{Amount, FeeRate, OutPoint, Psbt};

/// Blocks before its horizon at which a coin is said to grow old, two weeks; for accounts with a short delay a
/// quarter of the time in which their coins can be paid with.
pub const EXPIRY_NOTICE: u32 = 2_016;

impl Wallet {
    /// Height at which a coin in a block can be paid with no longer, unless it is moved home before. None for coins
    /// that are in no block, or none at all.
    ///
    /// ```
    /// # fn example(wallet: &quorate::wallet::Wallet) {
    /// let tip = wallet.chain().tip().height;
    /// for coin in wallet.coins() {
    ///     if let Some(height) = wallet.expires_at(&coin.outpoint) {
    ///         println!("{} can be paid with for {} more blocks", coin.outpoint, height.saturating_sub(tip));
    ///     }
    /// }
    /// # }
    /// ```
    pub fn expires_at(&self, outpoint: &OutPoint) -> Option<u32> {
        let coin = self.book.coin(outpoint).filter(|coin| self.book.is_unspent(coin))?;
        let block = coin.block.filter(|block| self.chain.contains(block))?;
        let demands = self.demands();
        Some((block.height + demands.recovery_delay).saturating_sub(demands.recovery_margin))
    }

    /// Coins that can be paid with and will expire within [`EXPIRY_NOTICE`], oldest first.
    pub fn aging(&self) -> Vec<&Coin> {
        let notice = EXPIRY_NOTICE.min(self.payable_blocks() / 4);
        let until = self.chain.tip().height.saturating_add(notice);
        let mut aging: Vec<(u32, &Coin)> = self
            .book
            .unspent(self.demands())
            .filter(|(_, state)| matches!(state, CoinState::Spendable { .. }))
            .filter_map(|(coin, _)| Some((self.expires_at(&coin.outpoint)?, coin)))
            .filter(|(height, _)| *height <= until)
            .collect();
        aging.sort_by_key(|(height, coin)| (*height, coin.outpoint));
        aging.into_iter().map(|(_, coin)| coin).collect()
    }

    /// Blocks for which a coin of this account can be paid with, from its block on.
    pub(crate) fn payable_blocks(&self) -> u32 {
        let demands = self.demands();
        demands.recovery_delay.saturating_sub(demands.recovery_margin)
    }

    pub(crate) fn check_fee_rate(&self, rate: FeeRate) -> Result<(), WalletError> {
        build::check_rate(rate)
    }

    /// Coins that will expire soon or have, with value and height.
    pub(crate) fn aging_or_expired(&self) -> Vec<(OutPoint, Amount, u32)> {
        let expired = self.book.unspent(self.demands());
        let expired = expired.filter(|(_, state)| matches!(state, CoinState::Expired { .. }));
        let all = expired.map(|(coin, _)| coin).chain(self.aging());
        all.filter_map(|coin| Some((coin.outpoint, coin.value, self.expires_at(&coin.outpoint)?))).collect()
    }

    /// Builds the transaction that moves old coins home, which makes them young: those that have expired, which are
    /// spendable again once it is in a block; if there are none, those of [`Wallet::aging`], which stay spendable. Up
    /// to 64 at a time, and only those that are worth more than moving them costs, and not frozen. `None` if there is
    /// nothing to do.
    ///
    /// # Errors
    /// A fee rate out of bounds.
    pub fn create_refresh(&mut self, rate: FeeRate) -> Result<Option<Psbt>, WalletError> {
        let home = self.peek_next(Keychain::Change)?;
        let expired = self.book.unspent(self.demands());
        let expired = expired.filter(|(_, state)| matches!(state, CoinState::Expired { .. }));
        let mut old: Vec<&Coin> = expired.map(|(coin, _)| coin).collect();
        old.sort_by_key(|coin| (coin.block.map(|block| block.height), coin.outpoint));
        if old.iter().all(|coin| !build::is_economic(coin.value, rate) || self.is_frozen(&coin.outpoint)) {
            old = self.aging();
        }
        let free = old.into_iter().filter(|coin| !self.is_frozen(&coin.outpoint));
        let worth = free.filter(|coin| build::is_economic(coin.value, rate)).take(INPUTS_MAX);
        let coins: Vec<_> = worth.filter_map(|coin| self.describe_coin(coin)).collect();
        build::all_home(rate, &self.funds(coins, home))
    }
}
