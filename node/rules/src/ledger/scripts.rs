//! Scripts whose outputs are indexed: those of registered accounts, a gap ahead of the last one that was used, and
//! those that somebody subscribed to.
//!
//! Nothing else is: a chain has more outputs than a node has memory. Coins of other scripts are looked up when somebody
//! names them.

use crate::index::{AccountEntry, IndexedAccount, ScriptEntry};
use bitcoin::ScriptBuf;
use quorate_protocol::{
    AccountId,
    account::{ACCOUNT_GAP, AccountRecord, JointAccount, Keychain, KeychainIndex},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Scripts that are indexed at most because somebody subscribed to them. Those of accounts have their own room.
pub(crate) const LEASES_MAX: usize = 1_000_000;
/// Accounts that are indexed at most. One that finds no room is served by its wallet's subscriptions, and is indexed
/// when it pays and there is room again; nobody can push out another one.
const ACCOUNTS_MAX: usize = 200_000;
/// Of these, accounts that never had a coin.
const UNUSED_ACCOUNTS_MAX: usize = 65_536;
/// Blocks after which an account that never had a coin is forgotten: 30 days.
const UNUSED_BLOCKS: u32 = 4_320;
/// Blocks for which a script is indexed after the last subscription to it: a week.
const LEASE_BLOCKS: u32 = 1_008;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    scripts: HashMap<ScriptBuf, ScriptEntry>,
    accounts: BTreeMap<AccountId, AccountEntry>,
    /// Accounts that never had a coin, by the height at which they registered or their owners were there last.
    unused: BTreeSet<(u32, AccountId)>,
    /// Scripts that are of no account.
    leases: usize,
    /// What the index has otherwise.
    pub(super) stale: BTreeSet<ScriptBuf>,
    pub(super) stale_accounts: BTreeSet<AccountId>,
}

impl Scripts {
    pub(super) fn restore(scripts: Vec<(ScriptBuf, ScriptEntry)>, accounts: Vec<IndexedAccount>) -> Self {
        let accounts: BTreeMap<_, _> = accounts.into_iter().map(|one| (one.id, one.entry)).collect();
        let unused = accounts.iter().filter(|(_, entry)| !entry.is_used());
        let unused = unused.map(|(id, entry)| (entry.since, *id)).collect();
        let leases = scripts.iter().filter(|(_, entry)| entry.of.is_none()).count();
        Self { scripts: scripts.into_iter().collect(), accounts, unused, leases, ..Self::default() }
    }

    pub(super) fn get(&self, script: &ScriptBuf) -> Option<&ScriptEntry> {
        self.scripts.get(script)
    }

    pub(super) fn account(&self, id: &AccountId) -> Option<&AccountEntry> {
        self.accounts.get(id)
    }

    /// How many there are: scripts and accounts.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.scripts.len(), self.accounts.len())
    }

    /// Somebody wants to hear of a script, at a tip of this height. `false` if there is no room.
    pub(super) fn want(&mut self, script: &ScriptBuf, tip: u32) -> bool {
        if let Some(entry) = self.scripts.get_mut(script) {
            if entry.wanted_at != tip {
                entry.wanted_at = tip;
                self.stale.insert(script.clone());
            }
            if let Some((id, _)) = entry.of {
                self.still_wanted(id, tip);
            }
            return true;
        }
        let room = self.leases < LEASES_MAX;
        if room {
            self.put(script.clone(), ScriptEntry { from: tip + 1, wanted_at: tip, of: None });
        }
        room
    }

    fn put(&mut self, script: ScriptBuf, entry: ScriptEntry) {
        self.stale.insert(script.clone());
        let is_lease = entry.of.is_none();
        let was_lease = self.scripts.insert(script, entry).map(|before| before.of.is_none());
        self.leases += usize::from(is_lease && was_lease != Some(true));
        self.leases -= usize::from(!is_lease && was_lease == Some(true));
    }

    /// The owner of an account that never had a coin is there: its time begins anew.
    fn still_wanted(&mut self, id: AccountId, tip: u32) {
        let Some(entry) = self.accounts.get_mut(&id).filter(|entry| !entry.is_used()) else { return };
        if entry.since < tip && self.unused.remove(&(entry.since, id)) {
            entry.since = tip;
            self.unused.insert((tip, id));
            self.stale_accounts.insert(id);
        }
    }

    /// An account registers, at a tip of this height. The scripts that are known already keep their history. Gives its
    /// scripts.
    pub(super) fn register(&mut self, id: AccountId, account: &JointAccount, tip: u32) -> Vec<ScriptBuf> {
        let room = self.accounts.len() < ACCOUNTS_MAX && self.unused.len() < UNUSED_ACCOUNTS_MAX;
        if self.accounts.contains_key(&id) || !room {
            return Vec::new();
        }
        let entry = AccountEntry { record: account.record().clone(), since: tip, next: [0; 2] };
        self.unused.insert((tip, id));
        self.accounts.insert(id, entry);
        self.stale_accounts.insert(id);
        let derive = |keychain| self.derive(id, account, keychain, 0..ACCOUNT_GAP, tip);
        [Keychain::Receive, Keychain::Change].into_iter().flat_map(derive).collect()
    }

    fn derive(
        &mut self,
        id: AccountId,
        account: &JointAccount,
        keychain: Keychain,
        indexes: std::ops::Range<u32>,
        tip: u32,
    ) -> Vec<ScriptBuf> {
        let mut scripts = Vec::new();
        for index in indexes {
            let position = KeychainIndex { keychain, index };
            // An index beyond 2^31 has no address, and nobody comes so far.
            let Ok(address) = account.address(position) else { break };
            let script = address.script_pubkey;
            let known = self.scripts.get(&script).copied();
            let fresh = ScriptEntry { from: tip + 1, wanted_at: tip, of: None };
            self.put(script.clone(), ScriptEntry { of: Some((id, position)), ..known.unwrap_or(fresh) });
            scripts.push(script);
        }
        scripts
    }

    /// Which position of which account a script is, if it is beyond those that had a coin before.
    pub(super) fn used(&self, script: &ScriptBuf) -> Option<(AccountId, KeychainIndex)> {
        let (id, position) = self.scripts.get(script)?.of?;
        let entry = self.accounts.get(&id)?;
        (position.index >= entry.next_of(position.keychain)).then_some((id, position))
    }

    /// Derives scripts up to a gap after the one that was used; gives these.
    pub(super) fn extend(
        &mut self,
        id: AccountId,
        account: &JointAccount,
        used: KeychainIndex,
        tip: u32,
    ) -> Vec<ScriptBuf> {
        let Some(entry) = self.accounts.get_mut(&id) else { return Vec::new() };
        if !entry.is_used() {
            self.unused.remove(&(entry.since, id));
        }
        let before = entry.next_of(used.keychain);
        let next = used.index.saturating_add(1).max(before);
        entry.set_next(used.keychain, next);
        self.stale_accounts.insert(id);
        let (from, to) = (before.saturating_add(ACCOUNT_GAP), next.saturating_add(ACCOUNT_GAP));
        self.derive(id, account, used.keychain, from..to, tip)
    }

    /// Forgets accounts that never had a coin, and scripts that nobody wants to hear of any more.
    pub(super) fn sweep(
        &mut self,
        tip: u32,
        listened: impl Fn(&ScriptBuf) -> bool,
        followed: impl Fn(&AccountId) -> bool,
    ) {
        let unused = self.unused.iter().map(|(_, id)| *id);
        let mut heard: BTreeSet<AccountId> = unused.filter(followed).collect();
        for (script, entry) in &mut self.scripts {
            if listened(script) {
                entry.wanted_at = tip;
                heard.extend(entry.of.map(|(id, _)| id));
                self.stale.insert(script.clone());
            }
        }
        heard.into_iter().for_each(|id| self.still_wanted(id, tip));
        while let Some((since, id)) =
            self.unused.first().copied().filter(|(since, _)| since + UNUSED_BLOCKS < tip)
        {
            // Its scripts are taken away below, unless a subscription keeps them.
            self.unused.remove(&(since, id));
            self.accounts.remove(&id);
            self.stale_accounts.insert(id);
        }
        let is_of_account = |(id, _): (AccountId, _)| self.accounts.contains_key(&id);
        let over = |entry: &ScriptEntry| {
            !entry.of.is_some_and(is_of_account) && entry.wanted_at + LEASE_BLOCKS < tip
        };
        let ended: Vec<ScriptBuf> =
            self.scripts.iter().filter(|(_, entry)| over(entry)).map(|(script, _)| script.clone()).collect();
        for script in ended {
            let was = self.scripts.remove(&script);
            self.leases -= usize::from(was.is_some_and(|entry| entry.of.is_none()));
            self.stale.insert(script);
        }
    }

    /// The record that more scripts of an account are derived from.
    pub(super) fn record(&self, id: &AccountId) -> Option<&AccountRecord> {
        self.accounts.get(id).map(|entry| &entry.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::testing;

    fn script(account: &JointAccount, keychain: Keychain, index: u32) -> ScriptBuf {
        account.address(KeychainIndex { keychain, index }).expect("an address").script_pubkey
    }

    fn none(_: &ScriptBuf) -> bool {
        false
    }

    fn nobody(_: &AccountId) -> bool {
        false
    }

    #[test]
    fn an_account_is_indexed_a_gap_ahead_of_what_it_used() {
        let world = testing::federation(4);
        let (account, id) = (&world.account, world.account.id());
        let mut scripts = Scripts::default();
        scripts.register(id, account, 100);
        scripts.register(id, account, 200);
        let from = |scripts: &Scripts, index| {
            scripts.get(&script(account, Keychain::Receive, index)).map(|entry| entry.from)
        };
        assert_eq!(from(&scripts, ACCOUNT_GAP - 1), Some(101), "from when it registered first");
        assert_eq!(from(&scripts, ACCOUNT_GAP), None);
        let (_, used) = scripts.used(&script(account, Keychain::Receive, 7)).expect("news");
        scripts.extend(id, account, used, 300);
        assert_eq!(scripts.used(&script(account, Keychain::Receive, 7)), None, "no news any more");
        assert_eq!(scripts.used(&script(account, Keychain::Receive, 3)), None, "nor what is before it");
        assert_eq!(from(&scripts, ACCOUNT_GAP + 7), Some(301));
        assert_eq!(from(&scripts, ACCOUNT_GAP + 8), None);
        assert!(scripts.get(&script(account, Keychain::Change, ACCOUNT_GAP)).is_none());
        // One that has had a coin is kept.
        scripts.sweep(1_000_000, none, nobody);
        assert_eq!(scripts.len(), (2 * 20 + 8, 1));
    }

    #[test]
    fn an_account_without_a_coin_is_forgotten_after_a_month_with_its_scripts() {
        let world = testing::federation(4);
        let mut scripts = Scripts::default();
        scripts.register(world.account.id(), &world.account, 100);
        scripts.sweep(100 + UNUSED_BLOCKS, none, nobody);
        assert_eq!(scripts.len(), (40, 1));
        let heard = script(&world.account, Keychain::Receive, 0);
        scripts.sweep(101 + UNUSED_BLOCKS, |one| *one == heard, nobody);
        assert_eq!(scripts.len(), (40, 1), "its owner listens: its time begins anew");
        scripts.sweep(101 + 2 * UNUSED_BLOCKS, none, |id| *id == world.account.id());
        scripts.sweep(101 + 3 * UNUSED_BLOCKS, none, nobody);
        assert_eq!(scripts.len(), (40, 1), "to one script, or to all of them by the account");
        scripts.sweep(102 + 3 * UNUSED_BLOCKS, none, nobody);
        assert_eq!(scripts.len(), (0, 0));
    }

    #[test]
    fn a_script_is_indexed_for_a_week_after_the_last_subscription() {
        let mut scripts = Scripts::default();
        let other = ScriptBuf::from_bytes(vec![0x51]);
        assert!(scripts.want(&other, 100));
        scripts.sweep(500, |_| true, nobody);
        scripts.sweep(500 + LEASE_BLOCKS, none, nobody);
        assert_eq!((scripts.len(), scripts.leases), ((1, 0), 1));
        scripts.sweep(501 + LEASE_BLOCKS, none, nobody);
        assert_eq!((scripts.len(), scripts.leases), ((0, 0), 0));
    }

    #[test]
    fn subscriptions_take_no_room_from_accounts() {
        let world = testing::federation(4);
        let mut scripts = Scripts { leases: LEASES_MAX, ..Scripts::default() };
        assert!(!scripts.want(&ScriptBuf::from_bytes(vec![0x51]), 1), "no room, and it is said");
        scripts.register(world.account.id(), &world.account, 1);
        assert_eq!(scripts.len(), (40, 1));
        assert!(scripts.want(&script(&world.account, Keychain::Receive, 0), 2), "it is indexed already");
    }

    #[test]
    fn accounts_without_a_coin_are_bounded_and_push_nobody_out() {
        let world = testing::federation(4);
        let mut scripts = Scripts::default();
        let id = |number: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            AccountId(id)
        };
        let entry = |since, next| AccountEntry { record: world.account.record().clone(), since, next };
        scripts.accounts.insert(id(0), entry(1, [1, 0]));
        for number in 1..=u32::try_from(UNUSED_ACCOUNTS_MAX).expect("fits") {
            scripts.accounts.insert(id(number), entry(number, [0; 2]));
            scripts.unused.insert((number, id(number)));
        }
        let before = scripts.accounts.len();
        scripts.register(world.account.id(), &world.account, 5_000);
        assert_eq!(scripts.len(), (0, before), "no room");
        assert!(scripts.account(&id(0)).is_some() && scripts.account(&id(1)).is_some());
        scripts.sweep(2 + UNUSED_BLOCKS, none, nobody);
        scripts.register(world.account.id(), &world.account, 5_000);
        assert_eq!(scripts.len(), (40, before), "one has gone by its time");
    }
}
