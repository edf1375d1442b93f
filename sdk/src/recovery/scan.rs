//! The search for an account's coins, script by script, until enough unused addresses follow each other.

use super::{Found, RECOVERY_GAP, RecoverableCoin, Recovery, RecoveryError};
use crate::account::{Keychain, KeychainIndex};
use bitcoin::{Amount, OutPoint, ScriptBuf};
use std::collections::BTreeSet;

/// A search, without I/O: ask a source what [`Scan::next_query`] names, say what it answers, until there is no more.
/// Several queries may be under way.
///
/// ```
/// # use quorate::recovery::{Recovery, RecoveryError, Scan};
/// # fn ask(script: &bitcoin::Script) -> Vec<(bitcoin::OutPoint, bitcoin::Amount, Option<u32>)> { Vec::new() }
/// # fn example(recovery: &Recovery, tip: u32) -> Result<(), RecoveryError> {
/// let mut scan = Scan::new(recovery);
/// while let Some(query) = scan.next_query()? {
///     let coins = ask(&query.script_pubkey);
///     let used = !coins.is_empty();
///     scan.answer(query.position, used, coins);
/// }
/// println!("{} coins", scan.finish(tip).coins.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scan<'a> {
    recovery: &'a Recovery,
    /// Of each keychain: the next index to ask about, and the index after the last one that was ever used.
    next: [u32; 2],
    used: [u32; 2],
    coins: Vec<RecoverableCoin>,
    known: BTreeSet<OutPoint>,
}

/// What to ask a source about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where the address stands.
    pub position: KeychainIndex,
    /// Its script: whether it was ever paid, and its unspent outputs are wanted.
    pub script_pubkey: ScriptBuf,
}

const KEYCHAINS: [Keychain; 2] = [Keychain::Receive, Keychain::Change];

impl<'a> Scan<'a> {
    /// Starts a search.
    pub fn new(recovery: &'a Recovery) -> Self {
        Self { recovery, next: [0; 2], used: [0; 2], coins: Vec::new(), known: BTreeSet::new() }
    }

    /// The next address to ask about; none if those that were asked about decide that no more are needed, or answers
    /// are outstanding that could.
    ///
    /// # Errors
    /// A key cannot be derived.
    pub fn next_query(&mut self) -> Result<Option<Query>, RecoveryError> {
        for ((keychain, next), used) in KEYCHAINS.into_iter().zip(&mut self.next).zip(self.used) {
            if *next < used.saturating_add(RECOVERY_GAP).min(self.recovery.addresses_max) {
                let position = KeychainIndex { keychain, index: *next };
                *next += 1;
                let script_pubkey = self.recovery.address(position)?.script_pubkey;
                return Ok(Some(Query { position, script_pubkey }));
            }
        }
        Ok(None)
    }

    /// Takes in an answer: whether the address was ever used, and its unspent outputs with their blocks' heights.
    pub fn answer(
        &mut self,
        position: KeychainIndex,
        used: bool,
        coins: impl IntoIterator<Item = (OutPoint, Amount, Option<u32>)>,
    ) {
        let before = self.coins.len();
        for (outpoint, value, height) in coins {
            if value <= Amount::MAX_MONEY && self.known.insert(outpoint) {
                self.coins.push(RecoverableCoin { outpoint, value, position, height });
            }
        }
        if used || self.coins.len() > before {
            for (keychain, used) in KEYCHAINS.into_iter().zip(&mut self.used) {
                if keychain == position.keychain {
                    *used = (*used).max(position.index.saturating_add(1));
                }
            }
        }
    }

    /// What was found, oldest coin first.
    pub fn finish(mut self, tip: u32) -> Found {
        self.coins.sort_by_key(|coin| (coin.height.unwrap_or(u32::MAX), coin.outpoint));
        Found { tip, coins: self.coins }
    }
}
