//! Accounts whose scripts are indexed, for who follows them with one key.

use crate::{context::Context, ledger::Coin, subscriptions::Target};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    AccountId,
    account::{AccountRecord, JointAccount},
    wire::SubscriptionKey,
};
use std::collections::BTreeMap;

impl Context {
    /// Records that came with a subscription, of accounts that are among its keys: a node that does not know one of
    /// them has its scripts indexed from now on. One that is not good changes nothing.
    pub(crate) fn take_accounts(
        &mut self,
        keys: &[SubscriptionKey],
        accounts: BTreeMap<AccountId, AccountRecord>,
    ) {
        for (id, record) in accounts {
            let named = keys.contains(&SubscriptionKey::Account(id)) && record.id(&self.federation) == id;
            let is_news = named && self.ledger.account_since(&id).is_none();
            if is_news
                && record.check(&self.federation).is_ok()
                && let Ok(account) = JointAccount::new(&self.federation, record)
            {
                self.index_account(&account);
            }
        }
    }

    /// Whether this node may follow one account more for the party whose input it handles: while there is much room,
    /// and then each has its share.
    pub(crate) fn has_room_for_account(&self) -> bool {
        self.ledger.scarce_room().is_none_or(|left| self.newcomers.has_room(&self.party, left))
    }

    /// Derives more scripts of accounts that have used those they had.
    pub(crate) fn extend_accounts(&mut self) {
        loop {
            let used = self.ledger.take_used();
            if used.is_empty() {
                return;
            }
            for (id, used) in used {
                let record = || self.ledger.account_record(&id);
                if let Some(account) = self.accounts.derive(&self.federation, id, record) {
                    let news = self.ledger.extend(id, &account, used);
                    self.tell_of_account(id, &news);
                }
            }
        }
    }

    /// Has the scripts of an account indexed from now on, if there is room: an account that is not followed has its
    /// addresses followed by its wallet, and pays like any other.
    pub(crate) fn index_account(&mut self, account: &JointAccount) {
        if self.ledger.account_since(&account.id()).is_none() {
            if !self.has_room_for_account() {
                return;
            }
            if self.ledger.scarce_room().is_some() {
                self.newcomers.add(account.id(), self.party);
            }
        }
        let news = self.ledger.register(account.id(), account);
        self.tell_of_account(account.id(), &news);
        self.extend_accounts();
    }

    /// Coins turned out to be an account's: its addresses were not all known before.
    pub(crate) fn tell_of_account(&mut self, account: AccountId, coins: &[OutPoint]) {
        let listeners = self.subscriptions.listeners(&Target::Account(account));
        if !listeners.is_empty() {
            for outpoint in coins {
                let spend = self.ledger.coin(outpoint).and_then(Coin::spend);
                let proof = |txid: Txid| self.ledger.proof(&txid).cloned();
                let proofs = [proof(outpoint.txid), spend.and_then(|spend| proof(spend.txid))];
                self.notify(&listeners, outpoint, None);
                for proof in proofs.iter().flatten() {
                    self.notify(&listeners, outpoint, Some(proof));
                }
            }
        }
    }
}
