//! Scripts whose outputs are indexed: those of registered accounts, a gap ahead of the last one that was used, and
//! those that somebody subscribed to.
//!
//! Nothing else is: a chain has more outputs than a node has memory. Coins of other scripts are looked up when somebody
//! names them.

use super::leases::Leases;
use crate::{
    index::{AccountEntry, AddressRow, Addresses, FoundAddresses, Lease, Place, ShortKey, short_key},
    records::{ChangeSet, Row, Table},
};
use bitcoin::{Script, ScriptBuf};
use quorate_protocol::{
    AccountId,
    account::{ACCOUNT_GAP, AccountRecord, JointAccount, Keychain, KeychainIndex},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

/// Accounts that are indexed at most. One that finds no room is served by its wallet's subscriptions, and is indexed
/// when it pays and there is room again; nobody can push out another one.
const ACCOUNTS_MAX: usize = 200_000;
/// Of these, accounts that never had a coin.
const UNUSED_ACCOUNTS_MAX: usize = 65_536;
/// Blocks after which an account that never had a coin is forgotten: 30 days.
const UNUSED_BLOCKS: u32 = 4_320;
/// Where an account's addresses begin.
const FIRST: [KeychainIndex; 2] = [
    KeychainIndex { keychain: Keychain::Receive, index: 0 },
    KeychainIndex { keychain: Keychain::Change, index: 0 },
];
/// All of them.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    /// Those that are of no account.
    leases: Leases,
    accounts: BTreeMap<AccountId, Account>,
    addresses: Addresses,
    /// Accounts that never had a coin, by the height at which they registered or their owners were there last.
    unused: BTreeSet<(u32, AccountId)>,
    /// Accounts that have not been searched for.
    unsearched: VecDeque<AccountId>,
    /// What the index has otherwise.
    stale_accounts: BTreeSet<AccountId>,
    /// Rows that the index lacks; it has to lose those without addresses.
    stale_addresses: BTreeMap<AddressRow, Vec<ShortKey>>,
    /// Rows that the index has for nothing.
    useless: Vec<(Table, Vec<u8>)>,
    /// Accounts some of whose addresses the index did not have.
    broken: Vec<AccountId>,
}

/// An account with the number that its addresses refer to it by.
#[derive(Debug)]
struct Account {
    slot: u32,
    entry: AccountEntry,
}

impl Scripts {
    /// As the index has it. The addresses of an account of which some are missing there have to be derived again.
    pub(super) fn restore(
        leases: Vec<(ScriptBuf, Lease)>,
        accounts: Vec<(AccountId, AccountEntry)>,
        addresses: FoundAddresses,
        rows: &[(Place, usize)],
        useless: Vec<(Table, Vec<u8>)>,
    ) -> Self {
        let broken = broken(&accounts, rows);
        let is_whole = |place: &Place| broken.get(place.slot()) == Some(&false);
        let leases = Leases::restore(leases);
        // What has to be derived again takes no address from others meanwhile.
        let rank =
            |place: Place| (is_whole(&place), accounts.get(place.slot()).map(|(_, entry)| entry.rank()));
        let addresses = addresses.sorted(rank);
        let mut restored = Self { leases, addresses, useless, ..Self::default() };
        for (place, _) in rows.iter().filter(|(place, _)| !is_whole(place)) {
            if let Some((id, _)) = accounts.get(place.slot()) {
                let row = AddressRow::new(*id, place.position());
                restored.stale_addresses.insert(row, Vec::new());
            }
        }
        let mut unsearched = Vec::new();
        for ((id, entry), broken) in accounts.iter().zip(broken) {
            if !entry.is_used() {
                restored.unused.insert((entry.wanted_at, *id));
            }
            if !entry.searched {
                unsearched.push((entry.rank(), *id));
            }
            restored.broken.extend(broken.then_some(*id));
        }
        // A tree that is made at once has no room to spare, which takes half of one that grows.
        let numbered = (0..).zip(accounts).map(|(slot, (id, entry))| (id, Account { slot, entry }));
        restored.accounts = numbered.collect();
        // Accounts that have had coins first.
        unsearched.sort_unstable_by_key(|((used, since), id)| (!used, *since, *id));
        restored.unsearched = unsearched.into_iter().map(|(_, id)| id).collect();
        restored
    }

    /// Accounts whose addresses have to be derived again.
    pub(super) fn take_broken(&mut self) -> Vec<AccountId> {
        std::mem::take(&mut self.broken)
    }

    /// Derives all addresses of an account again, which is nothing if its record cannot be read; gives its scripts.
    pub(super) fn derive_again(&mut self, id: AccountId, account: Option<&JointAccount>) -> Vec<ScriptBuf> {
        self.stale_accounts.insert(id);
        let Some(account) = account else {
            self.forget(id);
            return Vec::new();
        };
        let Some(Account { slot, entry }) = self.accounts.get(&id) else { return Vec::new() };
        let (slot, reaches) = (*slot, FIRST.map(|first| (first.keychain, entry.reach(first.keychain))));
        let derive = |(keychain, reach)| self.derive(slot, account, keychain, 0..reach);
        reaches.into_iter().flat_map(derive).collect()
    }

    fn forget(&mut self, id: AccountId) {
        if let Some(Account { slot, entry }) = self.accounts.remove(&id) {
            self.unused.remove(&(entry.wanted_at, id));
            self.addresses.close(slot);
        }
        self.stale_accounts.insert(id);
    }

    /// What has changed since this was last asked for.
    pub(super) fn take_index(&mut self) -> ChangeSet {
        let mut change = ChangeSet::default();
        for (table, key) in std::mem::take(&mut self.useless) {
            change.put_row(Row { table, key, value: Vec::new() });
        }
        self.leases.take_index(&mut change);
        for id in std::mem::take(&mut self.stale_accounts) {
            change.put_account(&id, self.account(&id));
        }
        for (row, keys) in std::mem::take(&mut self.stale_addresses) {
            change.put_addresses(&row, &keys);
        }
        change
    }

    /// Whether outputs of a script are indexed.
    pub(super) fn has(&self, script: &Script) -> bool {
        self.addresses.get(script).is_some() || self.leases.get(script).is_some()
    }

    /// The account that a script is of.
    pub(super) fn account_of(&self, script: &Script) -> Option<AccountId> {
        self.addresses.get(script).map(|(id, _)| id)
    }

    /// The height from which a script's history is known, at least; none if it is not indexed.
    pub(super) fn history_of(&self, script: &ScriptBuf) -> Option<u32> {
        let of_account = || {
            let (id, position) = self.addresses.get(script)?;
            Some(self.account(&id)?.history_of(position))
        };
        of_account().or_else(|| self.leases.get(script).map(|lease| lease.from))
    }

    pub(super) fn account(&self, id: &AccountId) -> Option<&AccountEntry> {
        self.accounts.get(id).map(|account| &account.entry)
    }

    /// How many there are: scripts and accounts.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.leases.len() + self.addresses.len(), self.accounts.len())
    }

    /// Somebody wants to hear of a script, at a tip of this height. `false` if there is no room.
    pub(super) fn want(&mut self, script: &ScriptBuf, tip: u32) -> bool {
        if let Some(id) = self.account_of(script) {
            self.still_wanted(id, tip);
            return true;
        }
        self.leases.want(script, tip)
    }

    /// As [`Leases::make_room`].
    pub(super) fn make_room<'a, I: Iterator<Item = &'a ScriptBuf>>(
        &mut self,
        tip: u32,
        listened: impl FnOnce() -> I,
    ) -> bool {
        self.leases.make_room(tip, listened)
    }

    /// The owner of an account that never had a coin is there: its time begins anew.
    fn still_wanted(&mut self, id: AccountId, tip: u32) {
        let Some(Account { entry, .. }) = self.accounts.get_mut(&id).filter(|one| !one.entry.is_used())
        else {
            return;
        };
        if entry.wanted_at < tip && self.unused.remove(&(entry.wanted_at, id)) {
            entry.wanted_at = tip;
            self.unused.insert((tip, id));
            self.stale_accounts.insert(id);
        }
    }

    /// An account registers, at a tip of this height. Gives its scripts.
    pub(super) fn register(&mut self, id: AccountId, account: &JointAccount, tip: u32) -> Vec<ScriptBuf> {
        if self.accounts.contains_key(&id) || self.full().is_some() {
            return Vec::new();
        }
        let (slot, entry) = (self.addresses.open(id), AccountEntry::new(account.record(), tip));
        self.unused.insert((tip, id));
        self.unsearched.push_back(id);
        self.accounts.insert(id, Account { slot, entry });
        self.stale_accounts.insert(id);
        let derive = |first: KeychainIndex| self.derive(slot, account, first.keychain, 0..ACCOUNT_GAP);
        FIRST.into_iter().flat_map(derive).collect()
    }

    /// What there is no room for, and how many of them there are at most.
    pub(super) fn full(&self) -> Option<(&'static str, usize)> {
        if self.accounts.len() >= ACCOUNTS_MAX {
            return Some(("accounts that a node follows", ACCOUNTS_MAX));
        }
        let unused = self.unused.len() >= UNUSED_ACCOUNTS_MAX;
        unused.then_some(("accounts without a coin that a node follows", UNUSED_ACCOUNTS_MAX))
    }

    /// As if so many accounts without a coin were followed.
    #[cfg(test)]
    pub(super) fn crowd(&mut self, accounts: u32) {
        self.unused = (0..accounts).map(|number| (number, AccountId([0; 32]))).collect();
    }

    /// How many accounts more without a coin have room, if half of it is taken.
    pub(super) fn scarce_room(&self) -> Option<usize> {
        let left = UNUSED_ACCOUNTS_MAX.saturating_sub(self.unused.len());
        (left <= UNUSED_ACCOUNTS_MAX / 2).then_some(left)
    }

    fn derive(
        &mut self,
        slot: u32,
        account: &JointAccount,
        keychain: Keychain,
        indexes: Range<u32>,
    ) -> Vec<ScriptBuf> {
        let row = AddressRow::new(account.id(), KeychainIndex { keychain, index: indexes.start });
        let (mut scripts, mut keys) = (Vec::new(), Vec::new());
        for index in indexes {
            let position = KeychainIndex { keychain, index };
            // An index beyond 2^31 has no address, and nobody comes so far.
            let Ok(address) = account.address(position) else { break };
            let script = address.script_pubkey;
            let Some(key) = short_key(&script) else { break };
            keys.push(key);
            if !self.is_kept_by_another(account.id(), &script) {
                self.addresses.put(&key, Place::new(slot, position));
            }
            self.leases.remove(&script);
            scripts.push(script);
        }
        if !keys.is_empty() {
            self.stale_addresses.insert(row, keys);
        }
        scripts
    }

    /// Whether another account has the same address, and has had coins.
    fn is_kept_by_another(&self, id: AccountId, script: &ScriptBuf) -> bool {
        let other = self.account_of(script).filter(|other| *other != id);
        other.and_then(|other| self.account(&other)).is_some_and(AccountEntry::is_used)
    }

    /// Which position of which account a script is, if it is beyond those that had a coin before.
    pub(super) fn used(&self, script: &ScriptBuf) -> Option<(AccountId, KeychainIndex)> {
        let (id, position) = self.addresses.get(script)?;
        (position.index >= self.account(&id)?.next_of(position.keychain)).then_some((id, position))
    }

    /// Derives scripts up to a gap after the one that was used; gives these.
    pub(super) fn extend(
        &mut self,
        id: AccountId,
        account: &JointAccount,
        used: KeychainIndex,
        tip: u32,
    ) -> Vec<ScriptBuf> {
        let Some(Account { slot, entry }) = self.accounts.get_mut(&id) else { return Vec::new() };
        if !entry.is_used() {
            self.unused.remove(&(entry.wanted_at, id));
        }
        let before = entry.next_of(used.keychain);
        let next = used.index.saturating_add(1).max(before);
        if next == before {
            return Vec::new();
        }
        entry.extend(used.keychain, next, tip);
        self.stale_accounts.insert(id);
        let (from, to) = (before.saturating_add(ACCOUNT_GAP), next.saturating_add(ACCOUNT_GAP));
        let slot = *slot;
        self.derive(slot, account, used.keychain, from..to)
    }

    pub(super) fn has_unsearched(&self) -> bool {
        !self.unsearched.is_empty()
    }

    /// Takes accounts that are to be searched for, those that have waited longest, with the addresses that they reach.
    pub(super) fn take_unsearched(&mut self, most: usize) -> Vec<(AccountId, AccountRecord, [u32; 2])> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(id) = self.unsearched.pop_front()
        {
            let Some(entry) = self.account(&id).filter(|entry| !entry.searched) else { continue };
            // One whose record cannot be read has no addresses, either.
            let Some(record) = entry.record() else { continue };
            taken.push((id, record, FIRST.map(|first| entry.reach(first.keychain))));
        }
        taken
    }

    /// Puts those of them back that are still to be searched for.
    pub(super) fn put_unsearched(&mut self, accounts: &[(AccountId, [u32; 2])]) {
        let left = |id: &AccountId| self.account(id).is_some_and(|entry| !entry.searched);
        let left: Vec<AccountId> = accounts.iter().map(|(id, _)| *id).filter(left).collect();
        self.unsearched.extend(left);
    }

    /// Accounts have been searched for, with as many addresses; one that has more by now is searched for again.
    pub(super) fn mark_searched(&mut self, accounts: &[(AccountId, [u32; 2])]) {
        for (id, reach) in accounts {
            let Some(Account { entry, .. }) = self.accounts.get_mut(id) else { continue };
            if FIRST.map(|first| entry.reach(first.keychain)) == *reach {
                entry.searched = true;
                self.stale_accounts.insert(*id);
            }
        }
    }

    /// Forgets accounts that never had a coin, and scripts that nobody wants to hear of any more.
    pub(super) fn sweep<'a>(
        &mut self,
        tip: u32,
        listened: impl Iterator<Item = &'a ScriptBuf>,
        followed: impl Fn(&AccountId) -> bool,
    ) {
        let unused = self.unused.iter().map(|(_, id)| *id);
        let mut heard: BTreeSet<AccountId> = unused.filter(followed).collect();
        for script in listened {
            self.leases.renew(script, tip);
            heard.extend(self.account_of(script));
        }
        heard.into_iter().for_each(|id| self.still_wanted(id, tip));
        while let Some((since, id)) =
            self.unused.first().copied().filter(|(since, _)| since + UNUSED_BLOCKS < tip)
        {
            self.unused.remove(&(since, id));
            self.forget(id);
            self.stale_addresses.extend(FIRST.map(|first| (AddressRow::new(id, first), Vec::new())));
        }
        self.leases.sweep(tip);
    }
}

/// By slot, the accounts whose rows are not just those of their addresses: one is lost, or left from before it was.
fn broken(accounts: &[(AccountId, AccountEntry)], rows: &[(Place, usize)]) -> Vec<bool> {
    // How far the rows reach without a gap; they come in order.
    let mut reached = vec![[Some(0_usize); 2]; accounts.len()];
    for (place, count) in rows {
        let KeychainIndex { keychain, index } = place.position();
        let Some([receive, change]) = reached.get_mut(place.slot()) else { continue };
        let reached = match keychain {
            Keychain::Receive => receive,
            Keychain::Change => change,
        };
        let follows = *reached == usize::try_from(index).ok();
        *reached = reached.filter(|_| follows).and_then(|reached| reached.checked_add(*count));
    }
    let whole = |entry: &AccountEntry| FIRST.map(|first| usize::try_from(entry.reach(first.keychain)).ok());
    accounts.iter().zip(reached).map(|((_, entry), reached)| whole(entry) != reached).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::Indexed,
        ledger::leases::{LEASE_BLOCKS, LEASES_MAX},
    };
    use quorate_protocol::testing;

    fn script(account: &JointAccount, keychain: Keychain, index: u32) -> ScriptBuf {
        account.address(KeychainIndex { keychain, index }).expect("an address").script_pubkey
    }

    fn none() -> std::iter::Empty<&'static ScriptBuf> {
        std::iter::empty()
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
        let from = |scripts: &Scripts, index| scripts.history_of(&script(account, Keychain::Receive, index));
        assert_eq!(from(&scripts, ACCOUNT_GAP - 1), Some(101), "from when it registered first");
        assert_eq!(from(&scripts, ACCOUNT_GAP), None);
        let (_, used) = scripts.used(&script(account, Keychain::Receive, 7)).expect("news");
        scripts.extend(id, account, used, 300);
        assert_eq!(scripts.used(&script(account, Keychain::Receive, 7)), None, "no news any more");
        assert_eq!(scripts.used(&script(account, Keychain::Receive, 3)), None, "nor what is before it");
        assert_eq!(from(&scripts, ACCOUNT_GAP + 7), Some(301));
        assert_eq!(from(&scripts, ACCOUNT_GAP + 8), None);
        assert!(!scripts.has(&script(account, Keychain::Change, ACCOUNT_GAP)));
        // One that has had a coin is kept.
        scripts.sweep(1_000_000, none(), nobody);
        assert_eq!(scripts.len(), (2 * 20 + 8, 1));
    }

    #[test]
    fn an_account_without_a_coin_is_forgotten_after_a_month_with_its_scripts() {
        let world = testing::federation(4);
        let mut scripts = Scripts::default();
        scripts.register(world.account.id(), &world.account, 100);
        scripts.sweep(100 + UNUSED_BLOCKS, none(), nobody);
        assert_eq!(scripts.len(), (40, 1));
        let heard = script(&world.account, Keychain::Receive, 0);
        scripts.sweep(101 + UNUSED_BLOCKS, std::iter::once(&heard), nobody);
        assert_eq!(scripts.len(), (40, 1), "its owner listens: its time begins anew");
        scripts.sweep(101 + 2 * UNUSED_BLOCKS, none(), |id| *id == world.account.id());
        scripts.sweep(101 + 3 * UNUSED_BLOCKS, none(), nobody);
        assert_eq!(scripts.len(), (40, 1), "to one script, or to all of them by the account");
        scripts.sweep(102 + 3 * UNUSED_BLOCKS, none(), nobody);
        assert_eq!(scripts.len(), (0, 0));
    }

    #[test]
    fn a_script_is_indexed_for_a_week_after_the_last_subscription() {
        let mut scripts = Scripts::default();
        let other = ScriptBuf::from_bytes(vec![0x51]);
        assert!(scripts.want(&other, 100));
        scripts.sweep(500, std::iter::once(&other), nobody);
        scripts.sweep(500 + LEASE_BLOCKS, none(), nobody);
        assert_eq!(scripts.len(), (1, 0));
        scripts.sweep(501 + LEASE_BLOCKS, none(), nobody);
        assert_eq!(scripts.len(), (0, 0));
    }

    #[test]
    fn subscriptions_take_no_room_from_accounts() {
        let world = testing::federation(4);
        let mut scripts = Scripts::default();
        for number in 0..LEASES_MAX {
            assert!(scripts.want(&ScriptBuf::from_bytes(number.to_be_bytes().to_vec()), 1));
        }
        let other = ScriptBuf::from_bytes(vec![0x51]);
        assert!(!scripts.want(&other, 1), "no room, and it is said");
        scripts.register(world.account.id(), &world.account, 1);
        assert_eq!(scripts.len(), (LEASES_MAX + 40, 1));
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
        let entry = AccountEntry::new(world.account.record(), 1);
        assert_eq!(scripts.scarce_room(), None);
        let mut used = entry.clone();
        used.extend(Keychain::Receive, 1, 1);
        scripts.accounts.insert(id(0), Account { slot: scripts.addresses.open(id(0)), entry: used });
        for number in 1..=u32::try_from(UNUSED_ACCOUNTS_MAX).expect("fits") {
            let mut entry = entry.clone();
            entry.wanted_at = number;
            let slot = scripts.addresses.open(id(number));
            scripts.accounts.insert(id(number), Account { slot, entry });
            scripts.unused.insert((number, id(number)));
            let scarce = (number >= 32_768).then_some(65_536 - number);
            assert_eq!(scripts.scarce_room().map(u32::try_from), scarce.map(Ok), "half is free to all");
        }
        let before = scripts.accounts.len();
        scripts.register(world.account.id(), &world.account, 5_000);
        assert_eq!(scripts.len(), (0, before), "no room");
        assert_eq!(scripts.full().map(|(_, limit)| limit), Some(UNUSED_ACCOUNTS_MAX));
        assert!(scripts.account(&id(0)).is_some() && scripts.account(&id(1)).is_some());
        scripts.sweep(2 + UNUSED_BLOCKS, none(), nobody);
        scripts.register(world.account.id(), &world.account, 5_000);
        assert_eq!(scripts.len(), (40, before), "one has gone by its time");
        // Those that have had coins take the room of all.
        scripts.unused.clear();
        for number in u32::try_from(before).expect("fits")..u32::try_from(ACCOUNTS_MAX).expect("fits") {
            let slot = scripts.addresses.open(id(number));
            scripts.accounts.insert(id(number), Account { slot, entry: entry.clone() });
        }
        let other = testing::federation(7);
        scripts.register(other.account.id(), &other.account, 5_000);
        assert!(scripts.account(&other.account.id()).is_none(), "no room");
        assert_eq!(scripts.full().map(|(_, limit)| limit), Some(ACCOUNTS_MAX));
    }

    /// The scripts as a node has them that starts with what the index was given.
    fn started(rows: &[Row]) -> Scripts {
        let stored: BTreeMap<_, _> = rows.iter().map(|row| ((row.table, &row.key), row)).collect();
        let mut index = Indexed::default();
        for row in stored.values().filter(|row| !row.value.is_empty()) {
            index.take(row).expect("what was written");
        }
        Scripts::restore(index.leases, index.accounts, index.addresses, &index.rows, index.useless)
    }

    #[test]
    fn a_start_finds_what_there_was_and_derives_again_what_is_lost() {
        let world = testing::federation(4);
        let (account, id) = (&world.account, world.account.id());
        let mut scripts = Scripts::default();
        let mut rows = Vec::new();
        let mut write = |scripts: &mut Scripts| {
            rows.extend(scripts.take_index().rows().to_vec());
            rows.clone()
        };
        assert!(scripts.want(&ScriptBuf::from_bytes(vec![0x51]), 3));
        assert!(scripts.want(&script(account, Keychain::Receive, 4), 3));
        scripts.register(id, account, 5);
        let unused = started(&write(&mut scripts));
        assert_eq!((unused.len(), unused.unused.len()), ((41, 1), 1));
        let (_, used) = scripts.used(&script(account, Keychain::Change, 9)).expect("news");
        scripts.extend(id, account, used, 8);
        let rows = write(&mut scripts);
        let mut found = started(&rows);
        assert_eq!((found.len(), found.unused.len()), ((51, 1), 0));
        for (keychain, index, from) in
            [(Keychain::Receive, 19, 6), (Keychain::Change, 0, 6), (Keychain::Change, 29, 9)]
        {
            let script = script(account, keychain, index);
            assert_eq!((found.account_of(&script), found.history_of(&script)), (Some(id), Some(from)));
        }
        assert!(!found.has(&script(account, Keychain::Receive, 20)));
        let record = found.account(&id).and_then(AccountEntry::record);
        assert_eq!(record.as_ref(), Some(account.record()));
        assert!(found.take_index().is_empty());

        // Whichever row of addresses is lost, they are derived again, and the rows are as before.
        let is_address = |row: &Row| row.table == Table::Addresses && !row.value.is_empty();
        let whole: BTreeMap<_, _> =
            rows.iter().map(|row| ((row.table, row.key.clone()), row.clone())).collect();
        for lost in whole.values().filter(|row| is_address(row)) {
            let mut rows = whole.clone();
            rows.remove(&(lost.table, lost.key.clone()));
            let mut found = started(&rows.values().cloned().collect::<Vec<_>>());
            assert_eq!(found.take_broken(), [id]);
            found.derive_again(id, Some(account));
            assert_eq!(found.len(), (51, 1));
            for row in found.take_index().rows() {
                rows.insert((row.table, row.key.clone()), row.clone());
            }
            let mut again = started(&rows.into_values().collect::<Vec<_>>());
            assert_eq!((again.len(), again.take_broken()), ((51, 1), vec![]));
            assert!(again.take_index().is_empty());
        }
    }

    #[test]
    fn an_account_whose_record_is_lost_begins_anew_without_the_rows_of_before() {
        let world = testing::federation(4);
        let (account, id) = (&world.account, world.account.id());
        let mut scripts = Scripts::default();
        scripts.register(id, account, 5);
        let (_, used) = scripts.used(&script(account, Keychain::Change, 9)).expect("news");
        scripts.extend(id, account, used, 8);
        let mut rows = scripts.take_index().rows().to_vec();
        rows.retain(|row| row.table != Table::Accounts);
        let mut found = started(&rows);
        assert_eq!(found.len(), (0, 0));
        found.register(id, account, 20);
        rows.extend(found.take_index().rows().to_vec());
        let mut again = started(&rows);
        assert_eq!((again.len(), again.take_broken()), ((40, 1), vec![]));
        assert_eq!(again.history_of(&script(account, Keychain::Change, 0)), Some(21));
        // One whose record cannot be read goes.
        again.derive_again(id, None);
        assert_eq!((again.len(), again.unused.len()), ((0, 0), 0));
    }

    #[test]
    fn of_two_accounts_with_the_same_addresses_the_one_that_had_coins_keeps_them() {
        let world = testing::federation(4);
        let account = &world.account;
        let mut limited = account.record().clone();
        limited.policy.payment_max = Some(bitcoin::Amount::ONE_BTC);
        let limited = JointAccount::new(&world.federation, limited).expect("an account");
        let first = script(account, Keychain::Receive, 0);
        assert_eq!(first, script(&limited, Keychain::Receive, 0));
        for (before, after) in [(account, &limited), (&limited, account)] {
            let mut scripts = Scripts::default();
            scripts.register(before.id(), before, 5);
            scripts.register(after.id(), after, 6);
            assert_eq!(
                scripts.account_of(&first),
                Some(after.id()),
                "the later one, as long as neither has any"
            );
            let (_, used) = scripts.used(&first).expect("news");
            scripts.extend(after.id(), after, used, 7);
            let mut rows = scripts.take_index().rows().to_vec();
            // The other one's owner is there again.
            scripts.still_wanted(before.id(), 50);
            rows.extend(scripts.take_index().rows().to_vec());
            let mut found = started(&rows);
            assert_eq!(found.account_of(&first), Some(after.id()), "after a start, too");
            found.forget(before.id());
            found.register(before.id(), before, 60);
            assert_eq!(found.account_of(&first), Some(after.id()));
        }
    }
}
