//! What each session is subscribed to, and how much that may be: of one session, of all sessions of an address, and
//! of everybody. Nodes index what is wanted here, and have no more room for one bridge.

use crate::interest::WalletId;
use quorate_protocol::wire::{ErrorCode, SubscriptionKey, WireError, limits};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// Keys of all sessions of one address: behind one there may be a whole mobile network.
const KEYS_PER_ADDRESS_MAX: usize = 65_536;
/// Keys of all sessions: what a node takes of one bridge.
const KEYS_MAX: usize = 1_000_000;

/// A session's keys.
#[derive(Debug, Default)]
struct Wallet {
    keys: BTreeSet<SubscriptionKey>,
    /// None for this machine's own, which only the limit of all holds.
    address: Option<IpAddr>,
}

/// All sessions' keys.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    sessions: HashMap<WalletId, Wallet>,
    by_address: HashMap<IpAddr, usize>,
    all: usize,
}

impl Wanted {
    pub(super) fn open(&mut self, session: WalletId, address: Option<IpAddr>) {
        self.sessions.insert(session, Wallet { keys: BTreeSet::new(), address });
    }

    /// Gives what the session wanted.
    pub(super) fn close(&mut self, session: WalletId) -> BTreeSet<SubscriptionKey> {
        let Some(closed) = self.sessions.remove(&session) else { return BTreeSet::new() };
        self.give_back(closed.address, closed.keys.len());
        closed.keys
    }

    pub(super) fn has(&self, session: WalletId, key: &SubscriptionKey) -> bool {
        self.sessions.get(&session).is_some_and(|wallet| wallet.keys.contains(key))
    }

    /// A session wants a key; gives whether that is new.
    ///
    /// # Errors
    /// It, its address or all have as many keys as they may. The latter two may have room later.
    pub(super) fn add(&mut self, session: WalletId, key: &SubscriptionKey) -> Result<bool, WireError> {
        let Some(wallet) = self.sessions.get_mut(&session).filter(|wallet| !wallet.keys.contains(key)) else {
            return Ok(false);
        };
        let full = |what, limit| WireError::limit(ErrorCode::LimitExceeded, what, limit, limit + 1);
        if wallet.keys.len() >= limits::KEYS_PER_SESSION_MAX {
            return Err(full("keys in a session", limits::KEYS_PER_SESSION_MAX));
        }
        let of_address = wallet.address.map(|address| self.by_address.entry(address).or_default());
        if of_address.as_deref().is_some_and(|count| *count >= KEYS_PER_ADDRESS_MAX) {
            let error = full("keys of all sessions of an address", KEYS_PER_ADDRESS_MAX);
            return Err(WireError { retry: true, ..error });
        }
        if self.all >= KEYS_MAX {
            return Err(WireError { retry: true, ..full("keys of all sessions of a bridge", KEYS_MAX) });
        }
        if let Some(count) = of_address {
            *count += 1;
        }
        self.all += 1;
        Ok(wallet.keys.insert(key.clone()))
    }

    /// A session wants a key no more; gives whether it did.
    pub(super) fn remove(&mut self, session: WalletId, key: &SubscriptionKey) -> bool {
        let Some(wallet) = self.sessions.get_mut(&session) else { return false };
        let (removed, address) = (wallet.keys.remove(key), wallet.address);
        self.give_back(address, usize::from(removed));
        removed
    }

    fn give_back(&mut self, address: Option<IpAddr>, count: usize) {
        self.all = self.all.saturating_sub(count);
        let Some(address) = address else { return };
        if let Some(held) = self.by_address.get_mut(&address) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::ScriptBuf;

    fn key(number: usize) -> SubscriptionKey {
        SubscriptionKey::Script(ScriptBuf::from_bytes(number.to_be_bytes().to_vec()))
    }

    /// Opens sessions from an address until so many keys are held; gives the refusal, if one came.
    fn fill(wanted: &mut Wanted, from: Option<IpAddr>, first: u64, keys: usize) -> Option<WireError> {
        let mut left = keys;
        for session in first.. {
            let session = WalletId(session);
            wanted.open(session, from);
            for number in 0..left.min(limits::KEYS_PER_SESSION_MAX) {
                if let Err(error) = wanted.add(session, &key(number)) {
                    return Some(error);
                }
            }
            left = left.saturating_sub(limits::KEYS_PER_SESSION_MAX);
            if left == 0 {
                break;
            }
        }
        None
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_session_has_its_share() {
        let mut wanted = Wanted::default();
        assert_eq!(fill(&mut wanted, None, 1, limits::KEYS_PER_SESSION_MAX), None);
        let error = wanted.add(WalletId(1), &key(usize::MAX)).expect_err("one too many");
        assert_eq!((error.code, error.retry), (ErrorCode::LimitExceeded, false));
        assert_eq!(wanted.add(WalletId(1), &key(7)), Ok(false), "it has that one");
        assert!(wanted.remove(WalletId(1), &key(7)) && !wanted.remove(WalletId(1), &key(7)));
        assert_eq!(wanted.add(WalletId(1), &key(usize::MAX)), Ok(true));
    }

    #[test]
    fn an_address_has_its_share_over_all_its_sessions_and_gets_it_back() {
        let mut wanted = Wanted::default();
        assert_eq!(fill(&mut wanted, Some(address(1)), 1, KEYS_PER_ADDRESS_MAX), None);
        wanted.open(WalletId(90), Some(address(1)));
        let error = wanted.add(WalletId(90), &key(0)).expect_err("its sessions have them all");
        assert!(error.retry && error.message.contains("of an address"), "{error:?}");
        wanted.open(WalletId(91), Some(address(2)));
        wanted.open(WalletId(92), None);
        for other in [91, 92] {
            assert_eq!(wanted.add(WalletId(other), &key(0)), Ok(true), "nobody else notices");
        }
        assert_eq!(wanted.close(WalletId(1)).len(), limits::KEYS_PER_SESSION_MAX);
        assert_eq!(wanted.add(WalletId(90), &key(0)), Ok(true));
        for session in 2..=92 {
            wanted.close(WalletId(session));
        }
        assert!(wanted.by_address.is_empty() && wanted.all == 0, "{wanted:?}");
    }

    #[test]
    fn all_together_want_no_more_than_a_node_takes() {
        let mut wanted = Wanted::default();
        for last in 0..15 {
            let first = 1 + u64::from(last) * 10;
            assert_eq!(fill(&mut wanted, Some(address(last)), first, KEYS_PER_ADDRESS_MAX), None);
        }
        let left = KEYS_MAX - 15 * KEYS_PER_ADDRESS_MAX;
        assert_eq!(fill(&mut wanted, Some(address(15)), 900, left), None);
        let error = fill(&mut wanted, Some(address(16)), 990, 1).expect("no room");
        assert!(error.retry && error.message.contains("of a bridge"), "{error:?}");
    }
}
