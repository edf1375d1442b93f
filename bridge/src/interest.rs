//! What is kept of one key that somebody is interested in.

use crate::{facts::Facts, tips::LinkId};
use quorate_protocol::{
    AccountId,
    account::AccountRecord,
    wire::{KeyOutcome, SubscriptionKey, WireError},
};
use std::collections::{BTreeMap, BTreeSet};

/// A wallet's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalletId(pub u64);

/// Interest in a key.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    /// Sessions that are subscribed to it, those among them that wait for their snapshot.
    pub(crate) wanted: usize,
    /// Those that have it.
    pub(crate) sessions: BTreeSet<WalletId>,
    /// Enough nodes have told of it for a snapshot.
    pub(crate) ready: bool,
    pub(crate) facts: Facts,
    /// For nodes that do not know the account.
    pub(crate) account: Option<Box<AccountRecord>>,
    /// Coins that blocks below this height spend are not here.
    pub(crate) since: u32,
    /// Nodes that refuse it.
    refused: BTreeMap<LinkId, WireError>,
    /// Too many do.
    refusal: Option<WireError>,
}

impl Interest {
    /// In a key of which nothing is known, for who knows what blocks below a height spend.
    pub(crate) fn new(key: &SubscriptionKey, since: u32) -> Self {
        Self { ready: *key == SubscriptionKey::Tip, since, ..Self::default() }
    }

    /// Somebody subscribes who knows what blocks below a height spend, and may have the account's record. `true` if the
    /// nodes have to be asked.
    pub(crate) fn ask(&mut self, since: u32, account: Option<&AccountRecord>) -> bool {
        let unknown = account.filter(|account| self.account.as_deref() != Some(*account));
        if let Some(account) = unknown {
            self.account = Some(Box::new(account.clone()));
        }
        if since < self.since {
            self.since = since;
            self.ready = false;
            self.facts.hear_anew();
        }
        if !self.ready {
            self.refused.clear();
            self.refusal = None;
        }
        !self.ready || unknown.is_some()
    }

    /// The record that goes with its key.
    pub(crate) fn record(&self, key: &SubscriptionKey) -> Option<(AccountId, AccountRecord)> {
        let SubscriptionKey::Account(id) = key else { return None };
        Some((*id, self.account.as_deref()?.clone()))
    }

    /// A node's stream is gone.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.facts.forget(link);
        self.refused.remove(&link);
    }

    /// A node has told all that it knows at present. Whatever f of 2f + 1 nodes say, f + 1 others have told of it.
    pub(crate) fn hear(&mut self, link: LinkId, history_from: Option<u32>, needed: usize) {
        self.facts.hear(link, history_from);
        self.refused.remove(&link);
        self.ready |= self.facts.heard() > 2 * (needed - 1);
    }

    /// A node refuses it.
    pub(crate) fn refuse(&mut self, link: LinkId, error: WireError, needed: usize) {
        self.refused.insert(link, error);
        if self.refused.len() > 2 * (needed - 1) {
            self.give_up();
        }
    }

    /// Not all nodes that should have told of it are there: takes what f + 1 have told.
    pub(crate) fn settle_for_less(&mut self, needed: usize) {
        self.ready |= self.facts.heard() >= needed;
        if self.refused.len() >= needed {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.refusal = self.refused.values().next().cloned().filter(|_| !self.ready);
    }

    /// Whether there is an answer for who waits.
    pub(crate) fn is_answered(&self) -> bool {
        self.ready || self.refusal.is_some()
    }

    /// The answer for a session that knows what blocks below a height spend; it hears of what is new from now on.
    pub(crate) fn answer(&mut self, session: WalletId, since: u32, needed: usize) -> KeyOutcome {
        if let Some(error) = self.refusal.as_ref().filter(|_| !self.ready) {
            return KeyOutcome::Error(error.clone());
        }
        self.sessions.insert(session);
        self.facts.snapshot(needed, since)
    }

    /// Forgets coins that blocks below a height spend: nobody can change that any more.
    pub(crate) fn forget_below(&mut self, height: u32) {
        if self.facts.forget_below(height) {
            self.since = self.since.max(height);
        }
    }
}

/// The height from which somebody wants to know what became of a key: coins of scripts and accounts come and go, of
/// other keys all is told.
pub(crate) fn since_of(key: &SubscriptionKey, since: u32) -> u32 {
    match key {
        SubscriptionKey::Script(_) | SubscriptionKey::Address(_) | SubscriptionKey::Account(_) => since,
        SubscriptionKey::Outpoint(_) | SubscriptionKey::Txid(_) | SubscriptionKey::Tip => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::{
        testing,
        wire::{ErrorCode, KeyOutcome},
    };

    const NEEDED: usize = 2;

    fn interest(since: u32) -> Interest {
        Interest::new(&SubscriptionKey::Script(vec![0x51].into()), since)
    }

    fn no() -> WireError {
        WireError::sender(ErrorCode::UnknownAccount, "no")
    }

    #[test]
    fn who_knows_less_than_what_is_kept_has_the_nodes_asked_again() {
        let mut interest = interest(100);
        assert!(interest.ask(100, None), "nobody has told of it");
        for link in 0..3 {
            interest.hear(LinkId(link), None, NEEDED);
        }
        assert!(!interest.ask(150, None) && !interest.ask(100, None));
        assert!(interest.ask(0, None));
        assert!(!interest.is_answered(), "until 2f + 1 have told more");
    }

    #[test]
    fn nodes_are_asked_again_with_a_record_that_they_may_not_have() {
        let world = testing::federation(4);
        let mut interest = interest(0);
        for link in 0..3 {
            interest.hear(LinkId(link), None, NEEDED);
        }
        assert!(interest.ask(0, Some(world.account.record())));
        assert!(interest.is_answered(), "without a wait for those who wait already");
        assert!(!interest.ask(0, Some(world.account.record())));
        assert!(!interest.ask(0, None) && interest.account.is_some());
    }

    #[test]
    fn a_key_that_too_many_nodes_refuse_is_refused_without_a_wait() {
        let mut interest = interest(0);
        interest.refuse(LinkId(1), no(), NEEDED);
        interest.refuse(LinkId(2), no(), NEEDED);
        assert!(!interest.is_answered(), "two others may know it");
        interest.refuse(LinkId(3), no(), NEEDED);
        assert!(interest.is_answered());
        assert_eq!(interest.answer(WalletId(1), 0, NEEDED), KeyOutcome::Error(no()));
        assert!(interest.ask(0, None), "asking again is no use of an old refusal");
        assert!(!interest.is_answered());
    }

    #[test]
    fn some_refusals_do_not_outweigh_those_who_tell() {
        let mut interest = interest(0);
        for link in [1, 2] {
            interest.refuse(LinkId(link), no(), NEEDED);
        }
        interest.hear(LinkId(3), None, NEEDED);
        interest.hear(LinkId(4), None, NEEDED);
        interest.settle_for_less(NEEDED);
        assert!(matches!(interest.answer(WalletId(1), 0, NEEDED), KeyOutcome::Snapshot { .. }));
    }
}
