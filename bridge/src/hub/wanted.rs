//! What each session is subscribed to, and how much that may be: of one session, of all sessions of an address, and
//! of everybody. Nodes index what is wanted here, and have no more room for one bridge.

use crate::{
    allowance::{Quota, network},
    interest::WalletId,
};
use quorate_protocol::wire::{ErrorCode, SubscriptionKey, WireError, limits};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

/// Keys of all sessions of one address: behind one there may be a whole mobile network.
const KEYS_PER_ADDRESS_MAX: usize = 65_536;
/// Keys that nobody wants any more and that are followed for some time.
pub(super) const IDLE_MAX: usize = 32_768;
/// Keys of all sessions: what a node takes of one bridge, less those that nobody wants any more and the tip.
const KEYS_MAX: usize = limits::KEYS_PER_BRIDGE_MAX - IDLE_MAX - 1;

/// Keys of all sessions of one network.
const KEYS_PER_NETWORK_MAX: usize = KEYS_MAX / 8;

/// A session's keys.
#[derive(Debug, Default)]
struct Wallet {
    keys: BTreeSet<SubscriptionKey>,
    /// None for this machine's own, which only the limit of all holds.
    address: Option<IpAddr>,
}

/// What all sessions of an address have, or of a network.
#[derive(Debug)]
struct Share {
    keys: usize,
    new: Quota,
}

/// All sessions' keys.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    sessions: HashMap<WalletId, Wallet>,
    by_address: HashMap<IpAddr, Share>,
    by_network: HashMap<IpAddr, Share>,
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

    pub(super) fn is_open(&self, session: WalletId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// A session wants a key, which nodes are to be asked for or are already; gives whether that is new.
    ///
    /// # Errors
    /// It, its address or all have as many keys as they may. The latter two may have room later.
    pub(super) fn add(
        &mut self,
        now: Duration,
        session: WalletId,
        key: &SubscriptionKey,
        is_followed: bool,
    ) -> Result<bool, WireError> {
        let Some(wallet) = self.sessions.get_mut(&session).filter(|wallet| !wallet.keys.contains(key)) else {
            return Ok(false);
        };
        let full = |what, limit| WireError::limit(ErrorCode::LimitExceeded, what, limit, limit + 1);
        let later = |what, limit| WireError { retry: true, ..full(what, limit) };
        if wallet.keys.len() >= limits::KEYS_PER_SESSION_MAX {
            return Err(full("keys in a session", limits::KEYS_PER_SESSION_MAX));
        }
        if self.all >= KEYS_MAX {
            return Err(later("keys of all sessions of a bridge", KEYS_MAX));
        }
        if let Some(address) = wallet.address {
            let [own, shared] = Quota::scripts(now).map(|new| Share { keys: 0, new });
            let share = self.by_address.entry(address).or_insert(own);
            let neighbours = self.by_network.entry(network(address)).or_insert(shared);
            if share.keys >= KEYS_PER_ADDRESS_MAX {
                return Err(later("keys of all sessions of an address", KEYS_PER_ADDRESS_MAX));
            }
            if neighbours.keys >= KEYS_PER_NETWORK_MAX {
                return Err(later("keys of all sessions of a network", KEYS_PER_NETWORK_MAX));
            }
            if !is_followed && is_leased(key) && !Quota::take_both(now, [&mut share.new, &mut neighbours.new])
            {
                return Err(later("scripts that an address or its network takes anew", KEYS_PER_ADDRESS_MAX));
            }
            share.keys += 1;
            neighbours.keys += 1;
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

    /// Forgets addresses that have nothing, and may take as much as any other.
    pub(super) fn sweep(&mut self, now: Duration) {
        for shares in [&mut self.by_address, &mut self.by_network] {
            shares.retain(|_, share| share.keys > 0 || !share.new.is_whole(now));
        }
    }

    fn give_back(&mut self, address: Option<IpAddr>, count: usize) {
        self.all = self.all.saturating_sub(count);
        let Some(address) = address else { return };
        let shares = [self.by_address.get_mut(&address), self.by_network.get_mut(&network(address))];
        for share in shares.into_iter().flatten() {
            share.keys = share.keys.saturating_sub(count);
        }
    }
}

/// Whether nodes index a key for longer than somebody wants it.
fn is_leased(key: &SubscriptionKey) -> bool {
    match key {
        SubscriptionKey::Script(_) | SubscriptionKey::Address(_) => true,
        SubscriptionKey::Outpoint(_)
        | SubscriptionKey::Txid(_)
        | SubscriptionKey::Account(_)
        | SubscriptionKey::Tip => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{OutPoint, ScriptBuf};
    use std::net::Ipv6Addr;

    const NOW: Duration = Duration::from_secs(5);

    fn script(number: usize) -> SubscriptionKey {
        SubscriptionKey::Script(ScriptBuf::from_bytes(number.to_be_bytes().to_vec()))
    }

    /// A key that no node indexes.
    fn coin(number: usize) -> SubscriptionKey {
        let vout = u32::try_from(number).expect("fits");
        SubscriptionKey::Outpoint(OutPoint { vout, ..OutPoint::null() })
    }

    /// Opens sessions from an address until so many coins are wanted; gives how many there are, and the refusal.
    fn fill(
        wanted: &mut Wanted,
        from: Option<IpAddr>,
        first: u64,
        most: usize,
    ) -> (usize, Option<WireError>) {
        let mut held = 0;
        for session in first.. {
            wanted.open(WalletId(session), from);
            for number in 0..limits::KEYS_PER_SESSION_MAX {
                if held == most {
                    return (held, None);
                }
                match wanted.add(NOW, WalletId(session), &coin(number), true) {
                    Ok(new) => held += usize::from(new),
                    Err(error) => return (held, Some(error)),
                }
            }
        }
        (held, None)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_session_has_its_share() {
        let mut wanted = Wanted::default();
        fill(&mut wanted, None, 1, limits::KEYS_PER_SESSION_MAX);
        let one_more = coin(1_000_000);
        let error = wanted.add(NOW, WalletId(1), &one_more, true).expect_err("one too many");
        assert_eq!((error.code, error.retry), (ErrorCode::LimitExceeded, false));
        assert_eq!(wanted.add(NOW, WalletId(1), &coin(7), true), Ok(false), "it has that one");
        assert!(wanted.remove(WalletId(1), &coin(7)) && !wanted.remove(WalletId(1), &coin(7)));
        assert_eq!(wanted.add(NOW, WalletId(1), &one_more, true), Ok(true));
    }

    #[test]
    fn an_address_has_its_share_over_all_its_sessions_and_gets_it_back() {
        let mut wanted = Wanted::default();
        let (held, refused) = fill(&mut wanted, Some(address(1)), 1, usize::MAX);
        assert_eq!(held, KEYS_PER_ADDRESS_MAX);
        let error = refused.expect("its sessions have them all");
        assert!(error.retry && error.message.contains("of an address"), "{error:?}");
        wanted.open(WalletId(91), Some(address(2)));
        wanted.open(WalletId(92), None);
        for other in [91, 92] {
            assert_eq!(wanted.add(NOW, WalletId(other), &coin(0), true), Ok(true), "nobody else notices");
        }
        assert_eq!(wanted.close(WalletId(1)).len(), limits::KEYS_PER_SESSION_MAX);
        assert_eq!(fill(&mut wanted, Some(address(1)), 50, 3), (3, None));
        for session in 2..=92 {
            wanted.close(WalletId(session));
        }
        wanted.sweep(NOW);
        assert!(
            wanted.by_address.is_empty() && wanted.by_network.is_empty() && wanted.all == 0,
            "{wanted:?}"
        );
    }

    #[test]
    fn neighbours_share_and_all_together_want_no_more_than_a_node_takes() {
        let mut wanted = Wanted::default();
        let mut next = 1;
        let mut fill = |wanted: &mut Wanted, from, most| {
            next += 100;
            fill(wanted, from, next, most)
        };
        // A household with 256 addresses, in which each has its own.
        let household =
            |last: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + (last << 64)));
        let held: usize = (0..256).map(|last| fill(&mut wanted, Some(household(last)), usize::MAX).0).sum();
        assert_eq!(held, KEYS_PER_NETWORK_MAX);
        let (_, refused) = fill(&mut wanted, Some(household(256)), 1);
        let error = refused.expect("a neighbour");
        assert!(error.retry && error.message.contains("of a network"), "{error:?}");
        let stranger = IpAddr::from([10, 1, 0, 1]);
        assert_eq!(
            fill(&mut wanted, Some(stranger), 1_000),
            (1_000, None),
            "who comes from elsewhere has room"
        );
        // This machine's own have what is left.
        let left = KEYS_MAX - wanted.all;
        let (held, refused) = fill(&mut wanted, None, usize::MAX);
        assert_eq!((held, wanted.all), (left, KEYS_MAX));
        let error = refused.expect("no room");
        assert!(error.retry && error.message.contains("of a bridge"), "{error:?}");
    }

    #[test]
    fn who_comes_and_goes_takes_no_more_scripts_than_a_week_gives_back() {
        let mut wanted = Wanted::default();
        let mut taken = 0;
        let refused = loop {
            let session = WalletId(1);
            wanted.open(session, Some(address(1)));
            match wanted.add(NOW, session, &script(taken), false) {
                Ok(_) => taken += 1,
                Err(error) => break error,
            }
            wanted.close(session);
        };
        assert_eq!(taken, KEYS_PER_ADDRESS_MAX);
        assert!(refused.retry && refused.message.contains("anew"), "{refused:?}");
        assert_eq!(
            wanted.add(NOW, WalletId(1), &script(0), true),
            Ok(true),
            "one that is followed costs nothing"
        );
        assert_eq!(wanted.add(NOW, WalletId(1), &coin(0), false), Ok(true), "nor one that is not indexed");
        wanted.close(WalletId(1));
        wanted.sweep(NOW);
        assert_eq!(wanted.by_address.len(), 1, "it is remembered");
        let later = NOW + Duration::from_secs(10);
        wanted.open(WalletId(2), Some(address(1)));
        let again = (0..20).filter(|at| wanted.add(later, WalletId(2), &script(taken + at), false).is_ok());
        assert_eq!(again.count(), 10);
    }
}
