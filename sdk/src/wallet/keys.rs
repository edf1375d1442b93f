//! Keys from twelve words.
//!
//! | key | path | what for |
//! | --- | --- | --- |
//! | co-signing | `m/21817'/coin'/account'/0'` | the wallet's half of the account key |
//! | authorisation | `m/21817'/coin'/account'/1'` | tells the nodes that a proposal is the owner's |
//! | recovery | `m/87'/coin'/account'` (BIP87) | the time-locked path |
//!
//! `coin` is 0 on mainnet and 1 elsewhere (SLIP-44). All keys come from the seed, so twelve words restore everything.

use super::{SecretWords, WalletError};
use crate::{
    Federation,
    account::{AccountPolicy, AccountRecord, JointAccount},
    digest::IdentityKey,
    frost::WalletSecret,
};
use bitcoin::{
    NetworkKind,
    bip32::{ChildNumber, DerivationPath, KeySource, Xpriv},
    secp256k1::SecretKey,
};
use quorate_protocol::curve;
use std::fmt;

/// Purpose of Quorate's own keys.
const PURPOSE: u32 = 21_817;
/// Purpose of the recovery key (BIP87).
const RECOVERY_PURPOSE: u32 = 87;

/// Which account of the words, and on which terms it is registered. They are part of the account: the same words with
/// other terms have other addresses. The backup says the delay ([`crate::recovery::BackupKit`]).
///
/// ```
/// use quorate::wallet::AccountOptions;
/// // Leaving takes 30 days, and coins are refreshed at least that often.
/// let options = AccountOptions { recovery_delay: Some(4_320), ..AccountOptions::default() };
/// assert_eq!(options.account, 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountOptions {
    /// Its number.
    pub account: u32,
    /// Blocks after which its owner can move a coin alone, within [`crate::federation::recovery_delays`]; the
    /// federation's default if absent. A coin has to be moved within that time to stay payable, so a short delay costs
    /// fees, and a long one makes leaving slow.
    pub recovery_delay: Option<u16>,
    /// What the nodes enforce for it.
    pub policy: AccountPolicy,
}

/// The keys of one account of a wallet.
pub(crate) struct WalletKeys {
    wallet: SecretKey,
    pub(crate) authorisation: IdentityKey,
    recovery: Xpriv,
    /// Fingerprint of the words' master key, and the path from there to the recovery key.
    origin: KeySource,
}

/// The recovery key of an account, from the words alone.
pub(crate) fn recovery_key(
    words: &SecretWords,
    kind: NetworkKind,
    account: u32,
) -> Result<Xpriv, WalletError> {
    let mut master = master(words, kind)?;
    let key = recovery_path(kind, account).and_then(|path| derive(&master, &path));
    master.private_key.non_secure_erase();
    key
}

fn master(words: &SecretWords, kind: NetworkKind) -> Result<Xpriv, WalletError> {
    let seed = words.seed();
    Xpriv::new_master(kind, seed.as_ref()).map_err(|_| WalletError::Derivation)
}

fn recovery_path(kind: NetworkKind, account: u32) -> Result<DerivationPath, WalletError> {
    hardened(&[RECOVERY_PURPOSE, coin(kind), account])
}

fn coin(kind: NetworkKind) -> u32 {
    u32::from(!kind.is_mainnet())
}

fn hardened(path: &[u32]) -> Result<DerivationPath, WalletError> {
    let steps = path.iter().map(|index| ChildNumber::from_hardened_idx(*index));
    steps.collect::<Result<Vec<_>, _>>().map(DerivationPath::from).map_err(|_| WalletError::Derivation)
}

fn derive(master: &Xpriv, path: &DerivationPath) -> Result<Xpriv, WalletError> {
    curve::derive(master, path).ok_or(WalletError::Derivation)
}

impl WalletKeys {
    pub(crate) fn derive(words: &SecretWords, kind: NetworkKind, account: u32) -> Result<Self, WalletError> {
        let mut master = master(words, kind)?;
        let own = |key| derive(&master, &hardened(&[PURPOSE, coin(kind), account, key])?);
        let wallet = own(0)?.private_key;
        let mut secret = own(1)?.private_key;
        let authorisation = IdentityKey::from(&secret);
        secret.non_secure_erase();
        let path = recovery_path(kind, account)?;
        let recovery = derive(&master, &path)?;
        let origin = (curve::neutered(&master).fingerprint(), path);
        master.private_key.non_secure_erase();
        Ok(Self { wallet, authorisation, recovery, origin })
    }

    /// Where the recovery key comes from.
    pub(crate) fn origin(&self) -> &KeySource {
        &self.origin
    }

    pub(crate) fn account(
        &self,
        federation: &Federation,
        options: &AccountOptions,
    ) -> Result<JointAccount, WalletError> {
        let recovery = curve::neutered(&self.recovery);
        let delay = options.recovery_delay.unwrap_or(federation.roster().recovery_delay);
        let (authorisation, policy) = (self.authorisation.public(), options.policy.clone());
        let record = AccountRecord::new(federation, &self.wallet, authorisation, recovery, delay, policy);
        record.check(federation)?;
        Ok(JointAccount::new(federation, record)?)
    }

    pub(crate) fn secret(&self) -> WalletSecret {
        WalletSecret::new(&self.wallet)
    }
}

impl Drop for WalletKeys {
    fn drop(&mut self) {
        self.wallet.non_secure_erase();
        self.recovery.private_key.non_secure_erase();
    }
}

impl fmt::Debug for WalletKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WalletKeys(..)")
    }
}
