//! Connections that are being made, by callers who are not known yet: so many at a time, and so many from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections that are being made at a time, and of these from one address.
const ALL_MAX: usize = 256;
const ADDRESS_MAX: usize = 32;
/// From how many on whoever comes has to show that it is at its address (RFC 9000, section 8.1.2).
const MANY: usize = 64;

/// What to do with a caller.
#[derive(Debug)]
pub(crate) enum Arrival {
    Welcome(Handshake),
    /// It has to come again with what only its address is told.
    Retry,
    Refused,
}

/// All that are being made.
#[derive(Debug, Default)]
pub(crate) struct Handshakes(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One that is being made, until this is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    from: IpAddr,
    among: Arc<Handshakes>,
}

impl Handshakes {
    /// Somebody calls, who may be asked to show where it is.
    pub(crate) fn arrive(self: &Arc<Self>, from: IpAddr, may_retry: bool) -> Arrival {
        let mut count = self.count();
        if may_retry && count.all >= MANY {
            return Arrival::Retry;
        }
        let here = count.by_address.get(&from).copied().unwrap_or(0);
        if count.all >= ALL_MAX || here >= ADDRESS_MAX {
            return Arrival::Refused;
        }
        count.all += 1;
        count.by_address.insert(from, here + 1);
        Arrival::Welcome(Handshake { from, among: self.clone() })
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut count = self.among.count();
        count.all = count.all.saturating_sub(1);
        let here = count.by_address.get(&self.from).map_or(0, |here| here.saturating_sub(1));
        if here == 0 {
            count.by_address.remove(&self.from);
        } else {
            count.by_address.insert(self.from, here);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls until nobody is welcome; gives those who were.
    fn fill(handshakes: &Arc<Handshakes>, from: u8, may_retry: bool) -> Vec<Handshake> {
        let mut welcome = Vec::new();
        while let Arrival::Welcome(one) = handshakes.arrive([10, 0, 0, from].into(), may_retry) {
            welcome.push(one);
        }
        welcome
    }

    #[test]
    fn one_address_keeps_nobody_else_out_and_many_have_to_show_theirs() {
        let handshakes = Arc::new(Handshakes::default());
        let first = fill(&handshakes, 1, true);
        assert_eq!(first.len(), ADDRESS_MAX);
        assert_eq!(fill(&handshakes, 2, true).len(), ADDRESS_MAX, "others come in");
        let rest: Vec<_> = (2..8).map(|from| fill(&handshakes, from, false)).collect();
        assert!(matches!(handshakes.arrive([10, 0, 0, 9].into(), true), Arrival::Retry));
        assert_eq!(fill(&handshakes, 9, false).len() + 7 * ADDRESS_MAX, ALL_MAX);
        drop((first, rest));
        let count = handshakes.count();
        assert!(count.all == 0 && count.by_address.is_empty(), "who has come in counts no more");
    }
}
