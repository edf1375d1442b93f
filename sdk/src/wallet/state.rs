//! What a wallet keeps on a disk, by key, so that it opens at once and knows what it had under way.
//!
//! Everything but the secret words: whoever has this sees what the account owns, and can spend nothing. All of it can be had again from
//! the words and a server, except for the payments that are under way ([`crate::session`]) and the proofs.
//!
//! | key | value, as JSON |
//! | --- | --- |
//! | `wallet` | the layout's version, federation and account, so that no other wallet's state is taken for this one's |
//! | `federation` | the document, when the federation has changed its epoch |
//! | `certificate` | the account's certificate |
//! | `keychains` | next index of each, and the address that is shown |
//! | `coin/OUTPOINT` | a coin |
//! | `history/N` | the N-th transaction of the history |
//! | `proof/TXID` | a verified proof of finality |
//! | `headers/N` | the N-th 256 headers above the checkpoint, in hex |

use super::{Wallet, WalletError, coins::Coin, coins::HistoryEntry};
use crate::{
    AccountId, FederationDocument, FederationId,
    account::{AccountCertificate, Keychain},
    finality::FinalityProof,
    wire::Header,
};
use bitcoin::Txid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

/// Layout of the state; a wallet refuses a later one.
const VERSION: u32 = 1;
/// Headers under one key.
const HEADERS_PER_KEY: u32 = 256;

/// State by key, as it was saved.
pub type SavedState = BTreeMap<String, Vec<u8>>;

/// What changed: a new value, or `None` to erase the key. It has to be applied as a whole or not at all.
///
/// ```
/// use quorate::wallet::{SavedState, StateChange, apply_change};
/// let mut saved = SavedState::new();
/// apply_change(&mut saved, StateChange::from([("keychains".to_owned(), Some(b"{}".to_vec()))]));
/// apply_change(&mut saved, StateChange::from([("keychains".to_owned(), None)]));
/// assert!(saved.is_empty());
/// ```
pub type StateChange = BTreeMap<String, Option<Vec<u8>>>;

/// Takes a change into a saved state.
pub fn apply_change(state: &mut SavedState, change: StateChange) {
    for (key, value) in change {
        match value {
            Some(value) => state.insert(key, value),
            None => state.remove(&key),
        };
    }
}

/// Why a saved state is refused. Nothing of it is used; open the wallet from its words and keep the state aside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is another wallet's.
    #[error("the saved state belongs to another wallet or federation")]
    OtherWallet,
    /// It is of a later version.
    #[error("the saved state has version {found}, this software knows {VERSION}; use a later release")]
    Version {
        /// Its version.
        found: u32,
    },
    /// A value cannot be read.
    #[error("the saved state is damaged at {key}: {reason}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

impl StateError {
    pub(crate) fn damaged(key: &str, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { key: key.to_owned(), reason: reason.to_string() }
    }
}

/// What has changed since the last [`Wallet::take_change`].
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) proofs: BTreeSet<Txid>,
    pub(super) headers_from: Option<u32>,
    pub(super) federation: bool,
    pub(super) certificate: bool,
    pub(super) keychains: bool,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    version: u32,
    federation: FederationId,
    account: AccountId,
}

#[derive(Serialize, Deserialize)]
struct Keychains {
    receive: u32,
    change: u32,
    /// The receive address that is shown until somebody pays to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shown: Option<u32>,
}

pub(crate) fn value(value: &impl Serialize) -> Option<Vec<u8>> {
    Some(serde_json::to_vec(value).expect("own types are written without fail"))
}

pub(crate) fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(value).map_err(|error| StateError::damaged(key, error))
}

/// The values whose key starts with `prefix`, with the rest of the key.
pub(crate) fn under<'a>(
    state: &'a SavedState,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a str, &'a Vec<u8>)> + 'a {
    let from = state.range(prefix.to_owned()..);
    from.map_while(move |(key, value)| key.strip_prefix(prefix).map(|rest| (key, rest, value)))
}

impl Wallet {
    /// Forgets what changed, because nobody saves it.
    pub(crate) fn drop_change(&mut self) {
        self.touched = Touched::default();
        let _unsaved = self.book.take_touched();
    }

    /// What changed since this was last called.
    pub(crate) fn take_change(&mut self) -> StateChange {
        let mut change = StateChange::new();
        let touched = std::mem::take(&mut self.touched);
        let (coins, history) = self.book.take_touched();
        if !self.saved_before {
            self.saved_before = true;
            let (federation, account) = (self.federation.id(), self.account.id());
            change.insert("wallet".to_owned(), value(&Identity { version: VERSION, federation, account }));
        }
        if touched.federation {
            change.insert("federation".to_owned(), value(&self.federation.document()));
        }
        if touched.certificate {
            change.insert("certificate".to_owned(), self.certificate.as_ref().and_then(value));
        }
        if touched.keychains {
            let next = |keychain| self.keychains.get(&keychain).map_or(0, |state| state.next);
            let keychains = Keychains {
                receive: next(Keychain::Receive),
                change: next(Keychain::Change),
                shown: self.shown,
            };
            change.insert("keychains".to_owned(), value(&keychains));
        }
        for outpoint in coins {
            let coin = self.book.coin(&outpoint);
            change.insert(format!("coin/{outpoint}"), coin.and_then(value));
        }
        for index in history {
            change.insert(format!("history/{index:08}"), self.book.history().get(index).and_then(value));
        }
        for txid in touched.proofs {
            change.insert(format!("proof/{txid}"), self.proofs.get(&txid).and_then(value));
        }
        if let Some(from) = touched.headers_from {
            self.header_changes(from, &mut change);
        }
        change
    }

    fn header_changes(&self, from: u32, change: &mut StateChange) {
        let first = self.chain.base() + 1;
        let (from, tip) = (from.max(first), self.chain.tip().height);
        for chunk in (from - first) / HEADERS_PER_KEY.. {
            let start = first + chunk * HEADERS_PER_KEY;
            let heights = start..(start + HEADERS_PER_KEY).min(tip + 1);
            let headers: Vec<_> =
                heights.filter_map(|height| self.chain.header(height)).copied().map(Header).collect();
            let more = !headers.is_empty();
            change.insert(
                format!("headers/{chunk:08}"),
                Some(headers).filter(|_| more).as_ref().and_then(value),
            );
            if !more {
                break;
            }
        }
    }

    /// Takes in a saved state. The wallet has to be fresh.
    pub(crate) fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let Some(identity) = state.get("wallet") else { return Ok(()) };
        let identity: Identity = read("wallet", identity)?;
        if identity.version > VERSION {
            return Err(StateError::Version { found: identity.version });
        }
        if identity.federation != self.federation.id() || identity.account != self.account.id() {
            return Err(StateError::OtherWallet);
        }
        self.saved_before = true;
        if let Some(document) = state.get("federation") {
            let document: FederationDocument = read("federation", document)?;
            if document.epoch() > self.federation.epoch() {
                let verified = document.verify(self.federation.id());
                self.federation = verified.map_err(|error| StateError::damaged("federation", error))?;
            }
        }
        if let Some(certificate) = state.get("certificate") {
            let certificate: AccountCertificate = read("certificate", certificate)?;
            self.set_certificate(certificate).map_err(|error| StateError::damaged("certificate", error))?;
        }
        if let Some(keychains) = state.get("keychains") {
            let Keychains { receive, change, shown } = read("keychains", keychains)?;
            self.shown = shown;
            for (keychain, next) in [(Keychain::Receive, receive), (Keychain::Change, change)] {
                self.keychains.entry(keychain).or_default().next = next;
            }
            self.derive_ahead().map_err(|error| StateError::damaged("keychains", error))?;
        }
        self.restore_headers(state)?;
        for (key, _, value) in under(state, "coin/") {
            let coin: Coin = read(key, value)?;
            self.book.restore_coin(coin);
        }
        for (key, _, value) in under(state, "history/") {
            let entry: HistoryEntry = read(key, value)?;
            self.book.restore_entry(entry);
        }
        for (key, _, value) in under(state, "proof/") {
            let proof: FinalityProof = read(key, value)?;
            self.proofs.insert(proof.txid(), proof);
        }
        self.touched = Touched::default();
        Ok(())
    }

    fn restore_headers(&mut self, state: &SavedState) -> Result<(), StateError> {
        for (key, _, value) in under(state, "headers/") {
            let headers: Vec<Header> = read(key, value)?;
            let headers: Vec<_> = headers.into_iter().map(|header| header.0).collect();
            self.chain.extend(&headers).map_err(|error| StateError::damaged(key, error))?;
        }
        Ok(())
    }
}

impl From<StateError> for WalletError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}
