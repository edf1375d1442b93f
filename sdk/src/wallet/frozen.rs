//! Coins that their owner keeps out of payments.

use super::{Wallet, WalletError};
use bitcoin::OutPoint;
use std::collections::BTreeSet;

impl Wallet {
    /// Leaves a coin out of payments, lifts and refreshes from now on, also after the wallet is opened again, until
    /// [`Wallet::unfreeze`]; it still counts in the balance. One that grows old stays where it is: its owner is told
    /// ([`Event::CoinExpiring`](crate::session::Event::CoinExpiring)). A payment that names it
    /// ([`PaymentRequest::with_coins`](super::PaymentRequest::with_coins)) spends it all the same.
    ///
    /// # Errors
    /// It is no unspent coin of this wallet.
    pub fn freeze(&mut self, outpoint: OutPoint) -> Result<(), WalletError> {
        let coin = self.book.coin(&outpoint).filter(|coin| self.book.is_unspent(coin));
        coin.ok_or(WalletError::Coin { outpoint, retry: false })?;
        self.touched.frozen |= self.frozen.insert(outpoint);
        Ok(())
    }

    /// Lets payments spend a coin again; one that is not frozen stays as it is.
    pub fn unfreeze(&mut self, outpoint: OutPoint) {
        self.touched.frozen |= self.frozen.remove(&outpoint);
    }

    /// Whether a coin is left out of payments.
    pub fn is_frozen(&self, outpoint: &OutPoint) -> bool {
        self.frozen.contains(outpoint)
    }

    /// What is kept of it: coins that are spent are forgotten.
    pub(super) fn frozen_to_save(&mut self) -> &BTreeSet<OutPoint> {
        let book = &self.book;
        self.frozen.retain(|outpoint| book.coin(outpoint).is_some_and(|coin| book.is_unspent(coin)));
        &self.frozen
    }
}
