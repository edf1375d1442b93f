//! Which script is the address of which account: what takes most of a node's memory, and is therefore short.

use crate::index::{Place, ShortKey, short_key};
use bitcoin::Script;
use quorate_protocol::{AccountId, account::KeychainIndex};
use std::collections::BTreeMap;

/// Part of all addresses, one in so many, that may be of accounts that are gone before they are taken out.
const GONE_PART: usize = 8;

/// Addresses of all accounts.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    places: BTreeMap<ShortKey, Place>,
    slots: Vec<Slot>,
    /// Slots that nothing refers to.
    free: Vec<u32>,
    /// Addresses of accounts that are gone.
    gone: usize,
}

/// An account, by the number that its addresses have.
#[derive(Debug)]
struct Slot {
    /// Absent if the account is gone.
    id: Option<AccountId>,
    /// How many addresses refer to it.
    addresses: usize,
}

impl Addresses {
    /// Accounts in the order of their slots, with their ranks; of two that have an address, it is the greater one's.
    pub(super) fn restore<R: Ord + Copy>(
        accounts: &[(AccountId, R)],
        mut found: Vec<(ShortKey, Place)>,
    ) -> Self {
        let rank = |place: &Place| accounts.get(place.slot()).map(|(_, rank)| *rank);
        found.sort_unstable_by_key(|(key, place)| (*key, rank(place), *place));
        found.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                *earlier = *later;
            }
            same
        });
        let mut slots: Vec<Slot> =
            accounts.iter().map(|(id, _)| Slot { id: Some(*id), addresses: 0 }).collect();
        for (_, place) in &found {
            if let Some(slot) = slots.get_mut(place.slot()) {
                slot.addresses += 1;
            }
        }
        Self { places: found.into_iter().collect(), slots, ..Self::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.gone
    }

    /// Whose address a script is, and where it stands there.
    pub(super) fn get(&self, script: &Script) -> Option<(AccountId, KeychainIndex)> {
        let place = self.places.get(&short_key(script)?)?;
        Some((self.slots.get(place.slot())?.id?, place.position()))
    }

    /// A number for an account.
    pub(super) fn open(&mut self, id: AccountId) -> u32 {
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

    /// Adds one.
    pub(super) fn put(&mut self, slot: u32, position: KeychainIndex, key: ShortKey) {
        if let Some(before) = self.places.insert(key, Place::new(slot, position))
            && let Some(owner) = self.slots.get_mut(before.slot())
        {
            owner.addresses -= 1;
            self.gone -= usize::from(owner.id.is_none());
        }
        if let Some(owner) = self.slots.get_mut(index(slot)) {
            owner.addresses += 1;
        }
    }

    /// An account is gone. Its addresses are not found any more, and are taken out when there are many such.
    pub(super) fn close(&mut self, slot: u32) {
        let Some(closed) = self.slots.get_mut(index(slot)) else { return };
        if closed.id.take().is_some() {
            self.gone += closed.addresses;
        }
        if self.gone > self.places.len() / GONE_PART {
            let slots = &self.slots;
            self.places.retain(|_, place| slots.get(place.slot()).is_some_and(|slot| slot.id.is_some()));
            self.gone = 0;
            self.free.clear();
            for (number, slot) in (0..).zip(&mut self.slots) {
                if slot.id.is_none() {
                    slot.addresses = 0;
                    self.free.push(number);
                }
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
                addresses.put(*slot, at(index), key(number * 10 + index));
            }
        }
        assert_eq!(addresses.get(&script(57)), Some((AccountId([5; 32]), at(7))));
        assert_eq!(addresses.get(&ScriptBuf::from(vec![0x51])), None, "no address of an account");
        addresses.close(accounts[5]);
        addresses.close(accounts[5]);
        assert_eq!((addresses.len(), addresses.places.len()), (190, 200));
        assert_eq!(addresses.get(&script(57)), None);
        // The account comes back before its old addresses were taken out.
        let again = addresses.open(AccountId([5; 32]));
        for index in 0..10 {
            addresses.put(again, at(index), key(50 + index));
        }
        assert_eq!((addresses.len(), addresses.places.len(), addresses.gone), (200, 200, 0));
        for slot in &accounts[..3] {
            addresses.close(*slot);
        }
        assert_eq!((addresses.len(), addresses.places.len()), (170, 170), "many are taken out together");
        assert_eq!(addresses.get(&script(57)), Some((AccountId([5; 32]), at(7))));
        let slots = addresses.slots.len();
        for number in 30..33 {
            addresses.open(AccountId([number; 32]));
        }
        assert_eq!(addresses.slots.len(), slots, "numbers are used again");
    }
}
