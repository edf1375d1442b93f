//! Accounts that wallets want registered. Nodes have room for so many, so an address has a share of it; what this
//! bridge has passed on before costs nothing. A record is known by its proof of possession, which holds for one account
//! alone.

use crate::allowance::{Quota, network};
use quorate_protocol::account::AccountRecord;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// Accounts that are remembered, the latest ones.
const KNOWN_MAX: usize = 65_536;

type Known = [u8; 64];

/// Who wants accounts registered.
#[derive(Debug, Default)]
pub(crate) struct Newcomers {
    known: HashSet<Known>,
    /// In the order in which they came.
    order: VecDeque<Known>,
    by_address: HashMap<IpAddr, Quota>,
    by_network: HashMap<IpAddr, Quota>,
    refused: u64,
}

impl Newcomers {
    /// Whether an account may be passed on to nodes for a session of that address; without one, all may.
    pub(crate) fn admit(&mut self, now: Duration, address: Option<IpAddr>, record: &AccountRecord) -> bool {
        self.admit_known_by(now, address, record.possession.serialize())
    }

    fn admit_known_by(&mut self, now: Duration, address: Option<IpAddr>, account: Known) -> bool {
        if self.known.contains(&account) {
            return true;
        }
        if let Some(address) = address {
            let [own, shared] = Quota::accounts(now);
            let own = self.by_address.entry(address).or_insert(own);
            let shared = self.by_network.entry(network(address)).or_insert(shared);
            if !Quota::take_both(now, [own, shared]) {
                self.refused += 1;
                return false;
            }
        }
        self.known.insert(account);
        self.order.push_back(account);
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// Accounts that were not passed on.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Forgets addresses that may take as much as any other.
    pub(crate) fn sweep(&mut self, now: Duration) {
        for quotas in [&mut self.by_address, &mut self.by_network] {
            quotas.retain(|_, quota| !quota.is_whole(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    fn account(number: u32) -> Known {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    /// Wants new accounts until one is refused; gives how many were not.
    fn fill(newcomers: &mut Newcomers, now: Duration, from: [u8; 4], first: u32) -> u32 {
        let refused =
            (first..).find(|number| !newcomers.admit_known_by(now, Some(from.into()), account(*number)));
        refused.expect("a limit") - first
    }

    #[test]
    fn an_address_and_its_network_have_their_share_and_what_is_known_is_free() {
        let mut newcomers = Newcomers::default();
        let first = [10, 0, 0, 1];
        assert_eq!(fill(&mut newcomers, NOW, first, 0), 4_096);
        assert!(newcomers.admit_known_by(NOW, Some(first.into()), account(7)), "it comes again");
        assert!(newcomers.admit_known_by(NOW, None, account(1_000_000)), "this machine's own");
        for (last, more) in [(2, 4_096), (3, 4_096), (4, 4_096), (5, 0)] {
            let from = u32::from(last) * 10_000;
            assert_eq!(fill(&mut newcomers, NOW, [10, 0, 0, last], from), more);
        }
        assert_eq!(fill(&mut newcomers, NOW, [10, 0, 1, 1], 200_000), 4_096, "another network");
        let later = NOW + Duration::from_secs(301);
        assert_eq!(fill(&mut newcomers, later, first, 300_000), 1);
        newcomers.sweep(later);
        assert!(!newcomers.by_address.is_empty());
        newcomers.sweep(later + Duration::from_secs(4_097 * 300));
        assert!(newcomers.by_address.is_empty() && newcomers.by_network.is_empty());
    }

    #[test]
    fn the_latest_are_remembered() {
        let mut newcomers = Newcomers::default();
        for number in 0..65_537 {
            assert!(newcomers.admit_known_by(NOW, None, account(number)));
        }
        assert_eq!((newcomers.known.len(), newcomers.order.len()), (KNOWN_MAX, KNOWN_MAX));
        assert!(!newcomers.known.contains(&account(0)) && newcomers.known.contains(&account(1)));
    }
}
