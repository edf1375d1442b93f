//! Scripts that are indexed because somebody subscribed to them, and for a while after that.

use crate::{index::Lease, records::ChangeSet};
use bitcoin::{Script, ScriptBuf};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

/// Scripts that are indexed at most because somebody subscribed to them. Those of accounts have their own room.
pub(crate) const LEASES_MAX: usize = 1_000_000;
/// The part of them that goes at a time when there is no room, if nobody listens to it.
const LEASES_SHARE: usize = 16;
/// Blocks between two times that room is made.
const ROOM_BLOCKS: u32 = 6;
/// Blocks for which a script is indexed after the last subscription to it: a week.
pub(super) const LEASE_BLOCKS: u32 = 1_008;

/// Those that are of no account.
#[derive(Debug, Default)]
pub(super) struct Leases {
    scripts: HashMap<ScriptBuf, Lease>,
    /// The height at which room was made last.
    made_room_at: u32,
    /// What the index has otherwise.
    stale: BTreeSet<ScriptBuf>,
}

impl Leases {
    pub(super) fn restore(leases: Vec<(ScriptBuf, Lease)>) -> Self {
        Self { scripts: leases.into_iter().collect(), ..Self::default() }
    }

    /// What has changed since this was last asked for.
    pub(super) fn take_index(&mut self, change: &mut ChangeSet) {
        for script in std::mem::take(&mut self.stale) {
            change.put_lease(&script, self.scripts.get(&script));
        }
    }

    pub(super) fn get(&self, script: &Script) -> Option<&Lease> {
        self.scripts.get(script)
    }

    pub(super) fn len(&self) -> usize {
        self.scripts.len()
    }

    /// Somebody wants to hear of a script, at a tip of this height. `false` if there is no room.
    pub(super) fn want(&mut self, script: &ScriptBuf, tip: u32) -> bool {
        if self.scripts.contains_key(script) {
            self.renew(script, tip);
            return true;
        }
        let room = self.scripts.len() < LEASES_MAX;
        if room {
            self.scripts.insert(script.clone(), Lease { from: tip + 1, wanted_at: tip });
            self.stale.insert(script.clone());
        }
        room
    }

    /// Somebody still listens to a script, if it is one of these.
    pub(super) fn renew(&mut self, script: &ScriptBuf, tip: u32) {
        if let Some(lease) = self.scripts.get_mut(script).filter(|lease| lease.wanted_at != tip) {
            lease.wanted_at = tip;
            self.stale.insert(script.clone());
        }
    }

    /// A script has become an account's.
    pub(super) fn remove(&mut self, script: &ScriptBuf) {
        if self.scripts.remove(script).is_some() {
            self.stale.insert(script.clone());
        }
    }

    /// Forgets those that nobody wants to hear of any more.
    pub(super) fn sweep(&mut self, tip: u32) {
        let stale = &mut self.stale;
        self.scripts.retain(|script, lease| {
            let wanted = lease.wanted_at + LEASE_BLOCKS >= tip;
            if !wanted {
                stale.insert(script.clone());
            }
            wanted
        });
    }

    /// If there is no room for another script, those that nobody listens to make some: a part of them at a time, and
    /// first those that were wanted only briefly, so that nobody can push out others by coming and going. Gives whether
    /// there is room now. It looks at all of them, so not often.
    pub(super) fn make_room<'a, I: Iterator<Item = &'a ScriptBuf>>(
        &mut self,
        tip: u32,
        listened: impl FnOnce() -> I,
    ) -> bool {
        if self.scripts.len() >= LEASES_MAX && self.made_room_at + ROOM_BLOCKS <= tip {
            self.made_room_at = tip;
            for script in listened() {
                if let Some(lease) = self.scripts.get_mut(script) {
                    lease.wanted_at = tip;
                }
            }
            for script in self.idle(tip) {
                self.scripts.remove(&script);
                self.stale.insert(script);
            }
        }
        self.scripts.len() < LEASES_MAX
    }

    /// Of the scripts that nobody wanted to hear of at this tip, those that can be missed best.
    fn idle(&self, tip: u32) -> Vec<ScriptBuf> {
        // Of those that were wanted as briefly, the last ones first: they may be of who comes and goes all the time.
        let rank = |lease: &Lease| (lease.wanted_at.saturating_sub(lease.from), Reverse(lease.wanted_at));
        let idle = self.scripts.iter().filter(|(_, lease)| lease.wanted_at < tip);
        let mut idle: Vec<_> = idle.map(|(script, lease)| (rank(lease), script)).collect();
        let part = LEASES_MAX / LEASES_SHARE;
        if part < idle.len() {
            idle.select_nth_unstable(part);
            idle.truncate(part);
        }
        idle.into_iter().map(|(_, script)| script.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::empty as none;

    /// Rows that the index is given.
    fn written(leases: &mut Leases) -> usize {
        let mut change = ChangeSet::default();
        leases.take_index(&mut change);
        change.rows().len()
    }

    #[test]
    fn scripts_that_nobody_listens_to_make_room_and_those_that_were_wanted_briefly_go_first() {
        let numbered = |number: usize| ScriptBuf::from_bytes(number.to_be_bytes().to_vec());
        let part = LEASES_MAX / LEASES_SHARE;
        let mut leases = Leases::default();
        // Old ones of somebody who is away, others of who came and went, and one that somebody listens to.
        (0..part).for_each(|number| assert!(leases.want(&numbered(number), 100)));
        (0..part).for_each(|number| assert!(leases.want(&numbered(number), 900)));
        (part..LEASES_MAX).for_each(|number| assert!(leases.want(&numbered(number), 1_000)));
        let (heard, new) = (numbered(part), ScriptBuf::from_bytes(vec![0x51]));
        assert!(!leases.want(&new, 1_000));
        written(&mut leases);
        assert!(leases.make_room(1_006, || std::iter::once(&heard)));
        assert_eq!(leases.scripts.len(), LEASES_MAX - part, "a part at a time");
        assert!(
            (0..part).all(|number| leases.scripts.contains_key(&numbered(number))),
            "who is only away stays"
        );
        assert!(leases.scripts.contains_key(&heard));
        assert_eq!(written(&mut leases), part, "the index loses them, and nothing else is written");
        assert!(leases.want(&new, 1_006));
        assert!(leases.make_room(1_006, none), "while there is room, nobody has to go");
        assert_eq!(leases.scripts.len(), LEASES_MAX - part + 1);
        (0..part - 1).for_each(|number| assert!(leases.want(&numbered(LEASES_MAX + number), 1_006)));
        assert!(!leases.make_room(1_011, none), "not so soon again");
        assert!(leases.make_room(1_012, none));
    }
}
