//! Who is subscribed to what at this node, and which sessions have greeted. What they hear is in `notices`.

use crate::SessionId;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use quorate_protocol::{
    AccountId,
    wire::{ErrorCode, SubscriptionKey, WireError},
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Most keys that one session may be subscribed to here: a bridge has those of all its wallets on one.
const KEYS_PER_SESSION_MAX: usize = 1_000_000;

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) greeted: HashSet<SessionId>,
    by_key: HashMap<Target, BTreeSet<(SessionId, SubscriptionKey)>>,
    by_session: HashMap<SessionId, BTreeMap<SubscriptionKey, Target>>,
}

/// What a key means; an address and its script mean the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Script(ScriptBuf),
    Outpoint(OutPoint),
    Txid(Txid),
    Account(AccountId),
    Tip,
}

impl Subscriptions {
    pub(crate) fn add(
        &mut self,
        session: SessionId,
        key: SubscriptionKey,
        target: Target,
    ) -> Result<(), WireError> {
        let keys = self.by_session.entry(session).or_default();
        if keys.len() >= KEYS_PER_SESSION_MAX && !keys.contains_key(&key) {
            let found = keys.len() + 1;
            let limit = KEYS_PER_SESSION_MAX;
            return Err(WireError::limit(ErrorCode::LimitExceeded, "keys in a session", limit, found));
        }
        keys.insert(key.clone(), target.clone());
        self.by_key.entry(target).or_default().insert((session, key));
        Ok(())
    }

    pub(crate) fn remove(&mut self, session: SessionId, key: &SubscriptionKey) -> bool {
        let removed = self.by_session.get_mut(&session).and_then(|keys| keys.remove(key));
        if let Some(target) = &removed {
            self.unlist(session, key, target);
        }
        removed.is_some()
    }

    /// Costs what the session had, not what all have.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        self.greeted.remove(&session);
        for (key, target) in self.by_session.remove(&session).unwrap_or_default() {
            self.unlist(session, &key, &target);
        }
    }

    fn unlist(&mut self, session: SessionId, key: &SubscriptionKey, target: &Target) {
        if let Some(sessions) = self.by_key.get_mut(target) {
            sessions.remove(&(session, key.clone()));
            if sessions.is_empty() {
                self.by_key.remove(target);
            }
        }
    }

    /// How many sessions have greeted.
    pub(crate) fn sessions(&self) -> usize {
        self.greeted.len()
    }

    /// Whether a session has said Hello.
    pub(crate) fn has_greeted(&self, session: SessionId) -> bool {
        self.greeted.contains(&session)
    }

    pub(crate) fn is_heard(&self, target: &Target) -> bool {
        self.by_key.contains_key(target)
    }

    /// Scripts that somebody is subscribed to.
    pub(crate) fn scripts(&self) -> impl Iterator<Item = &ScriptBuf> {
        self.by_key
            .keys()
            .filter_map(|target| if let Target::Script(script) = target { Some(script) } else { None })
    }

    /// Whether a session is subscribed to a key.
    pub(crate) fn has(&self, session: SessionId, key: &SubscriptionKey) -> bool {
        self.by_session.get(&session).is_some_and(|keys| keys.contains_key(key))
    }

    pub(crate) fn listeners(&self, target: &Target) -> Vec<(SessionId, SubscriptionKey)> {
        self.by_key.get(target).map(|set| set.iter().cloned().collect()).unwrap_or_default()
    }
}
