//! Leaving: an account's coins, moved by twelve words and a descriptor alone. No node and no bridge is asked.
//!
//! Every address of an account has one script leaf, by which the recovery key alone can spend a coin once
//! `recovery_delay` blocks have followed the coin's own (design, section 3). A [`Recovery`] is made from the public
//! descriptor. It finds the coins ([`Scan`]; `source` has drivers for Esplora and Bitcoin Core), says when each
//! opens, and builds the sweep as a PSBT. The words are needed for [`Recovery::sign`] only, which is done without a
//! connection.
//!
//! What a source says is not trusted with money: a Taproot signature covers value and script of every spent output
//! (BIP341), so a false value makes an invalid transaction and not a high fee, and a false height one that is refused
//! until its time.

mod error;
mod kit;
mod list;
mod scan;
mod sign;
#[cfg(feature = "recovery")]
pub mod source;
mod sweep;

pub use error::RecoveryError;
pub use kit::BackupKit;
pub use scan::{Query, Scan};
pub use sign::Signed;
pub use sweep::{SWEEP_INPUTS_MAX, Sweep, SweepRequest};

use crate::account::{AccountDescriptor, Address, Keychain, KeychainIndex};
use bitcoin::{Amount, Network, NetworkKind, OutPoint, Script};

/// Unused addresses after which a search ends, per keychain. Wider than [`crate::wallet::GAP_LIMIT`]: what is not found
/// here is not found at all.
pub const RECOVERY_GAP: u32 = 100;
/// Addresses per keychain that are looked at in the end, unless set: a till that gave out more of them asks for more.
pub const RECOVERY_ADDRESSES: u32 = 20_000;

/// An account that is left.
///
/// ```
/// # fn example(text: &str) -> Result<(), quorate::recovery::RecoveryError> {
/// use quorate::recovery::Recovery;
/// let recovery = Recovery::new(text, bitcoin::Network::Regtest)?;
/// println!("its coins open {} blocks after their own", recovery.descriptor().recovery_delay());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    descriptor: AccountDescriptor,
    network: Network,
    addresses_max: u32,
}

/// A coin of the account, as a source tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoverableCoin {
    /// The coin.
    pub outpoint: OutPoint,
    /// Its value.
    pub value: Amount,
    /// Which address of the account has it.
    pub position: KeychainIndex,
    /// Height of its block; none while it waits for one. Its delay counts from there.
    pub height: Option<u32>,
}

/// What a source found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Height of the source's tip.
    pub tip: u32,
    /// The coins, oldest first.
    pub coins: Vec<RecoverableCoin>,
}

impl Recovery {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// It is not the descriptor of a joint account, or of another network.
    pub fn new(descriptor: &str, network: Network) -> Result<Self, RecoveryError> {
        let descriptor: AccountDescriptor = descriptor.parse()?;
        if descriptor.network_kind() != NetworkKind::from(network) {
            return Err(RecoveryError::Network { network });
        }
        Ok(Self { descriptor, network, addresses_max: RECOVERY_ADDRESSES })
    }

    /// Sets how many addresses per keychain are looked at in the end; [`RECOVERY_ADDRESSES`] unless set. A search by
    /// gap seldom comes so far.
    #[must_use]
    pub fn with_addresses_max(mut self, addresses: u32) -> Self {
        self.addresses_max = addresses.clamp(1, 1 << 31);
        self
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &AccountDescriptor {
        &self.descriptor
    }

    /// The network.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Derives one address.
    ///
    /// # Errors
    /// The index is 2^31 or more.
    pub fn address(&self, position: KeychainIndex) -> Result<Address, RecoveryError> {
        Ok(self.descriptor.address(position)?)
    }

    /// Looks for the address of a script on both keychains.
    pub fn position(&self, script: &Script) -> Option<KeychainIndex> {
        let positions = (0..self.addresses_max).flat_map(|index| {
            [Keychain::Receive, Keychain::Change].map(|keychain| KeychainIndex { keychain, index })
        });
        positions.into_iter().find(|position| {
            self.descriptor.address(*position).is_ok_and(|address| *address.script_pubkey == *script)
        })
    }

    /// Height from which a block can have the sweep of a coin; none while the coin waits for its own block.
    ///
    /// ```
    /// # use quorate::recovery::{RecoverableCoin, Recovery};
    /// # fn example(recovery: &Recovery, coin: &RecoverableCoin, tip: u32) {
    /// match recovery.opens_at(coin) {
    ///     Some(height) => println!("opens in {} blocks", height.saturating_sub(tip)),
    ///     None => println!("is not in a block yet"),
    /// }
    /// # }
    /// ```
    pub fn opens_at(&self, coin: &RecoverableCoin) -> Option<u32> {
        Some(coin.height?.saturating_add(self.descriptor.recovery_delay().into()))
    }

    /// Whether the next block after `tip` can have the sweep of a coin.
    pub fn is_open(&self, coin: &RecoverableCoin, tip: u32) -> bool {
        self.opens_at(coin).is_some_and(|height| height <= tip.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
