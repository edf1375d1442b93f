//! Who may be connected: so many connections at a time, a part of which may not yet be sessions, and so many sessions
//! of one address.
//!
//! A connection comes in at once, or nobody new could while others hold what they have half opened: when there is no
//! room, the oldest one that is no session yet has to go, of the address that has most of them.

use crate::allowance::AddressAllowance;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
};

/// Of the connections, the part that need not be sessions.
const ARRIVING_SHARE: usize = 4;

/// Of the connections, the part that may be sessions of one address.
const ADDRESS_SHARE: usize = 8;

/// A connection, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(u64);

/// Why a connection does not become a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The bridge has as many sessions as it may.
    Full,
    /// The address has.
    Address,
}

/// How many were turned away since the start, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TurnedAway {
    /// Connections that made room for others before they were sessions.
    pub(crate) evicted: u64,
    /// Sessions for which the bridge was full.
    pub(crate) full: u64,
    /// Sessions of which an address had as many as it may.
    pub(crate) address: u64,
    /// Sessions of pages that may not use this bridge.
    pub(crate) page: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    address: IpAddr,
    seated: bool,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Admission {
    connections_max: usize,
    per_address_max: usize,
    next: u64,
    open: BTreeMap<ConnectionId, Place>,
    sessions: usize,
    by_address: HashMap<IpAddr, Guests>,
    turned_away: TurnedAway,
}

/// The sessions of one address.
#[derive(Debug)]
struct Guests {
    count: usize,
    allowance: AddressAllowance,
}

impl Admission {
    pub(crate) fn new(connections_max: usize, per_address_max: usize) -> Self {
        let (open, by_address, turned_away) = (BTreeMap::new(), HashMap::new(), TurnedAway::default());
        // However few there are, no address has them all.
        let per_address_max = per_address_max.min((connections_max / ADDRESS_SHARE).max(1));
        Self { connections_max, per_address_max, next: 0, open, sessions: 0, by_address, turned_away }
    }

    fn arriving_max(&self) -> usize {
        (self.connections_max / ARRIVING_SHARE).max(1)
    }

    /// A connection has come in; gives the one that has to go for it, if there is no room.
    pub(crate) fn arrive(&mut self, from: IpAddr) -> (ConnectionId, Option<ConnectionId>) {
        let full = self.open.len() >= self.connections_max;
        let crowded = self.open.len() - self.sessions >= self.arriving_max();
        let goes = if full || crowded { self.evicted() } else { None };
        if let Some(goes) = goes {
            self.open.remove(&goes);
            self.turned_away.evicted += 1;
        }
        self.next += 1;
        let id = ConnectionId(self.next);
        self.open.insert(id, Place { address: origin(from), seated: false });
        (id, goes)
    }

    /// The oldest connection that is no session yet, of the address that has most of them.
    fn evicted(&self) -> Option<ConnectionId> {
        let arriving = || self.open.iter().filter(|(_, place)| !place.seated);
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        arriving().for_each(|(_, place)| *counts.entry(place.address).or_default() += 1);
        let most = counts.values().max().copied().unwrap_or(0);
        let of_most = |place: &Place| counts.get(&place.address) == Some(&most);
        arriving().find(|(_, place)| of_most(place)).map(|(id, _)| *id)
    }

    /// A connection becomes a session of an address; gives what all sessions of that address may ask for, unless it is
    /// this machine's.
    pub(crate) fn seat(
        &mut self,
        id: ConnectionId,
        from: IpAddr,
    ) -> Result<Option<AddressAllowance>, Refused> {
        let seated = self.try_seat(id, from);
        match seated {
            Ok(_) => {}
            Err(Refused::Full) => self.turned_away.full += 1,
            Err(Refused::Address) => self.turned_away.address += 1,
        }
        seated
    }

    fn try_seat(&mut self, id: ConnectionId, from: IpAddr) -> Result<Option<AddressAllowance>, Refused> {
        let sessions_max = self.connections_max.saturating_sub(self.arriving_max());
        if self.sessions >= sessions_max {
            return Err(Refused::Full);
        }
        if self.by_address.len() > self.connections_max.saturating_mul(2) {
            self.by_address.retain(|_, guests| guests.count > 0 || !guests.allowance.is_whole());
        }
        let address = origin(from);
        let mine = self.by_address.get(&address).map_or(0, |guests| guests.count);
        // What comes from this machine is its operator's, or of a proxy that has not said for whom.
        let own = from.to_canonical().is_loopback();
        if mine >= self.per_address_max && !own {
            return Err(Refused::Address);
        }
        // It may have had to go in the meantime.
        let Some(place) = self.open.get_mut(&id).filter(|place| !place.seated) else {
            return Err(Refused::Full);
        };
        *place = Place { address, seated: true };
        self.sessions += 1;
        let fresh = || Guests { count: 0, allowance: AddressAllowance::new(address) };
        let guests = self.by_address.entry(address).or_insert_with(fresh);
        guests.count += 1;
        Ok((!own).then(|| guests.allowance.clone()))
    }

    /// A connection is gone.
    pub(crate) fn leave(&mut self, id: ConnectionId) {
        let Some(Place { address, seated: true }) = self.open.remove(&id) else { return };
        self.sessions -= 1;
        if let Some(guests) = self.by_address.get_mut(&address) {
            guests.count -= 1;
            // Who leaves and comes back goes on with what is left.
            if guests.count == 0 && guests.allowance.is_whole() {
                self.by_address.remove(&address);
            }
        }
    }

    /// A page that may not use this bridge has tried to.
    pub(crate) fn refuse_page(&mut self) {
        self.turned_away.page += 1;
    }

    /// How many were turned away, for the metrics.
    pub(crate) fn turned_away(&self) -> TurnedAway {
        self.turned_away
    }

    /// Connections, and those of them that are sessions.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.open.len(), self.sessions)
    }
}

/// What counts as one address: whoever has an IPv6 address has a network of 64 bits.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64))),
        IpAddr::V4(four) => IpAddr::V4(four),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn who_only_holds_connections_open_makes_room_for_those_who_come() {
        let mut admission = Admission::new(8, 100);
        // Two of eight need not be sessions.
        let (first, _) = admission.arrive(v4(1));
        let (other, goes) = admission.arrive(v4(2));
        assert_eq!(goes, None);
        let (second, goes) = admission.arrive(v4(1));
        assert_eq!(goes, Some(first), "the oldest");
        let (_, goes) = admission.arrive(v4(3));
        assert!(goes == Some(other) || goes == Some(second));
        assert_eq!(admission.sizes(), (2, 0));
        assert_eq!(admission.seat(first, v4(1)).err(), Some(Refused::Full), "it has gone");
        assert_eq!(admission.turned_away(), TurnedAway { evicted: 2, full: 1, ..TurnedAway::default() });
        admission.leave(first);
        assert_eq!(admission.sizes(), (2, 0));
    }

    #[test]
    fn the_address_that_holds_most_loses_its_own() {
        let mut admission = Admission::new(16, 100);
        let (lonely, _) = admission.arrive(v4(9));
        let held: Vec<_> = (0..3).map(|_| admission.arrive(v4(1)).0).collect();
        for round in 0..20 {
            let (_, goes) = admission.arrive(v4(1));
            assert!(goes.is_some() && goes != Some(lonely), "{round}");
        }
        assert!(admission.seat(lonely, v4(9)).is_ok());
        assert!(!admission.open.contains_key(&held[0]));
    }

    #[test]
    fn an_address_has_its_share_and_leaves_room_again() {
        let mut admission = Admission::new(100, 2);
        let mut seat = |from: IpAddr| {
            let (id, _) = admission.arrive(from);
            let seated = admission.seat(id, from).map(|_| id);
            if seated.is_err() {
                admission.leave(id);
            }
            (seated, admission.sizes())
        };
        let (first, _) = seat(v4(1));
        let (_, sizes) = seat(v4(1));
        assert_eq!(sizes, (2, 2));
        assert_eq!(seat(v4(1)).0, Err(Refused::Address));
        assert!(seat(v4(2)).0.is_ok());
        let loopback = IpAddr::from([127, 0, 0, 1]);
        (0..5).for_each(|_| assert!(seat(loopback).0.is_ok()));
        (0..5).for_each(|_| assert!(seat(Ipv6Addr::LOCALHOST.into()).0.is_ok()));
        let six = |host: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + host));
        assert!(seat(six(1)).0.is_ok() && seat(six(2)).0.is_ok());
        assert_eq!(seat(six(u128::from(u64::MAX))).0, Err(Refused::Address), "one network");
        assert!(seat(six(1 << 64)).0.is_ok(), "another one");
        admission.leave(first.expect("a seat"));
        let (id, _) = admission.arrive(v4(1));
        assert!(admission.seat(id, v4(1)).is_ok_and(|allowance| allowance.is_some()));
    }

    #[test]
    fn no_address_has_all_of_a_small_bridge() {
        let mut admission = Admission::new(80, 1_024);
        let seated = (0..80).filter(|_| {
            let (id, _) = admission.arrive(v4(1));
            admission.seat(id, v4(1)).is_ok()
        });
        assert_eq!(seated.count(), 10);
    }

    #[test]
    fn sessions_leave_room_for_those_who_come() {
        let mut admission = Admission::new(8, 100);
        let mut seated = Vec::new();
        for last in 0..8 {
            let (id, _) = admission.arrive(v4(last));
            if admission.seat(id, v4(last)).is_ok() {
                seated.push(id);
            } else {
                admission.leave(id);
            }
        }
        assert_eq!(seated.len(), 6);
        let (_, goes) = admission.arrive(v4(9));
        assert_eq!(goes, None, "no session is closed for a new connection");
    }
}
