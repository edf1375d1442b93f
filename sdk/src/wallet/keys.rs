//! Keys from twelve words.
//!
//! | key | path | what for |
//! | --- | --- | --- |
//! | co-signing | `m/21817'/coin'/account'/0'` | the wallet's half of the account key |
//! | authorisation | `m/21817'/coin'/account'/1'` | tells the nodes that a proposal is the owner's |
//! | recovery | `m/87'/coin'/account'` (BIP87) | the time-locked path |
//!
//! `coin` is 0 on mainnet and 1 elsewhere (SLIP-44). All keys come from the seed, so twelve words restore everything.

use super::WalletError;
use crate::{
    Federation,
    account::{AccountPolicy, AccountRecord, JointAccount},
    digest::{IdentityKey, secp},
    frost::WalletSecret,
};
use bip39::Mnemonic;
use bitcoin::{
    NetworkKind,
    bip32::{ChildNumber, Xpriv, Xpub},
    key::Keypair,
};
use std::fmt;
use zeroize::{Zeroize as _, Zeroizing};

/// Purpose of Quorate's own keys.
const PURPOSE: u32 = 21_817;
/// Purpose of the recovery key (BIP87).
const RECOVERY_PURPOSE: u32 = 87;

/// Secret words of a wallet; redacted in `Debug`, erased on drop.
///
/// ```
/// use quorate::wallet::SecretWords;
/// let words = SecretWords::parse(
///     "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
/// )?;
/// assert_eq!(words.reveal().split(' ').count(), 12);
/// # Ok::<(), quorate::wallet::WalletError>(())
/// ```
#[derive(Clone)]
pub struct SecretWords(Mnemonic);

impl SecretWords {
    /// Twelve new words from 16 bytes of the platform's randomness (BIP39).
    ///
    /// # Errors
    /// The platform has no source of randomness.
    pub fn generate() -> Result<Self, WalletError> {
        let mut entropy = Zeroizing::new([0; 16]);
        getrandom::getrandom(entropy.as_mut()).map_err(|_| WalletError::Randomness)?;
        Mnemonic::from_entropy(entropy.as_ref()).map(Self).map_err(|_| WalletError::Randomness)
    }

    /// Reads words; checks count, spelling and checksum.
    ///
    /// # Errors
    /// [`WalletError::Words`] says which word is wrong.
    pub fn parse(words: &str) -> Result<Self, WalletError> {
        Mnemonic::parse_normalized(words.trim()).map(Self).map_err(WalletError::Words)
    }

    /// The words in the clear, for the user's backup.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string())
    }
}

impl fmt::Debug for SecretWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretWords(..)")
    }
}

/// The keys of one account of a wallet.
pub(crate) struct WalletKeys {
    wallet: Keypair,
    pub(crate) authorisation: IdentityKey,
    recovery: Xpriv,
}

impl WalletKeys {
    pub(crate) fn derive(words: &SecretWords, kind: NetworkKind, account: u32) -> Result<Self, WalletError> {
        let mut seed = Zeroizing::new(words.0.to_seed_normalized(""));
        let master = Xpriv::new_master(kind, seed.as_ref()).map_err(|_| WalletError::Derivation)?;
        seed.zeroize();
        let coin = u32::from(!kind.is_mainnet());
        let derive = |path: &[u32]| {
            let hardened = |index: &u32| ChildNumber::from_hardened_idx(*index);
            let path = path.iter().map(hardened).collect::<Result<Vec<_>, _>>();
            let path = path.map_err(|_| WalletError::Derivation)?;
            master.derive_priv(secp(), &path).map_err(|_| WalletError::Derivation)
        };
        let wallet = derive(&[PURPOSE, coin, account, 0])?.to_keypair(secp());
        let authorisation = derive(&[PURPOSE, coin, account, 1])?.to_keypair(secp()).into();
        let recovery = derive(&[RECOVERY_PURPOSE, coin, account])?;
        Ok(Self { wallet, authorisation, recovery })
    }

    pub(crate) fn account(
        &self,
        federation: &Federation,
        policy: AccountPolicy,
    ) -> Result<JointAccount, WalletError> {
        let recovery = Xpub::from_priv(secp(), &self.recovery);
        let record =
            AccountRecord::new(federation, &self.wallet, self.authorisation.public(), recovery, policy);
        Ok(JointAccount::new(federation, record)?)
    }

    pub(crate) fn secret(&self) -> WalletSecret {
        let mut key = self.wallet.secret_key();
        let secret = WalletSecret::new(&key);
        key.non_secure_erase();
        secret
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
