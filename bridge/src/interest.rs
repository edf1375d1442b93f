//! What is kept of one key that somebody is interested in.

use crate::{
    facts::{Facts, Heard},
    refusals::no_node,
    tips::LinkId,
};
use quorate_protocol::{
    AccountId,
    account::AccountRecord,
    wire::{ErrorCode, KeyOutcome, SubscriptionKey, WireError},
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
        // A record that the nodes took is the right one, whatever somebody else sends.
        let taken = self.account.is_some() && self.ready && self.refused.is_empty();
        let unknown = account.filter(|account| !taken && self.account.as_deref() != Some(*account));
        if let Some(account) = unknown {
            self.account = Some(Box::new(account.clone()));
        }
        if since < self.since {
            self.since = since;
            self.ready = false;
            self.facts.hear_anew();
        }
        let asks = !self.ready || unknown.is_some() && !self.refused.is_empty();
        if asks {
            self.refused.clear();
            self.refusal = None;
        }
        asks
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

    /// A node has told all that it knows at present of what was spent from a height on. Whatever f of 2f + 1 nodes say,
    /// f + 1 others have told of it.
    pub(crate) fn hear(&mut self, link: LinkId, since: u32, heard: Heard, needed: usize) {
        // The answer to an earlier question, of which somebody wants more by now.
        if since > self.since {
            return;
        }
        self.facts.hear(link, heard, needed);
        self.refused.remove(&link);
        self.ready |= self.facts.heard() > 2 * (needed - 1);
    }

    /// A node refuses it.
    pub(crate) fn refuse(&mut self, link: LinkId, error: WireError, needed: usize) {
        self.refused.insert(link, error);
        if self.refused.len() > 2 * (needed - 1) {
            self.give_up(needed);
        }
    }

    /// Not all nodes that should have told of it are there: takes what f + 1 have told. If as many refuse it, a faulty
    /// one among the others could hide all news.
    pub(crate) fn settle_for_less(&mut self, needed: usize) {
        if self.refused.len() >= needed {
            self.give_up(needed);
        } else {
            self.ready |= self.facts.heard() >= needed;
        }
    }

    /// Refuses it for the reason that f + 1 nodes give, if they agree on one.
    fn give_up(&mut self, needed: usize) {
        if self.ready {
            return;
        }
        let given = |error: &&WireError| {
            let alike = |other: &&WireError| (other.code, other.retry) == (error.code, error.retry);
            self.refused.values().filter(alike).count() >= needed
        };
        let reason = self.refused.values().find(given).cloned();
        // Of an account its scripts are left, which other nodes may watch.
        let scripts = || {
            let message = "too few nodes follow the account: subscribe to its scripts";
            WireError::sender(ErrorCode::UnknownAccount, message)
        };
        let otherwise = || if self.account.is_some() { scripts() } else { no_node() };
        self.refusal = Some(reason.unwrap_or_else(otherwise));
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

    /// Forgets coins that blocks below a height spend: nobody can change that any more. Not while somebody waits for
    /// them.
    pub(crate) fn forget_below(&mut self, height: u32) {
        if !self.ready || self.wanted > self.sessions.len() {
            return;
        }
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
    use quorate_protocol::{testing, wire::Followed};

    const NEEDED: usize = 2;

    fn interest(since: u32) -> Interest {
        Interest::new(&SubscriptionKey::Script(vec![0x51].into()), since)
    }

    fn hear(interest: &mut Interest, links: std::ops::Range<u64>, since: u32) {
        links.for_each(|link| interest.hear(LinkId(link), since, Heard::default(), NEEDED));
    }

    fn no(code: ErrorCode) -> WireError {
        WireError::sender(code, "no")
    }

    fn refuse(interest: &mut Interest, link: u64, code: ErrorCode) {
        interest.refuse(LinkId(link), no(code), NEEDED);
    }

    #[test]
    fn who_knows_less_than_what_is_kept_has_the_nodes_asked_again() {
        let mut interest = interest(100);
        assert!(interest.ask(100, None), "nobody has told of it");
        hear(&mut interest, 0..3, 100);
        assert!(!interest.ask(150, None) && !interest.ask(100, None));
        assert!(interest.ask(0, None));
        hear(&mut interest, 0..4, 100);
        assert!(!interest.is_answered(), "these are answers to the first question");
        hear(&mut interest, 0..3, 0);
        assert!(interest.is_answered());
    }

    #[test]
    fn a_record_that_nodes_took_is_kept_and_one_that_they_did_not_is_replaced() {
        let world = testing::federation(4);
        let good = world.account.record().clone();
        let mut bad = good.clone();
        bad.recovery_delay += 1;
        let mut interest = interest(0);
        assert!(interest.ask(0, Some(&bad)));
        (0..3).for_each(|link| refuse(&mut interest, link, ErrorCode::UnknownAccount));
        assert!(interest.is_answered(), "it is refused");
        assert!(interest.ask(0, Some(&good)));
        assert_eq!(interest.account.as_deref(), Some(&good));
        hear(&mut interest, 0..3, 0);
        assert!(!interest.ask(0, Some(&bad)) && !interest.ask(0, Some(&good)) && !interest.ask(0, None));
        assert_eq!(interest.account.as_deref(), Some(&good), "nobody else's word changes it");
        // Some node did not know the account, and nobody had sent its record.
        interest.account = None;
        refuse(&mut interest, 3, ErrorCode::UnknownAccount);
        assert!(
            interest.ask(0, Some(&good)) && interest.is_answered(),
            "without a wait for who waits already"
        );
    }

    #[test]
    fn a_key_that_too_many_nodes_refuse_is_refused_without_a_wait_and_for_their_reason() {
        let mut interest = interest(0);
        refuse(&mut interest, 1, ErrorCode::Internal);
        refuse(&mut interest, 2, ErrorCode::UnknownAccount);
        assert!(!interest.is_answered(), "two others may know it");
        refuse(&mut interest, 3, ErrorCode::UnknownAccount);
        assert!(interest.is_answered());
        let outcome = interest.answer(WalletId(1), 0, NEEDED);
        assert_eq!(outcome, KeyOutcome::Error(no(ErrorCode::UnknownAccount)), "not that of one node");
        assert!(interest.ask(0, None), "asking again is no use of an old refusal");
        assert!(!interest.is_answered());
    }

    #[test]
    fn what_only_some_nodes_follow_is_refused_rather_than_half_known() {
        for refusing in [1, 2] {
            let mut interest = interest(0);
            (0..refusing).for_each(|link| refuse(&mut interest, link, ErrorCode::UnknownAccount));
            hear(&mut interest, 2..4, 0);
            interest.settle_for_less(NEEDED);
            let told = matches!(interest.answer(WalletId(1), 0, NEEDED), KeyOutcome::Snapshot { .. });
            assert_eq!(told, refusing == 1);
        }
    }

    #[test]
    fn an_account_that_nodes_refuse_for_different_reasons_is_left_to_its_scripts() {
        let mut interest = interest(0);
        interest.ask(0, Some(testing::federation(4).account.record()));
        refuse(&mut interest, 0, ErrorCode::UnknownAccount);
        interest.refuse(LinkId(1), WireError { retry: true, ..no(ErrorCode::Internal) }, NEEDED);
        hear(&mut interest, 2..4, 0);
        interest.settle_for_less(NEEDED);
        let outcome = interest.answer(WalletId(1), 0, NEEDED);
        let for_good = |error: &WireError| error.code == ErrorCode::UnknownAccount && !error.retry;
        assert!(matches!(&outcome, KeyOutcome::Error(error) if for_good(error)), "{outcome:?}");
    }

    #[test]
    fn addresses_count_as_followed_if_enough_nodes_follow_them() {
        let mut interest = interest(0);
        let followed = |receive| Followed { receive, change: 20 };
        for (link, receive) in [(1, 500), (2, 40), (3, 90), (4, 70)] {
            let heard = Heard { history_from: None, followed: Some(followed(receive)) };
            interest.hear(LinkId(link), 0, heard, NEEDED);
        }
        assert_eq!(interest.facts.followed(), Some(followed(70)), "two honest nodes among three");
        interest.facts.follow(LinkId(4), followed(91), NEEDED);
        assert_eq!(interest.facts.followed(), Some(followed(90)));
        interest.forget(LinkId(3));
        interest.facts.follow(LinkId(4), followed(92), NEEDED);
        assert_eq!(interest.facts.followed(), Some(followed(40)), "all that there are");
        interest.forget(LinkId(1));
        interest.forget(LinkId(2));
        interest.facts.follow(LinkId(4), followed(u32::MAX), NEEDED);
        assert_eq!(interest.facts.followed(), Some(followed(40)), "one alone has no say");
    }
}
