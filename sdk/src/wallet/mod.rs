//! The wallet: keys, coins, history and payments, without any I/O.
//!
//! A [`Wallet`] knows what it has *verified*. A coin is spendable when the transaction that created it is final by a
//! proof that the wallet checked, or is in a block of the wallet's own header chain by a Merkle path that it checked.
//! What a server merely says counts as incoming. [`crate::session::Session`] feeds it and asks for the proofs.

mod addresses;
mod aging;
mod applying;
mod book;
mod build;
mod clusters;
mod coin_set;
mod coins;
mod consolidation;
mod destination;
mod early;
mod error;
mod frozen;
mod history;
mod keys;
mod lifting;
mod paying;
mod quote;
mod request;
mod saving;
mod settled;
mod state;
mod till;
mod words;

pub use aging::EXPIRY_NOTICE;
pub use build::FEE_UNASKED_MAX;
pub use coins::{Balance, Coin, CoinState, HistoryEntry};
pub use destination::Destination;
pub use error::{WalletError, WordsError};
pub use history::HistoryDetails;
pub use keys::AccountOptions;
pub(crate) use keys::recovery_key;
pub use quote::Quote;
pub use request::{DATA_MAX, PaymentAmount, PaymentRequest};
pub(crate) use settled::SettledUntil;
pub use state::{SavedState, StateChange, StateError, apply_change};
pub(crate) use state::{read as read_state, under as under_state, value as state_value};
pub use till::{TILLS_MAX, Till};
pub use words::SecretWords;

use crate::{
    Federation,
    account::{AccountCertificate, AccountDescriptor, AccountRecord, Address, JointAccount, Keychain},
    finality::FinalityProof,
    headers::{Checkpoint, HeaderChain},
    proposal::CheckedProposal,
    relay_policy,
};
use bitcoin::{OutPoint, ScriptBuf, Txid};
use book::CoinBook;
use coins::Demands;
pub(crate) use early::Early;
use keys::WalletKeys;
use state::{Settled, Touched};
use std::collections::{BTreeMap, BTreeSet};

/// Unused addresses that are watched beyond the last used one, per keychain (BIP44's gap limit).
pub const GAP_LIMIT: u32 = 20;
/// Most that it can be set to.
pub const GAP_LIMIT_MAX: u32 = 1000;
/// Receive addresses that are given out after the last one that was paid to, at most: a bridge watches 10,000 scripts
/// for a session beyond those that nodes follow with the account.
///
/// ```
/// use quorate::wallet::{ADDRESSES_AHEAD_MAX, GAP_LIMIT_MAX};
/// assert!(ADDRESSES_AHEAD_MAX + GAP_LIMIT_MAX <= 10_000);
/// ```
pub const ADDRESSES_AHEAD_MAX: u32 = 9_000;

/// A wallet of one joint account.
///
/// ```
/// # fn example(federation: quorate::Federation) -> Result<(), quorate::wallet::WalletError> {
/// use quorate::wallet::{AccountOptions, SecretWords, Wallet};
/// let words = SecretWords::generate()?;
/// let mut wallet = Wallet::new(federation, &words, &AccountOptions::default(), None)?;
/// println!("pay me at {}", wallet.next_address()?.to_address(wallet.federation().network()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Wallet {
    federation: Federation,
    /// Absent in a wallet that only watches.
    keys: Option<WalletKeys>,
    account: JointAccount,
    certificate: Option<AccountCertificate>,
    addresses: BTreeMap<ScriptBuf, Address>,
    keychains: BTreeMap<Keychain, KeychainState>,
    unwatched: Vec<ScriptBuf>,
    book: CoinBook,
    chain: HeaderChain,
    proposals: BTreeMap<Txid, CheckedProposal>,
    proofs: BTreeMap<Txid, FinalityProof>,
    /// Coins whose clusters nodes found too large, at this tip. A server's word: it changes an order of choice alone.
    crowded: (Option<crate::wire::BlockRef>, BTreeSet<OutPoint>),
    early: Vec<Early>,
    gap_limit: u32,
    till: Till,
    /// Index of the receive address that is shown until somebody pays to it.
    shown: Option<u32>,
    settled: Option<Settled>,
    /// Coins that their owner keeps out of payments.
    frozen: BTreeSet<OutPoint>,
    touched: Touched,
    saved_before: bool,
}

#[derive(Debug, Default)]
struct KeychainState {
    derived: Vec<Address>,
    /// Index after the last one that was given out or used.
    next: u32,
    /// Index after the last one of which a server says that it has a coin: so far is derived, and not given out.
    claimed: u32,
    /// Index after the last one that was paid to, as far as anybody has looked.
    paid: u32,
}

impl Wallet {
    /// Opens an account of the words. `checkpoint` is where header verification starts; the
    /// federation's birthday if absent or before it.
    ///
    /// # Errors
    /// A key cannot be derived, the delay is out of bounds, or the checkpoint is not the first block of a difficulty
    /// period.
    pub fn new(
        federation: Federation,
        words: &SecretWords,
        options: &AccountOptions,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        let network = federation.network();
        let keys = WalletKeys::derive(words, network.into(), options.account)?;
        let account = keys.account(&federation, options)?;
        Self::open(federation, Some(keys), account, checkpoint)
    }

    /// Opens an account to look at: it sees addresses, coins and payments, and cannot pay.
    ///
    /// ```
    /// # fn example(wallet: quorate::wallet::Wallet) -> Result<(), quorate::wallet::WalletError> {
    /// use quorate::wallet::Wallet;
    /// let record = wallet.account().record().clone();
    /// let watching = Wallet::watch(wallet.federation().clone(), record, None)?;
    /// assert_eq!(watching.account(), wallet.account());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The record is not valid for this federation.
    pub fn watch(
        federation: Federation,
        record: AccountRecord,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        record.check(&federation)?;
        let account = JointAccount::new(&federation, record)?;
        Self::open(federation, None, account, checkpoint)
    }

    fn open(
        federation: Federation,
        keys: Option<WalletKeys>,
        account: JointAccount,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        let network = federation.network();
        // Nodes know no header before the birthday.
        let birthday = federation.birthday();
        let checkpoint = checkpoint.filter(|one| one.height > birthday.height).unwrap_or(birthday);
        // The first retarget after it needs the time of its period's first block.
        let params = bitcoin::params::Params::new(network);
        let aligned = u64::from(checkpoint.height).is_multiple_of(params.difficulty_adjustment_interval());
        if !aligned && !params.no_pow_retargeting {
            return Err(WalletError::Checkpoint { height: checkpoint.height });
        }
        let mut wallet = Self {
            federation,
            keys,
            account,
            certificate: None,
            addresses: BTreeMap::new(),
            keychains: BTreeMap::new(),
            unwatched: Vec::new(),
            book: CoinBook::default(),
            chain: HeaderChain::new(network, checkpoint),
            proposals: BTreeMap::new(),
            frozen: BTreeSet::new(),
            proofs: BTreeMap::new(),
            crowded: (None, BTreeSet::new()),
            early: Vec::new(),
            gap_limit: GAP_LIMIT,
            till: Till::default(),
            shown: None,
            settled: None,
            touched: Touched::default(),
            saved_before: false,
        };
        wallet.derive_ahead()?;
        Ok(wallet)
    }

    /// The federation.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// Takes over the federation in a later epoch. Keys, addresses and account stay the same.
    pub(crate) fn adopt(&mut self, federation: Federation) {
        self.federation = federation;
        self.touched.federation = true;
    }

    /// The account.
    pub fn account(&self) -> &JointAccount {
        &self.account
    }

    /// The wallet's header chain.
    pub fn chain(&self) -> &HeaderChain {
        &self.chain
    }

    /// The account certificate, once the federation has given it.
    pub fn certificate(&self) -> Option<&AccountCertificate> {
        self.certificate.as_ref()
    }

    /// Takes in the account certificate.
    ///
    /// # Errors
    /// It does not verify or is of another account; the server is at fault.
    pub fn set_certificate(&mut self, certificate: AccountCertificate) -> Result<(), WalletError> {
        let account = certificate.verify(&self.federation)?;
        if account.id() != self.account.id() {
            return Err(crate::account::AccountError::Key.into());
        }
        self.certificate = Some(certificate);
        self.touched.certificate = true;
        Ok(())
    }

    /// The account as an output descriptor: public, to watch or recover with any descriptor wallet. With the words, it
    /// says where the recovery key comes from.
    pub fn descriptor(&self) -> AccountDescriptor {
        let descriptor = self.account.descriptor().clone();
        match self.keys.as_ref().map(|keys| keys.origin().clone()) {
            Some((fingerprint, path)) => descriptor.with_origin(fingerprint, path),
            None => descriptor,
        }
    }

    /// Everything that ever arrived at a script of this wallet, spent or not; also what a server only claims, as
    /// [`Coin::finality`] and [`Coin::block`] tell.
    pub fn coins_at(&self, script: &ScriptBuf) -> impl Iterator<Item = &Coin> + '_ {
        let position = self.addresses.get(script).map(|address| address.position);
        position.into_iter().flat_map(|position| self.book.coins().at(position))
    }

    /// What the wallet has.
    pub fn balance(&self) -> Balance {
        self.book.balance(self.demands())
    }

    /// What can be done with a coin of this wallet; `None` if it is not one, or spent.
    ///
    /// ```
    /// # fn example(wallet: &quorate::wallet::Wallet) {
    /// use quorate::wallet::CoinState;
    /// for coin in wallet.coins() {
    ///     match wallet.coin_state(&coin.outpoint) {
    ///         Some(CoinState::Expired { opens_at }) => {
    ///             println!("{}: move it home, the recovery path opens at {opens_at}", coin.outpoint);
    ///         }
    ///         state => println!("{}: {state:?}", coin.outpoint),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn coin_state(&self, outpoint: &OutPoint) -> Option<CoinState> {
        let coin = self.book.coin(outpoint).filter(|coin| self.book.is_unspent(coin))?;
        Some(coin.state(&self.demands()))
    }

    fn demands(&self) -> Demands<'_> {
        Demands {
            chain: &self.chain,
            confirmations: relay_policy::min_confirmations(self.federation.network()),
            recovery_delay: self.account.record().recovery_delay.into(),
            recovery_margin: self.federation.roster().recovery_margin.into(),
        }
    }

    /// All coins that are not spent, those that a payment holds included.
    pub fn coins(&self) -> impl Iterator<Item = &Coin> + '_ {
        self.book.coins().open().filter(|coin| coin.conflicted.is_none() && self.book.is_unspent(coin))
    }

    /// The transaction that spends a coin of this wallet, by a proof that the wallet verified.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.book.coin(outpoint)?.spent_by
    }

    /// Whether a proof is about a payment of this account, by the spent outputs that its certificate is bound to.
    pub(crate) fn is_own_payment(&self, proof: &FinalityProof) -> bool {
        match proof {
            FinalityProof::Enforced { spent, .. } => {
                spent.iter().all(|output| self.owns(&output.script_pubkey))
            }
            FinalityProof::Attested { .. } => false,
        }
    }

    /// Payments in and out, in the order in which the wallet learned of them. One of this wallet that came to nothing
    /// stays, neither final nor in a block; [`crate::session::Session::payment`] tells how it ended.
    pub fn history(&self) -> &[HistoryEntry] {
        self.book.history()
    }

    /// The verified proof that a transaction of the history is final: to show, to keep or to hand on.
    pub fn proof(&self, txid: Txid) -> Option<&FinalityProof> {
        self.proofs.get(&txid)
    }

    /// Whether a transaction spends a coin of which somebody says at least that it is this wallet's.
    pub(crate) fn may_spend_own(&self, transaction: &bitcoin::Transaction) -> bool {
        self.book.may_spend_own(transaction)
    }

    /// Whether a transaction is in the history.
    pub(crate) fn knows(&self, txid: Txid) -> bool {
        self.entry(txid).is_some()
    }

    /// What the history has of a transaction.
    pub(crate) fn entry(&self, txid: Txid) -> Option<&HistoryEntry> {
        self.book.entry(txid)
    }

    /// What of the history is in no block and may come into one.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &HistoryEntry> {
        self.book.waiting()
    }

    /// Whether this wallet has no keys and cannot pay.
    pub fn is_watch_only(&self) -> bool {
        self.keys.is_none()
    }

    fn keys(&self) -> Result<&WalletKeys, WalletError> {
        self.keys.as_ref().ok_or(WalletError::WatchOnly)
    }
}

#[cfg(test)]
mod aging_tests;
#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod conflict_tests;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
pub(crate) mod tests;
