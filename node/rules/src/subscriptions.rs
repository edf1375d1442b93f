//! Who is subscribed to what at this node, and which sessions have greeted. What they hear is in `notices`.

use crate::{SessionId, shares::Counts};
use bitcoin::{OutPoint, ScriptBuf, Txid};
use quorate_protocol::{
    AccountId,
    wire::{ErrorCode, SubscriptionKey, WireError, limits},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most keys that one session may be subscribed to here: a bridge has those of all its wallets on one.
const KEYS_PER_SESSION_MAX: usize = limits::KEYS_PER_BRIDGE_MAX;
/// Most keys of all sessions with one certificate: a bridge comes back while its last session is not yet seen to have
/// ended.
const KEYS_PER_CERTIFICATE_MAX: usize = 2 * limits::KEYS_PER_BRIDGE_MAX;

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) greeted: HashSet<SessionId>,
    /// A session may have two keys that mean the same.
    by_target: BTreeMap<(Target, SessionId), Vec<SubscriptionKey>>,
    by_session: HashMap<SessionId, BTreeMap<SubscriptionKey, Target>>,
    by_certificate: Counts<u64>,
}

/// What a key means; an address and its script mean the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        if !keys.contains_key(&key) {
            let all = self.by_certificate.of(&session.certificate);
            for (what, limit, held) in [
                ("keys in a session", KEYS_PER_SESSION_MAX, keys.len()),
                ("keys with one certificate", KEYS_PER_CERTIFICATE_MAX, all),
            ] {
                if held >= limit {
                    let error = WireError::limit(ErrorCode::LimitExceeded, what, limit, held + 1);
                    return Err(WireError { retry: true, ..error });
                }
            }
        }
        if keys.insert(key.clone(), target.clone()).is_none() {
            self.by_certificate.add(session.certificate, 1);
            // Nearly always the only one.
            let same = self.by_target.entry((target, session)).or_insert_with(|| Vec::with_capacity(1));
            same.push(key);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, session: SessionId, key: &SubscriptionKey) -> bool {
        let removed = self.by_session.get_mut(&session).and_then(|keys| keys.remove(key));
        if let Some(target) = &removed {
            self.by_certificate.take(session.certificate, 1);
            self.unlist(session, key, target);
        }
        removed.is_some()
    }

    /// Costs what the session had, not what all have.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        self.greeted.remove(&session);
        let keys = self.by_session.remove(&session).unwrap_or_default();
        self.by_certificate.take(session.certificate, keys.len());
        for (key, target) in keys {
            self.unlist(session, &key, &target);
        }
    }

    fn unlist(&mut self, session: SessionId, key: &SubscriptionKey, target: &Target) {
        let at = (target.clone(), session);
        if let Some(keys) = self.by_target.get_mut(&at) {
            keys.retain(|one| one != key);
            if keys.is_empty() {
                self.by_target.remove(&at);
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
        self.sessions_of(target).next().is_some()
    }

    /// Scripts that somebody is subscribed to.
    pub(crate) fn scripts(&self) -> impl Iterator<Item = &ScriptBuf> {
        let targets = self.by_target.keys().map(|(target, _)| target);
        targets.filter_map(|target| if let Target::Script(script) = target { Some(script) } else { None })
    }

    /// Whether a session is subscribed to a key.
    pub(crate) fn has(&self, session: SessionId, key: &SubscriptionKey) -> bool {
        self.by_session.get(&session).is_some_and(|keys| keys.contains_key(key))
    }

    pub(crate) fn listeners(&self, target: &Target) -> Vec<(SessionId, SubscriptionKey)> {
        let each = |(session, keys): (SessionId, &Vec<SubscriptionKey>)| {
            let keys = keys.clone().into_iter();
            keys.map(move |key| (session, key)).collect::<Vec<_>>()
        };
        self.sessions_of(target).flat_map(each).collect()
    }

    fn sessions_of(&self, target: &Target) -> impl Iterator<Item = (SessionId, &Vec<SubscriptionKey>)> {
        let all = (target.clone(), SessionId::FIRST)..=(target.clone(), SessionId::LAST);
        self.by_target.range(all).map(|((_, session), keys)| (*session, keys))
    }
}
