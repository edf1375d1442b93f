//! Registered accounts and their addresses, as short as a node that has many of them needs it.

use super::values::{read_whole, written};
use crate::records::{ChangeSet, Row, Table};
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
/// some 2^74 steps. Who could would have a node tell an account of a coin that is not its own, which its wallet drops,
/// or keep it from telling of one that is. No rule of voting asks whose a coin is.
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

    /// The slot and the position, each with the highest byte first.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.slot) << u32::BITS | u64::from(self.position)).to_be_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, position @ ..] = bytes;
        Self { slot: u32::from_be_bytes([a, b, c, d]), position: u32::from_be_bytes(position) }
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
    /// The tip when it registered.
    registered: u32,
    /// The tip when its owner was there last, if it never had a coin.
    pub(crate) wanted_at: u32,
    /// The index after the last one that had a coin, by keychain.
    next: [u32; 2],
    /// The tip when addresses were added to the first ones, by keychain.
    extended: [u32; 2],
    /// What it was paid before has been searched for.
    pub(crate) searched: bool,
}

/// As it was written before addresses were kept with it.
#[derive(Deserialize)]
struct Before {
    record: AccountRecord,
    since: u32,
    next: [u32; 2],
}

impl AccountEntry {
    pub(crate) fn new(record: &AccountRecord, tip: u32) -> Self {
        let record = PackedRecord::from(record);
        Self { record, registered: tip, wanted_at: tip, next: [0; 2], extended: [0; 2], searched: false }
    }

    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        if value.first() == Some(&b'{') {
            let Before { record, since, next } = serde_json::from_slice(value).ok()?;
            return Some(Self { next, extended: [since; 2], ..Self::new(&record, since) });
        }
        read_whole(value)
    }

    /// The same, of a chain that is read again from a height on.
    pub(super) fn for_another_reading(value: &[u8], from: u32) -> Option<Vec<u8>> {
        let mut entry = Self::read(value)?;
        entry.registered = entry.registered.min(from);
        entry.extended = entry.extended.map(|extended| extended.min(from));
        // What was found is not kept.
        entry.searched = false;
        Some(written(&entry))
    }

    /// What its addresses are derived from.
    pub(crate) fn record(&self) -> Option<AccountRecord> {
        self.record.unpack()
    }

    pub(crate) fn is_used(&self) -> bool {
        self.next != [0; 2]
    }

    /// The height from which its history is known.
    pub(crate) fn history_from(&self) -> u32 {
        self.registered.saturating_add(1)
    }

    /// How many addresses of a keychain are indexed.
    pub(crate) fn reach(&self, keychain: Keychain) -> u32 {
        self.next_of(keychain).saturating_add(ACCOUNT_GAP)
    }

    /// Of two accounts with the same addresses, which differ in what is enforced for them, the greater one has the
    /// coins.
    pub(crate) fn rank(&self) -> (bool, u32) {
        (self.is_used(), self.registered)
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
        if position.index < ACCOUNT_GAP { self.history_from() } else { later.saturating_add(1) }
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
    pub(crate) account: AccountId,
    first: u32,
}

impl AddressRow {
    pub(crate) fn new(account: AccountId, first: KeychainIndex) -> Self {
        Self { account, first: Place::new(0, first).position }
    }

    /// Where its addresses stand, of the account in a slot.
    pub(crate) fn places(self, slot: u32) -> impl Iterator<Item = Place> {
        (self.first..=u32::MAX).map(move |position| Place { slot, position })
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        [&self.account.0[..], &self.first.to_be_bytes()].concat()
    }

    fn read(key: &[u8]) -> Option<Self> {
        let (account, first) = key.split_first_chunk()?;
        Some(Self { account: AccountId(*account), first: u32::from_be_bytes(first.try_into().ok()?) })
    }
}

/// The addresses of a row, with where they begin.
pub(crate) fn address_row(row: &Row) -> Option<(AddressRow, &[ShortKey])> {
    let (keys, rest) = row.value.as_chunks::<SHORT_KEY_BYTES>();
    rest.is_empty().then_some((AddressRow::read(&row.key)?, keys))
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
