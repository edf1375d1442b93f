//! Registered accounts and their addresses, as short as a node that has many of them needs it.

use super::{Indexed, read, written};
use crate::records::{ChangeSet, Row, Table, Unreadable};
use bitcoin::{
    Amount, Script, XOnlyPublicKey,
    bip32::Xpub,
    secp256k1::{PublicKey, schnorr},
};
use quorate_protocol::{
    AccountId,
    account::{ACCOUNT_GAP, AccountPolicy, AccountRecord, Keychain, KeychainIndex},
};
use serde::{Deserialize, Serialize};

/// The first bytes of an address's key (BIP341). To make a key with the same ones as one of four million others takes
/// some 2^74 steps, and gains that a node tells an account of a coin that is not its own, which its wallet drops.
pub(crate) type ShortKey = [u8; 12];
const SHORT_KEY_BYTES: usize = 12;

/// The short key of a script that is a Taproot output; nothing else is an account's.
pub(crate) fn short_key(script: &Script) -> Option<ShortKey> {
    let key = script.is_p2tr().then(|| script.as_bytes().get(2..2 + SHORT_KEY_BYTES))?;
    key?.try_into().ok()
}

/// Which address of which account something is: the account by its slot, the keychain by the highest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    slot: u32,
    position: u32,
}

/// BIP32 has 2^31 indexes that are not hardened.
const CHANGE: u32 = 1 << 31;

impl Place {
    pub(crate) fn new(slot: u32, KeychainIndex { keychain, index }: KeychainIndex) -> Self {
        let position = match keychain {
            Keychain::Receive => index & !CHANGE,
            Keychain::Change => index | CHANGE,
        };
        Self { slot, position }
    }

    pub(crate) fn slot(self) -> usize {
        usize::try_from(self.slot).unwrap_or(usize::MAX)
    }

    pub(crate) fn position(self) -> KeychainIndex {
        let keychain = if self.position & CHANGE == 0 { Keychain::Receive } else { Keychain::Change };
        KeychainIndex { keychain, index: self.position & !CHANGE }
    }
}

/// A registered account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccountEntry {
    record: PackedRecord,
    /// The tip when it registered, or when its owner was there last if it never had a coin.
    pub(crate) since: u32,
    /// The index after the last one that had a coin, by keychain.
    next: [u32; 2],
    /// The tip when addresses were added to the first ones, by keychain.
    extended: [u32; 2],
}

impl AccountEntry {
    pub(crate) fn new(record: &AccountRecord, tip: u32) -> Self {
        Self { record: PackedRecord::from(record), since: tip, next: [0; 2], extended: [0; 2] }
    }

    /// What its addresses are derived from.
    pub(crate) fn record(&self) -> Option<AccountRecord> {
        self.record.unpack()
    }

    pub(crate) fn is_used(&self) -> bool {
        self.next != [0; 2]
    }

    /// How many addresses are indexed.
    pub(crate) fn addresses(&self) -> u64 {
        self.next.iter().map(|next| u64::from(*next) + u64::from(ACCOUNT_GAP)).sum()
    }

    pub(crate) fn next_of(&self, keychain: Keychain) -> u32 {
        match keychain {
            Keychain::Receive => self.next[0],
            Keychain::Change => self.next[1],
        }
    }

    /// Addresses up to a gap after this index are added, at a tip of this height.
    pub(crate) fn extend(&mut self, keychain: Keychain, next: u32, tip: u32) {
        match keychain {
            Keychain::Receive => (self.next[0], self.extended[0]) = (next, tip),
            Keychain::Change => (self.next[1], self.extended[1]) = (next, tip),
        }
    }

    /// The height from which the history of an address is known, at least.
    pub(crate) fn history_of(&self, position: KeychainIndex) -> u32 {
        let later = match position.keychain {
            Keychain::Receive => self.extended[0],
            Keychain::Change => self.extended[1],
        };
        if position.index < ACCOUNT_GAP { self.since + 1 } else { later + 1 }
    }
}

/// An account's record in the bytes of its keys, which are read when they are needed: a start does not do arithmetic
/// for each account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PackedRecord(Box<[u8]>);

/// The limit of a policy that has none.
const UNLIMITED: u64 = u64::MAX;

impl From<&AccountRecord> for PackedRecord {
    fn from(record: &AccountRecord) -> Self {
        let AccountRecord {
            wallet_key,
            authorisation_key,
            recovery_xpub,
            recovery_delay,
            policy: AccountPolicy { payment_max },
            possession,
        } = record;
        let limit = payment_max.map_or(UNLIMITED, Amount::to_sat);
        let parts: [&[u8]; 6] = [
            &wallet_key.serialize(),
            &authorisation_key.serialize(),
            &recovery_xpub.encode(),
            &recovery_delay.to_be_bytes(),
            &limit.to_be_bytes(),
            possession.as_ref(),
        ];
        Self(parts.concat().into())
    }
}

impl PackedRecord {
    fn unpack(&self) -> Option<AccountRecord> {
        let (wallet_key, rest) = self.0.split_at_checked(33)?;
        let (authorisation_key, rest) = rest.split_at_checked(32)?;
        let (recovery_xpub, rest) = rest.split_at_checked(78)?;
        let (recovery_delay, rest) = rest.split_first_chunk()?;
        let (limit, possession) = rest.split_first_chunk()?;
        let limit = u64::from_be_bytes(*limit);
        Some(AccountRecord {
            wallet_key: PublicKey::from_slice(wallet_key).ok()?,
            authorisation_key: XOnlyPublicKey::from_slice(authorisation_key).ok()?,
            recovery_xpub: Xpub::decode(recovery_xpub).ok()?,
            recovery_delay: u16::from_be_bytes(*recovery_delay),
            policy: AccountPolicy { payment_max: (limit != UNLIMITED).then(|| Amount::from_sat(limit)) },
            possession: schnorr::Signature::from_slice(possession).ok()?,
        })
    }
}

/// Addresses of an account that follow on each other on a keychain: where they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AddressRow {
    account: AccountId,
    first: u32,
}

impl AddressRow {
    pub(crate) fn new(account: AccountId, first: KeychainIndex) -> Self {
        Self { account, first: Place::new(0, first).position }
    }

    fn key(&self) -> Vec<u8> {
        [&self.account.0[..], &self.first.to_be_bytes()].concat()
    }

    fn read(key: &[u8]) -> Option<Self> {
        let (account, first) = key.split_first_chunk()?;
        Some(Self { account: AccountId(*account), first: u32::from_be_bytes(first.try_into().ok()?) })
    }
}

impl Indexed {
    pub(super) fn take_account(&mut self, row: &Row) -> Result<(), Unreadable> {
        let id = AccountId(row.key.as_slice().try_into().map_err(|_| Unreadable::Index)?);
        if row.value.first() == Some(&b'{') {
            // As it was written before addresses were kept with it. Its wallet brings its record along.
            return Ok(());
        }
        if self.accounts.last().is_some_and(|(last, _)| *last >= id) {
            return Err(Unreadable::Index);
        }
        self.accounts.push((id, read(&row.value)?));
        Ok(())
    }

    /// Comes after the accounts.
    pub(super) fn take_addresses(&mut self, row: &Row) -> Result<(), Unreadable> {
        let AddressRow { account, first } = AddressRow::read(&row.key).ok_or(Unreadable::Index)?;
        let (keys, rest) = row.value.as_chunks::<SHORT_KEY_BYTES>();
        if !rest.is_empty() {
            return Err(Unreadable::Index);
        }
        // What is of no account was left when the account's row was lost.
        if let Ok(slot) = self.accounts.binary_search_by_key(&account, |(id, _)| *id) {
            let slot = u32::try_from(slot).map_err(|_| Unreadable::Index)?;
            let place = |(offset, key): (u32, &ShortKey)| {
                (*key, Place { slot, position: first.saturating_add(offset) })
            };
            self.addresses.extend((0..).zip(keys).map(place));
        }
        Ok(())
    }
}

impl ChangeSet {
    pub(crate) fn put_account(&mut self, id: &AccountId, entry: Option<&AccountEntry>) {
        let value = entry.map(written).unwrap_or_default();
        self.put_row(Row { table: Table::Accounts, key: id.0.to_vec(), value });
    }

    /// None takes the row away.
    pub(crate) fn put_addresses(&mut self, row: &AddressRow, keys: &[ShortKey]) {
        self.put_row(Row { table: Table::Addresses, key: row.key(), value: keys.concat() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::testing;

    #[test]
    fn a_record_is_packed_and_unpacked() {
        let mut record = testing::federation(4).account.record().clone();
        for payment_max in [None, Some(Amount::ZERO), Some(Amount::MAX_MONEY)] {
            record.policy.payment_max = payment_max;
            let packed = PackedRecord::from(&record);
            assert_eq!(packed.unpack().as_ref(), Some(&record));
            for cut in 0..packed.0.len() {
                assert_eq!(PackedRecord(packed.0[..cut].into()).unpack(), None);
            }
        }
    }

    #[test]
    fn rows_read_back_and_what_is_of_no_account_is_left_out() {
        let record = testing::federation(4).account.record().clone();
        let mut entry = AccountEntry::new(&record, 7);
        entry.extend(Keychain::Change, 3, 9);
        let (known, other) = (AccountId([1; 32]), AccountId([2; 32]));
        let at = |index| KeychainIndex { keychain: Keychain::Change, index };
        let mut written = ChangeSet::default();
        written.put_account(&known, Some(&entry));
        written.put_addresses(&AddressRow::new(known, at(20)), &[[5; 12], [6; 12]]);
        written.put_addresses(&AddressRow::new(other, at(0)), &[[7; 12]]);
        let mut indexed = Indexed::default();
        written.rows().iter().for_each(|row| indexed.take(row).expect("what was written"));
        assert_eq!(indexed.accounts, [(known, entry)]);
        assert_eq!(indexed.addresses, [([5; 12], Place::new(0, at(20))), ([6; 12], Place::new(0, at(21)))]);
        assert_eq!(indexed.addresses[1].1.position(), at(21));
        let mut cut = written.rows()[1].clone();
        cut.value.pop();
        indexed.take(&cut).expect_err("no whole key at its end");
    }
}
