//! Coins that accounts were paid before this node knew of the accounts.
//!
//! Outputs are indexed from when an account is known on. A node that took the place of another, or forgot an account
//! that was not used for long, lacks what came before: the backend is asked for it, once for each account, some of them
//! at a time, and a tenth of the time at most. What it names is looked up like any coin that somebody names.

use crate::ledger::Ledger;
use bitcoin::{OutPoint, ScriptBuf};
use quorate_protocol::{
    AccountId, Federation,
    account::{AccountRecord, JointAccount, Keychain, KeychainIndex},
};
use std::{sync::Arc, time::Duration};

/// An account with the number of its addresses on each keychain.
pub(crate) type Reached = (AccountId, [u32; 2]);

/// Accounts that are searched for at a time, at most: half as many after a search that failed, down to one, and twice
/// as many after one that did not.
const AT_A_TIME: usize = 200;
/// Coins that are taken from one search; what there is more is found by the next one.
const FOUND_MAX: usize = 100_000;
/// Coins that are looked up at a time, so that they are before the next block.
const PIECE: usize = 20;
/// Wait after a search, for each part of the time that it took.
const REST: u32 = 10;
/// Least wait.
const REST_MIN: Duration = Duration::from_secs(1);
/// Wait after the first search that failed; doubles up to the longest.
const AGAIN: Duration = Duration::from_secs(5);
/// Doublings.
const DOUBLED_MAX: u32 = 9;

/// Accounts whose coins are wanted.
#[derive(Debug)]
pub struct Search {
    federation: Arc<Federation>,
    accounts: Vec<(AccountRecord, [u32; 2])>,
}

impl Search {
    /// Their scripts: computing time, some milliseconds for each account.
    pub fn scripts(&self) -> Vec<ScriptBuf> {
        let mut scripts = Vec::new();
        for (record, reach) in &self.accounts {
            let Ok(account) = JointAccount::new(&self.federation, record.clone()) else { continue };
            for (keychain, reach) in [Keychain::Receive, Keychain::Change].into_iter().zip(reach) {
                let positions = (0..*reach).map(|index| KeychainIndex { keychain, index });
                let addresses = positions.map_while(|position| account.address(position).ok());
                scripts.extend(addresses.map(|address| address.script_pubkey));
            }
        }
        scripts
    }
}

/// The one that is under way, and when the next one may be.
#[derive(Debug)]
pub(crate) struct Searching {
    last: u64,
    under_way: Option<UnderWay>,
    due: Duration,
    size: usize,
    failed: u32,
}

impl Default for Searching {
    fn default() -> Self {
        Self { last: 0, under_way: None, due: Duration::ZERO, size: AT_A_TIME, failed: 0 }
    }
}

#[derive(Debug)]
struct UnderWay {
    ticket: u64,
    began: Duration,
    accounts: Vec<Reached>,
    /// What was found and has not been looked up.
    left: Vec<OutPoint>,
    /// Whether that is all.
    whole: bool,
}

impl Searching {
    /// When a search is due, if there is anything to search for.
    pub(crate) fn next_event(&self, ledger: &Ledger) -> Option<Duration> {
        (self.under_way.is_none() && ledger.has_unsearched()).then_some(self.due)
    }

    /// Begins a search, if it is time for one; gives its ticket.
    pub(crate) fn begin(
        &mut self,
        federation: &Arc<Federation>,
        ledger: &mut Ledger,
        now: Duration,
    ) -> Option<(u64, Search)> {
        if self.next_event(ledger).is_none_or(|due| now < due) {
            return None;
        }
        let found = ledger.take_unsearched(self.size);
        if found.is_empty() {
            return None;
        }
        self.last += 1;
        let accounts = found.iter().map(|(id, _, reach)| (*id, *reach)).collect();
        let (left, whole) = (Vec::new(), true);
        self.under_way = Some(UnderWay { ticket: self.last, began: now, accounts, left, whole });
        let accounts = found.into_iter().map(|(_, record, reach)| (record, reach)).collect();
        Some((self.last, Search { federation: federation.clone(), accounts }))
    }

    /// What a search found. Gives `false` if nobody waits for it.
    pub(crate) fn take_found(&mut self, ticket: u64, mut outpoints: Vec<OutPoint>, ledger: &Ledger) -> bool {
        let Some(search) = self.under_way.as_mut().filter(|search| search.ticket == ticket) else {
            return false;
        };
        // Those that are known leave room for others.
        outpoints.retain(|outpoint| !ledger.knows_origin(outpoint));
        search.whole = outpoints.len() <= FOUND_MAX;
        outpoints.truncate(FOUND_MAX);
        search.left = outpoints;
        true
    }

    /// The coins to look up next, none of which is known by now.
    pub(crate) fn next_piece(&mut self, ledger: &Ledger) -> Option<Vec<OutPoint>> {
        let left = &mut self.under_way.as_mut()?.left;
        let mut piece = Vec::new();
        while piece.len() < PIECE
            && let Some(outpoint) = left.pop()
        {
            if !ledger.knows_origin(&outpoint) {
                piece.push(outpoint);
            }
        }
        (!piece.is_empty()).then_some(piece)
    }

    /// All has been looked up.
    pub(crate) fn end(&mut self, ledger: &mut Ledger, now: Duration) {
        let Some(search) = self.under_way.take() else { return };
        (self.failed, self.size) = (0, (self.size * 2).min(AT_A_TIME));
        self.due = now + (now.saturating_sub(search.began) * REST).max(REST_MIN);
        if search.whole {
            ledger.mark_searched(&search.accounts);
        }
        ledger.put_unsearched(&search.accounts);
    }

    /// The backend did not say what there is.
    pub(crate) fn fail(&mut self, ticket: Option<u64>, ledger: &mut Ledger, now: Duration) {
        let is_it = |search: &mut UnderWay| ticket.is_none_or(|ticket| search.ticket == ticket);
        let Some(search) = self.under_way.take_if(is_it) else { return };
        self.due = now + AGAIN * 2_u32.pow(self.failed.min(DOUBLED_MAX));
        (self.failed, self.size) = (self.failed.saturating_add(1), (self.size / 2).max(1));
        // One of them may be what cannot be found: they go to the end of the line.
        ledger.put_unsearched(&search.accounts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Kit;

    #[test]
    fn a_search_rests_for_ten_times_as_long_as_it_took_and_longer_each_time_that_it_fails() {
        let kit = Kit::voting();
        let federation = Arc::new(kit.world.federation.clone());
        let mut ledger = Ledger::restore(
            federation.birthday(),
            federation.epoch(),
            Vec::new(),
            Vec::new(),
            crate::index::Indexed::default(),
        );
        let mut searching = Searching::default();
        assert_eq!(searching.next_event(&ledger), None, "there is nothing to search for");
        ledger.register(kit.world.account.id(), &kit.world.account);
        let at = Duration::from_secs;
        let (ticket, search) = searching.begin(&federation, &mut ledger, at(100)).expect("due");
        assert_eq!(search.scripts().len(), 40);
        assert!(searching.begin(&federation, &mut ledger, at(900)).is_none(), "one at a time");
        assert!(!searching.take_found(ticket + 1, vec![], &ledger), "another ticket");
        let coins: Vec<OutPoint> = (0..50).map(|vout| OutPoint { vout, ..OutPoint::null() }).collect();
        assert!(searching.take_found(ticket, coins, &ledger));
        let pieces: Vec<usize> =
            std::iter::from_fn(|| searching.next_piece(&ledger)).map(|piece| piece.len()).collect();
        assert_eq!(pieces, [20, 20, 10]);
        assert_eq!(searching.next_event(&ledger), None, "it is under way until all is looked up");
        searching.fail(None, &mut ledger, at(120));
        assert_eq!((searching.next_event(&ledger), searching.size), (Some(at(125)), 100));
        for (wait, size) in [(10, 50), (20, 25)] {
            let now = searching.next_event(&ledger).expect("due");
            let (ticket, _) = searching.begin(&federation, &mut ledger, now).expect("due");
            searching.fail(Some(ticket), &mut ledger, now);
            assert_eq!((searching.next_event(&ledger), searching.size), (Some(now + at(wait)), size));
        }
        let (ticket, _) = searching.begin(&federation, &mut ledger, at(1_000)).expect("due");
        let many = (0..100_001).map(|vout| OutPoint { vout, ..OutPoint::null() }).collect();
        assert!(searching.take_found(ticket, many, &ledger));
        searching.end(&mut ledger, at(1_010));
        assert_eq!(searching.next_event(&ledger), Some(at(1_110)), "there may be more");
        let (ticket, _) = searching.begin(&federation, &mut ledger, at(1_110)).expect("due");
        assert!(searching.take_found(ticket, vec![], &ledger));
        searching.end(&mut ledger, at(1_111));
        assert_eq!(searching.next_event(&ledger), None, "all is found");
    }
}
