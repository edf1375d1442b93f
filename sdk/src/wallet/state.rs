//! What a wallet keeps on a disk, by key, so that it opens at once and knows what it had under way.
//!
//! Everything but the secret words: anybody who has this sees what the account owns, and can spend nothing. All of it
//! can be had again from the words and a server, except for the payments that are under way ([`crate::session`]) and
//! the proofs.
//!
//! | key | value, as JSON |
//! | --- | --- |
//! | `wallet` | the layout's version, federation and account, so that no other wallet's state is taken for this one's |
//! | `federation` | the document, when the federation has changed its epoch |
//! | `certificate` | the account's certificate |
//! | `keychains` | next index of each, and the address that is shown |
//! | `coin/OUTPOINT` | a coin |
//! | `history/N` | the N-th transaction of the history |
//! | `frozen` | coins that are left out of payments |
//! | `settled` | up to which height the wallet was told everything |
//! | `proof/TXID` | a verified proof of finality |
//! | `headers/N` | the N-th 256 headers above the checkpoint, in hex |

use crate::{AccountId, FederationId};
use bitcoin::Txid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

/// Layout of the state; a wallet refuses any other. Version 1 was that of protocol version 1.
pub(super) const VERSION: u32 = 2;
/// Headers under one key.
pub(super) const HEADERS_PER_KEY: u32 = 256;

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
    /// It is of a version that this release does not read.
    #[error(
        "the saved state has version {found}, this software knows {VERSION}: {}",
        if *found > VERSION { "use a later release" } else { "set it aside and open the wallet from its words" }
    )]
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

    /// Whether it was written by a release that this one replaces.
    pub(crate) fn is_older(&self) -> bool {
        matches!(self, Self::Version { found } if *found < VERSION)
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
    pub(super) settled: bool,
    pub(super) frozen: bool,
}

/// When a wallet was told everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settled {
    /// The tip then.
    pub(super) tip: u32,
    /// The tip when it was told so from the beginning on, and not only what was new.
    pub(super) whole: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) federation: FederationId,
    pub(super) account: AccountId,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Keychains {
    pub(super) receive: u32,
    pub(super) change: u32,
    /// The receive address that is shown until somebody pays to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shown: Option<u32>,
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
