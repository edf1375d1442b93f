//! Which addresses a wallet gives out, and which it watches.

use super::{GAP_LIMIT_MAX, Wallet, WalletError};
use crate::account::{ACCOUNT_GAP, Address, Keychain, KeychainIndex};
use bitcoin::ScriptBuf;
use std::collections::BTreeSet;

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

    /// Scripts of addresses further ahead than nodes follow the account: beyond [`ACCOUNT_GAP`] after the last one that
    /// was paid to. There are some if many addresses in a row were given out and none was used, or if a wider gap is
    /// looked across ([`Wallet::set_gap_limit`]).
    pub(crate) fn beyond_account(&mut self) -> BTreeSet<ScriptBuf> {
        let mut beyond = BTreeSet::new();
        for keychain in [Keychain::Receive, Keychain::Change] {
            let Some(state) = self.keychains.get(&keychain) else { continue };
            let far = |paid: u32| state.next.max(paid.saturating_add(self.gap_limit));
            if far(state.paid) <= state.paid.saturating_add(ACCOUNT_GAP) {
                continue;
            }
            let paid = self.paid(keychain).max(state.paid);
            let indexes = [paid.saturating_add(ACCOUNT_GAP), far(paid)];
            let [from, to] = indexes.map(|index| usize::try_from(index).unwrap_or(usize::MAX));
            let scripts = state.derived.iter().take(to).skip(from);
            beyond.extend(scripts.map(|address| address.script_pubkey.clone()));
            if let Some(state) = self.keychains.get_mut(&keychain) {
                state.paid = paid;
            }
        }
        beyond
    }

    /// The index after the last address of a keychain that somebody paid to, by a verified proof.
    fn paid(&self, keychain: Keychain) -> u32 {
        let verified = self.book.coins().filter(|coin| coin.is_verified(&self.chain));
        let positions = verified.filter_map(|coin| Some(self.addresses.get(&coin.script_pubkey)?.position));
        let used = positions.filter(|position| position.keychain == keychain);
        used.map(|position| position.index + 1).max().unwrap_or(0)
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
