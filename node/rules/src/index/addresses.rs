//! Which script is the address of which account: what takes most of a node's memory, and is therefore short.

use super::{Place, ShortKey, short_key};
use bitcoin::Script;
use quorate_protocol::{AccountId, account::KeychainIndex};

/// Part of all addresses, one in so many, that may be of accounts that are gone before they are taken out.
const GONE_PART: usize = 8;
/// Of this part of itself does a shelf grow.
const GROWTH_PART: usize = 16;
/// One for each beginning of a key, of 12 bits: few enough that all their ends stay in a processor's cache while a
/// start fills them.
const SHELVES: usize = 1 << 12;

/// Addresses of all accounts.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// Each in the order of its keys.
    shelves: Vec<Vec<Entry>>,
    /// How many are in all of them.
    count: usize,
    slots: Vec<Slot>,
    /// Slots that nothing refers to.
    free: Vec<u32>,
    /// Addresses of accounts that are gone.
    gone: usize,
}

/// A key without its first byte, and whose it is, without a byte between them.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rest: [u8; 11],
    place: [u8; 8],
}

/// An account, by the number that its addresses have.
#[derive(Debug)]
struct Slot {
    /// Absent if the account is gone.
    id: Option<AccountId>,
    /// How many addresses refer to it.
    addresses: u32,
}

impl Default for Addresses {
    fn default() -> Self {
        let shelves = (0..SHELVES).map(|_| Vec::new()).collect();
        Self { shelves, count: 0, slots: Vec::new(), free: Vec::new(), gone: 0 }
    }
}

/// On which shelf a key is, and as what.
fn split(key: &ShortKey) -> (usize, [u8; 11]) {
    let [first, rest @ ..] = *key;
    (usize::from(u16::from_be_bytes([first, rest[0]]) >> 4), rest)
}

/// Addresses as a start reads them, in no order.
#[derive(Debug, Default)]
pub(crate) struct Found(Addresses);

impl Found {
    /// The next account; its number is how many there were before.
    pub(crate) fn open(&mut self, id: AccountId) {
        self.0.open(id);
    }

    pub(crate) fn push(&mut self, key: &ShortKey, place: Place) {
        let (shelf, rest) = split(key);
        let Some(shelf) = self.0.shelves.get_mut(shelf) else { return };
        reserve(shelf);
        shelf.push(Entry { rest, place: place.to_bytes() });
        self.0.count += 1;
        if let Some(owner) = self.0.slots.get_mut(place.slot()) {
            owner.addresses += 1;
        }
    }

    /// In order. Of two accounts that have an address, it is the one's that has the higher rank.
    pub(crate) fn sorted<R: Ord>(self, rank: impl Fn(Place) -> R) -> Addresses {
        let Addresses { mut shelves, mut count, mut slots, free, gone } = self.0;
        let rank = |entry: &Entry| {
            let place = Place::from_bytes(entry.place);
            (rank(place), place)
        };
        for shelf in &mut shelves {
            shelf.sort_unstable_by(|one, other| {
                one.rest.cmp(&other.rest).then_with(|| rank(one).cmp(&rank(other)))
            });
            shelf.dedup_by(|later, kept| {
                let same = later.rest == kept.rest;
                if same {
                    let lost = std::mem::replace(kept, *later);
                    count -= 1;
                    if let Some(owner) = slots.get_mut(Place::from_bytes(lost.place).slot()) {
                        owner.addresses -= 1;
                    }
                }
                same
            });
        }
        Addresses { shelves, count, slots, free, gone }
    }
}

/// Makes room for one more, and not for twice as many.
fn reserve(shelf: &mut Vec<Entry>) {
    if shelf.len() == shelf.capacity() {
        shelf.reserve_exact(shelf.len() / GROWTH_PART + 1);
    }
}

impl Addresses {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count - self.gone
    }

    fn place(&self, key: &ShortKey) -> Option<Place> {
        let (shelf, rest) = split(key);
        let shelf = self.shelves.get(shelf)?;
        let found = shelf.binary_search_by_key(&rest, |entry| entry.rest).ok()?;
        shelf.get(found).map(|entry| Place::from_bytes(entry.place))
    }

    /// Whose address a script is, and where it stands there.
    pub(crate) fn get(&self, script: &Script) -> Option<(AccountId, KeychainIndex)> {
        let place = self.place(&short_key(script)?)?;
        Some((self.slots.get(place.slot())?.id?, place.position()))
    }

    /// A number for an account.
    pub(crate) fn open(&mut self, id: AccountId) -> u32 {
        let slot = Slot { id: Some(id), addresses: 0 };
        if let Some(free) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(index(free)) {
                *place = slot;
            }
            return free;
        }
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("accounts are bounded")
    }

    /// Adds one, or gives it to another account.
    pub(crate) fn put(&mut self, key: &ShortKey, place: Place) {
        let (shelf, rest) = split(key);
        let Some(shelf) = self.shelves.get_mut(shelf) else { return };
        let entry = Entry { rest, place: place.to_bytes() };
        match shelf.binary_search_by_key(&rest, |entry| entry.rest) {
            Ok(found) => {
                let Some(found) = shelf.get_mut(found) else { return };
                let before = Place::from_bytes(found.place);
                *found = entry;
                if let Some(owner) = self.slots.get_mut(before.slot()) {
                    owner.addresses -= 1;
                    self.gone -= usize::from(owner.id.is_none());
                }
            }
            Err(next) => {
                reserve(shelf);
                shelf.insert(next, entry);
                self.count += 1;
            }
        }
        if let Some(owner) = self.slots.get_mut(place.slot()) {
            owner.addresses += 1;
        }
    }

    /// An account is gone. Its addresses are not found any more, and are taken out when there are many such.
    pub(crate) fn close(&mut self, slot: u32) {
        let Some(closed) = self.slots.get_mut(index(slot)) else { return };
        if closed.id.take().is_some() {
            self.gone += index(closed.addresses);
        }
        if self.gone <= self.count / GONE_PART {
            return;
        }
        let slots = &self.slots;
        let is_there = |entry: &Entry| {
            let slot = Place::from_bytes(entry.place).slot();
            slots.get(slot).is_some_and(|slot| slot.id.is_some())
        };
        for shelf in &mut self.shelves {
            shelf.retain(is_there);
            shelf.shrink_to_fit();
        }
        (self.count, self.gone) = (self.len(), 0);
        self.free.clear();
        for (number, slot) in (0..).zip(&mut self.slots) {
            if slot.id.is_none() {
                slot.addresses = 0;
                self.free.push(number);
            }
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::ScriptBuf;
    use quorate_protocol::account::Keychain;

    fn script(number: u32) -> ScriptBuf {
        let mut bytes = vec![0x51, 0x20];
        bytes.extend([number.to_be_bytes(); 8].concat());
        ScriptBuf::from(bytes)
    }

    fn key(number: u32) -> ShortKey {
        short_key(&script(number)).expect("an address")
    }

    fn at(index: u32) -> KeychainIndex {
        KeychainIndex { keychain: Keychain::Change, index }
    }

    #[test]
    fn what_is_gone_is_not_found_and_makes_room_for_others() {
        let mut addresses = Addresses::default();
        let accounts: Vec<u32> = (0..20).map(|number| addresses.open(AccountId([number; 32]))).collect();
        for (number, slot) in (0..).zip(&accounts) {
            for index in 0..10 {
                addresses.put(&key(number * 10 + index), Place::new(*slot, at(index)));
            }
        }
        assert_eq!(addresses.get(&script(57)), Some((AccountId([5; 32]), at(7))));
        assert_eq!(addresses.get(&ScriptBuf::from(vec![0x51])), None, "no address of an account");
        addresses.close(accounts[5]);
        addresses.close(accounts[5]);
        assert_eq!((addresses.len(), addresses.count), (190, 200));
        assert_eq!(addresses.get(&script(57)), None);
        // The account comes back before its old addresses were taken out.
        let again = addresses.open(AccountId([5; 32]));
        for index in 0..10 {
            addresses.put(&key(50 + index), Place::new(again, at(index)));
        }
        assert_eq!((addresses.len(), addresses.count, addresses.gone), (200, 200, 0));
        for slot in &accounts[..3] {
            addresses.close(*slot);
        }
        assert_eq!((addresses.len(), addresses.count), (170, 170), "many are taken out together");
        assert_eq!(addresses.get(&script(57)), Some((AccountId([5; 32]), at(7))));
        let slots = addresses.slots.len();
        for number in 30..33 {
            addresses.open(AccountId([number; 32]));
        }
        assert_eq!(addresses.slots.len(), slots, "numbers are used again");
    }
}
