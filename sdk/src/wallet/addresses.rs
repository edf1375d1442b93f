//! Which addresses a wallet gives out, and which it watches.

use super::{ADDRESSES_AHEAD_MAX, GAP_LIMIT_MAX, KeychainState, Till, Wallet, WalletError};
use crate::{
    account::{ACCOUNT_GAP, Address, Keychain, KeychainIndex},
    wire::Followed,
};
use bitcoin::ScriptBuf;
use std::collections::BTreeSet;

/// Addresses after the last one known that are looked through for a script which a server names.
const LOOK_AHEAD: u32 = 1_000;
/// How far ahead of what was given out or paid to a server's words lead at most.
const CLAIMED_MAX: u32 = 20_000;

impl Wallet {
    /// Gives out the next receive address.
    ///
    /// # Errors
    /// [`ADDRESSES_AHEAD_MAX`] have been given out after the last one that was paid to, or
    /// 2^31 in all.
    pub fn next_address(&mut self) -> Result<Address, WalletError> {
        if self.ahead() >= ADDRESSES_AHEAD_MAX {
            return Err(WalletError::AddressesUnpaid { limit: ADDRESSES_AHEAD_MAX });
        }
        self.take_next(Keychain::Receive)
    }

    /// How many receive addresses were given out after the last one that was paid to; counted when they are many.
    fn ahead(&mut self) -> u32 {
        let Some(state) = self.keychains.get(&Keychain::Receive) else { return 0 };
        let ahead = state.next.saturating_sub(state.paid);
        if ahead < ADDRESSES_AHEAD_MAX {
            return ahead;
        }
        let is_paid = |index: &u32| {
            let address = usize::try_from(*index).ok().and_then(|index| state.derived.get(index));
            address.is_some_and(|one| {
                self.coins_at(&one.script_pubkey).any(|coin| coin.is_verified(&self.chain))
            })
        };
        let (next, last) = (state.next, (state.paid..state.next).rev().find(is_paid));
        let state = self.keychains.entry(Keychain::Receive).or_default();
        state.paid = last.map_or(state.paid, |last| last + 1);
        next.saturating_sub(state.paid)
    }

    /// An address to show to anyone: the same until somebody has paid to it, by a verified proof.
    /// [`Wallet::next_address`] never gives this one to a payer of its own. Showing it again keeps the addresses that
    /// nobody used within the gap that a restored wallet looks across.
    ///
    /// # Errors
    /// Those of [`Wallet::next_address`].
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

    /// The receive address of an index, whether it was given out or not. Nothing changes by asking.
    ///
    /// # Errors
    /// The index is 2^31 or more.
    pub fn address_at(&self, index: u32) -> Result<Address, WalletError> {
        Ok(self.account.address(KeychainIndex { keychain: Keychain::Receive, index })?)
    }

    /// From now on gives out only those addresses that are this till's: no two tills of an account give out the same.
    /// It is not saved with the wallet's state.
    pub fn set_till(&mut self, till: Till) {
        self.till = till;
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

    /// Scripts to watch beyond those that nodes follow with the account: of addresses that were given out further
    /// ahead, or of a wider gap ([`Wallet::set_gap_limit`]).
    pub(crate) fn beyond(&self, followed: Followed) -> BTreeSet<ScriptBuf> {
        let wider = if self.gap_limit > ACCOUNT_GAP { self.gap_limit } else { 0 };
        let of = |(keychain, state): (&Keychain, &KeychainState)| {
            let indexes = [followed.of(*keychain), state.next.saturating_add(wider)];
            let [from, to] = indexes.map(|index| usize::try_from(index).unwrap_or(usize::MAX));
            let scripts: Vec<ScriptBuf> = state
                .derived
                .iter()
                .take(to)
                .skip(from)
                .map(|address| address.script_pubkey.clone())
                .collect();
            scripts
        };
        self.keychains.iter().flat_map(of).collect()
    }

    /// Looks for the addresses of some scripts further ahead than this wallet has derived. `true` if it found one.
    pub(crate) fn look_ahead(&mut self, is_wanted: impl Fn(&ScriptBuf) -> bool) -> Result<bool, WalletError> {
        let mut found = false;
        for keychain in [Keychain::Receive, Keychain::Change] {
            let state = self.keychains.entry(keychain).or_default();
            let from = state.derived.len();
            let reach = state.next.max(state.claimed).saturating_add(LOOK_AHEAD);
            self.derive(keychain, reach.min(self.claims_max(keychain)))?;
            let derived =
                self.keychains.get(&keychain).map(|state| state.derived.as_slice()).unwrap_or_default();
            let new = derived.get(from..).unwrap_or_default();
            let wanted: Vec<KeychainIndex> =
                new.iter().filter(|one| is_wanted(&one.script_pubkey)).map(|one| one.position).collect();
            found |= !wanted.is_empty();
            wanted.into_iter().try_for_each(|position| self.claim(position))?;
        }
        Ok(found)
    }

    /// A server says that an address has a coin: those after it are derived. Nothing is saved of it, and nothing given
    /// out differently.
    pub(super) fn claim(&mut self, position: KeychainIndex) -> Result<(), WalletError> {
        let KeychainIndex { keychain, index } = position;
        let most = self.claims_max(keychain);
        let state = self.keychains.entry(keychain).or_default();
        let claimed = index.saturating_add(1).min(most);
        if claimed > state.claimed.max(state.next) {
            state.claimed = claimed;
            self.derive_ahead()?;
        }
        Ok(())
    }

    /// How far claims lead at most.
    fn claims_max(&self, keychain: Keychain) -> u32 {
        self.keychains.get(&keychain).map_or(0, |state| state.next).saturating_add(CLAIMED_MAX)
    }

    /// Scripts to watch: those that were given out, with a gap, before those that a server's word leads to.
    pub(crate) fn scripts_in_order(&self) -> Vec<ScriptBuf> {
        let reach = |index: u32| usize::try_from(index.saturating_add(self.gap_limit)).unwrap_or(usize::MAX);
        let part = |from: usize, to: usize, state: &KeychainState| {
            let scripts =
                state.derived.iter().take(to).skip(from).map(|address| address.script_pubkey.clone());
            scripts.collect::<Vec<_>>()
        };
        let own = self.keychains.values().flat_map(|state| part(0, reach(state.next), state));
        let claimed = self.keychains.values();
        own.chain(claimed.flat_map(|state| part(reach(state.next), reach(state.claimed), state))).collect()
    }

    /// A server is gone, and its word with it.
    pub(super) fn forget_claimed(&mut self) {
        self.keychains.values_mut().for_each(|state| state.claimed = 0);
    }

    /// Whether a script is the wallet's.
    pub fn owns(&self, script: &ScriptBuf) -> bool {
        self.addresses.contains_key(script)
    }

    pub(super) fn peek_next(&mut self, keychain: Keychain) -> Result<Address, WalletError> {
        let next = self.keychains.entry(keychain).or_default().next;
        let index = self.till.first(next);
        self.derive(keychain, index.saturating_add(1))?;
        let state = self.keychains.entry(keychain).or_default();
        let index = usize::try_from(index).map_err(|_| WalletError::Derivation)?;
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
            let until = state.next.max(state.claimed).saturating_add(self.gap_limit);
            self.derive(keychain, until)?;
        }
        Ok(())
    }

    fn derive(&mut self, keychain: Keychain, until: u32) -> Result<(), WalletError> {
        let state = self.keychains.entry(keychain).or_default();
        let from = u32::try_from(state.derived.len()).map_err(|_| WalletError::Derivation)?;
        for index in from..until {
            let address = self.account.address(KeychainIndex { keychain, index })?;
            self.unwatched.push(address.script_pubkey.clone());
            self.addresses.insert(address.script_pubkey.clone(), address.clone());
            state.derived.push(address);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wallet::tests::{confirmed, mine, wallet};

    #[test]
    fn no_more_addresses_are_given_out_than_can_be_watched_and_a_payment_makes_room() {
        let mut wallet = wallet();
        mine(&mut wallet, 1);
        let first = wallet.unused_address().expect("an address");
        for _ in 1..ADDRESSES_AHEAD_MAX - 1 {
            wallet.next_address().expect("an address");
        }
        confirmed(&mut wallet, false);
        // That one was the last before the bound, and it was paid to.
        assert!((1..ADDRESSES_AHEAD_MAX).all(|_| wallet.next_address().is_ok()));
        wallet.next_address().expect("the last one");
        let refused = wallet.next_address();
        assert_eq!(refused, Err(WalletError::AddressesUnpaid { limit: ADDRESSES_AHEAD_MAX }));
        assert!(refused.is_err_and(|error| error.is_retryable()));
        assert_eq!(wallet.unused_address(), Ok(first), "one that nobody paid to is shown again");
    }
}
