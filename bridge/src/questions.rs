//! What a wallet subscribes to, and what nodes are asked for it.

use crate::interest::Interest;
use quorate_protocol::{
    AccountId,
    account::AccountRecord,
    wire::{ClientMessage, SubscriptionKey, limits},
};
use std::collections::BTreeMap;

/// What a session subscribes to.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) keys: Vec<SubscriptionKey>,
    pub(crate) accounts: BTreeMap<AccountId, AccountRecord>,
    /// It knows what blocks below this height spend.
    pub(crate) since: u32,
}

impl Subscription {
    /// The record that came with a key.
    pub(crate) fn account(&self, key: &SubscriptionKey) -> Option<&AccountRecord> {
        if let SubscriptionKey::Account(id) = key { self.accounts.get(id) } else { None }
    }
}

/// Asks nodes for keys, with the records of accounts, in as few messages as a node takes.
pub(crate) fn questions(mut keys: Vec<(&SubscriptionKey, &Interest)>) -> Vec<ClientMessage> {
    // Those of which little is kept together.
    keys.sort_unstable_by_key(|(key, interest)| (interest.account.is_some(), interest.since, *key));
    let (plain, accounts) = keys.split_at(keys.partition_point(|(_, interest)| interest.account.is_none()));
    let message = |keys: &[(&SubscriptionKey, &Interest)]| ClientMessage::UTXOSubscribe {
        keys: keys.iter().map(|(key, _)| (*key).clone()).collect(),
        accounts: keys.iter().filter_map(|(key, interest)| interest.record(key)).collect(),
        since: keys.iter().map(|(_, interest)| interest.since).min().filter(|since| *since > 0),
    };
    let plain = plain.chunks(limits::KEYS_PER_MESSAGE_MAX).map(message);
    plain.chain(accounts.chunks(limits::ACCOUNTS_PER_MESSAGE_MAX).map(message)).collect()
}
