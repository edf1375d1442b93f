//! Which addresses a wallet gives out, and which it watches.

use super::{GAP_LIMIT_MAX, Wallet, WalletError};
use crate::account::{Address, Keychain, KeychainIndex};
use bitcoin::ScriptBuf;

impl Wallet {
    /// Gives out the next receive address.
    ///
    /// # Errors
    /// 2^31 addresses have been given out.
    pub fn next_address(&mut self) -> Result<Address, WalletError> {
        self.take_next(Keychain::Receive)
    }

    /// An address to show to anyone: the same until somebody has paid to it, by a verified proof.
    /// [`Wallet::next_address`] never gives this one to a payer of its own. Showing it again keeps the addresses that
    /// nobody used within the gap that a restored wallet looks across.
    ///
    /// # Errors
    /// 2^31 addresses have been given out.
    pub fn unused_address(&mut self) -> Result<Address, WalletError> {
        let shown = self.shown.and_then(|index| {
            let state = self.keychains.get(&Keychain::Receive)?;
            state.derived.get(usize::try_from(index).ok()?)
        });
        if let Some(shown) = shown
            && !self.coins_at(&shown.script_pubkey).any(|coin| coin.is_verified(&self.chain))
        {
            return Ok(shown.clone());
        }
        let address = self.next_address()?;
        self.shown = Some(address.position.index);
        self.touched.keychains = true;
        Ok(address)
    }

    /// How many addresses after the last one that was given out or used are watched; [`GAP_LIMIT`](super::GAP_LIMIT)
    /// unless set, [`GAP_LIMIT_MAX`] at most. A wallet that is restored from its words finds what was paid to addresses
    /// with smaller gaps between them.
    ///
    /// # Errors
    /// A key cannot be derived.
    pub fn set_gap_limit(&mut self, addresses: u32) -> Result<(), WalletError> {
        self.gap_limit = addresses.clamp(1, GAP_LIMIT_MAX);
        self.derive_ahead()
    }

    /// Scripts to subscribe to that were not given before.
    pub fn take_unwatched(&mut self) -> Vec<ScriptBuf> {
        std::mem::take(&mut self.unwatched)
    }

    /// All scripts of the wallet.
    pub fn scripts(&self) -> Vec<ScriptBuf> {
        self.addresses.keys().cloned().collect()
    }

    /// Whether a script is the wallet's.
    pub fn owns(&self, script: &ScriptBuf) -> bool {
        self.addresses.contains_key(script)
    }

    pub(super) fn peek_next(&mut self, keychain: Keychain) -> Result<Address, WalletError> {
        let state = self.keychains.entry(keychain).or_default();
        let index = usize::try_from(state.next).map_err(|_| WalletError::Derivation)?;
        state.derived.get(index).cloned().ok_or(WalletError::Derivation)
    }

    fn take_next(&mut self, keychain: Keychain) -> Result<Address, WalletError> {
        let address = self.peek_next(keychain)?;
        self.mark_used(&address.script_pubkey)?;
        Ok(address)
    }

    pub(super) fn mark_used(&mut self, script: &ScriptBuf) -> Result<(), WalletError> {
        if let Some(address) = self.addresses.get(script) {
            let KeychainIndex { keychain, index } = address.position;
            let state = self.keychains.entry(keychain).or_default();
            if index >= state.next {
                state.next = index + 1;
                self.touched.keychains = true;
                self.derive_ahead()?;
            }
        }
        Ok(())
    }

    pub(super) fn derive_ahead(&mut self) -> Result<(), WalletError> {
        for keychain in [Keychain::Receive, Keychain::Change] {
            let state = self.keychains.entry(keychain).or_default();
            let until = state.next.saturating_add(self.gap_limit);
            let from = u32::try_from(state.derived.len()).map_err(|_| WalletError::Derivation)?;
            for index in from..until {
                let address = self.account.address(KeychainIndex { keychain, index })?;
                self.unwatched.push(address.script_pubkey.clone());
                self.addresses.insert(address.script_pubkey.clone(), address.clone());
                state.derived.push(address);
            }
        }
        Ok(())
    }
}
