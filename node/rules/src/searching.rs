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

/// Accounts that are searched for at a time.
const AT_A_TIME: usize = 200;
/// Coins that are taken from one search; others are found by the next one.
const FOUND_MAX: usize = 10_000;
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
#[derive(Debug, Default)]
pub(crate) struct Searching {
    last: u64,
    under_way: Option<UnderWay>,
    due: Duration,
    failed: u32,
}

#[derive(Debug)]
struct UnderWay {
    ticket: u64,
    began: Duration,
    accounts: Vec<Reached>,
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
        ledger: &Ledger,
        now: Duration,
    ) -> Option<(u64, Search)> {
        if self.next_event(ledger).is_none_or(|due| now < due) {
            return None;
        }
        let found = ledger.unsearched(AT_A_TIME);
        self.last += 1;
        let accounts = found.iter().map(|(id, _, reach)| (*id, *reach)).collect();
        self.under_way = Some(UnderWay { ticket: self.last, began: now, accounts });
        let accounts = found.into_iter().map(|(_, record, reach)| (record, reach)).collect();
        Some((self.last, Search { federation: federation.clone(), accounts }))
    }

    /// What a search found, to be looked up, and the accounts of which that is all; nothing if the backend did not say.
    pub(crate) fn end(
        &mut self,
        ticket: u64,
        found: Option<Vec<OutPoint>>,
        now: Duration,
    ) -> Option<(Vec<OutPoint>, Vec<Reached>)> {
        let UnderWay { began, accounts, .. } = self.under_way.take_if(|search| search.ticket == ticket)?;
        let Some(mut outpoints) = found else {
            self.due = now + AGAIN * 2_u32.pow(self.failed.min(DOUBLED_MAX));
            self.failed += 1;
            return None;
        };
        self.failed = 0;
        self.due = now + (now.saturating_sub(began) * REST).max(REST_MIN);
        // Those of which it has more are not done.
        let accounts = if outpoints.len() > FOUND_MAX { Vec::new() } else { accounts };
        outpoints.truncate(FOUND_MAX);
        Some((outpoints, accounts))
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
        let (ticket, search) = searching.begin(&federation, &ledger, at(100)).expect("due");
        assert_eq!(search.scripts().len(), 40);
        assert!(searching.begin(&federation, &ledger, at(900)).is_none(), "one at a time");
        assert!(searching.end(ticket + 1, Some(vec![]), at(120)).is_none(), "another ticket");
        assert!(searching.end(ticket, Some(vec![]), at(120)).is_some());
        assert_eq!(searching.next_event(&ledger), Some(at(320)));
        for wait in [5, 10, 20] {
            let now = searching.next_event(&ledger).expect("due");
            let (ticket, _) = searching.begin(&federation, &ledger, now).expect("due");
            assert!(searching.end(ticket, None, now).is_none());
            assert_eq!(searching.next_event(&ledger), Some(now + at(wait)));
        }
        ledger.mark_searched(&[(kit.world.account.id(), [20, 20])]);
        assert_eq!(searching.next_event(&ledger), None, "all is found");
    }
}
