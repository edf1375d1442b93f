//! How a wallet saves what has changed, and opens what was saved (the layout is in `state`).

use super::{
    Wallet, WalletError,
    coins::{Coin, HistoryEntry},
    state::{
        HEADERS_PER_KEY, Identity, Keychains, SavedState, StateChange, StateError, Touched, VERSION, read,
        under, value,
    },
};
use crate::{
    FederationDocument,
    account::{AccountCertificate, Keychain},
    finality::FinalityProof,
    wire::Header,
};

impl Wallet {
    /// Forgets what changed, because nobody saves it.
    pub(crate) fn drop_change(&mut self) {
        self.touched = Touched::default();
        let _unsaved = self.book.take_touched();
    }

    /// What changed since this was last called.
    pub(crate) fn take_change(&mut self) -> StateChange {
        let mut change = StateChange::new();
        let touched = std::mem::take(&mut self.touched);
        let (coins, history) = self.book.take_touched();
        if !self.saved_before {
            self.saved_before = true;
            let (federation, account) = (self.federation.id(), self.account.id());
            change.insert("wallet".to_owned(), value(&Identity { version: VERSION, federation, account }));
        }
        if touched.federation {
            change.insert("federation".to_owned(), value(&self.federation.document()));
        }
        if touched.certificate {
            change.insert("certificate".to_owned(), self.certificate.as_ref().and_then(value));
        }
        if touched.keychains {
            let next = |keychain| self.keychains.get(&keychain).map_or(0, |state| state.next);
            let keychains = Keychains {
                receive: next(Keychain::Receive),
                change: next(Keychain::Change),
                shown: self.shown,
            };
            change.insert("keychains".to_owned(), value(&keychains));
        }
        if touched.settled {
            change.insert("settled".to_owned(), self.settled.as_ref().and_then(value));
        }
        if touched.frozen {
            change.insert("frozen".to_owned(), value(self.frozen_to_save()));
        }
        for outpoint in coins {
            let coin = self.book.coin(&outpoint);
            change.insert(format!("coin/{outpoint}"), coin.and_then(value));
        }
        for index in history {
            change.insert(format!("history/{index:08}"), self.book.history().get(index).and_then(value));
        }
        for txid in touched.proofs {
            change.insert(format!("proof/{txid}"), self.proofs.get(&txid).and_then(value));
        }
        if let Some(from) = touched.headers_from {
            self.header_changes(from, &mut change);
        }
        change
    }

    fn header_changes(&self, from: u32, change: &mut StateChange) {
        let first = self.chain.base() + 1;
        let (from, tip) = (from.max(first), self.chain.tip().height);
        for chunk in (from - first) / HEADERS_PER_KEY.. {
            let start = first + chunk * HEADERS_PER_KEY;
            let heights = start..(start + HEADERS_PER_KEY).min(tip + 1);
            let headers: Vec<_> =
                heights.filter_map(|height| self.chain.header(height)).copied().map(Header).collect();
            let more = !headers.is_empty();
            change.insert(
                format!("headers/{chunk:08}"),
                Some(headers).filter(|_| more).as_ref().and_then(value),
            );
            if !more {
                break;
            }
        }
    }

    /// Takes in a saved state. The wallet has to be fresh.
    pub(crate) fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let Some(identity) = state.get("wallet") else { return Ok(()) };
        let identity: Identity = read("wallet", identity)?;
        if identity.version != VERSION {
            return Err(StateError::Version { found: identity.version });
        }
        if identity.federation != self.federation.id() || identity.account != self.account.id() {
            return Err(StateError::OtherWallet);
        }
        self.saved_before = true;
        if let Some(document) = state.get("federation") {
            let document: FederationDocument = read("federation", document)?;
            if document.epoch() > self.federation.epoch() {
                let verified = document.verify(self.federation.id());
                self.federation = verified.map_err(|error| StateError::damaged("federation", error))?;
            }
        }
        if let Some(certificate) = state.get("certificate") {
            let certificate: AccountCertificate = read("certificate", certificate)?;
            self.set_certificate(certificate).map_err(|error| StateError::damaged("certificate", error))?;
        }
        if let Some(keychains) = state.get("keychains") {
            let Keychains { receive, change, shown } = read("keychains", keychains)?;
            self.shown = shown;
            for (keychain, next) in [(Keychain::Receive, receive), (Keychain::Change, change)] {
                self.keychains.entry(keychain).or_default().next = next;
            }
            self.derive_ahead().map_err(|error| StateError::damaged("keychains", error))?;
        }
        if let Some(frozen) = state.get("frozen") {
            self.frozen = read("frozen", frozen)?;
        }
        if let Some(settled) = state.get("settled") {
            self.settled = Some(read("settled", settled)?);
        }
        self.restore_headers(state)?;
        let coins = under(state, "coin/").map(|(key, _, value)| read::<Coin>(key, value));
        let history = under(state, "history/").map(|(key, _, value)| read::<HistoryEntry>(key, value));
        self.book.restore(coins.collect::<Result<_, _>>()?, history.collect::<Result<_, _>>()?);
        for (key, _, value) in under(state, "proof/") {
            let proof: FinalityProof = read(key, value)?;
            self.proofs.insert(proof.txid(), proof);
        }
        self.touched = Touched::default();
        Ok(())
    }

    fn restore_headers(&mut self, state: &SavedState) -> Result<(), StateError> {
        for (key, _, value) in under(state, "headers/") {
            let headers: Vec<Header> = read(key, value)?;
            let headers: Vec<_> = headers.into_iter().map(|header| header.0).collect();
            self.chain.extend(&headers).map_err(|error| StateError::damaged(key, error))?;
        }
        Ok(())
    }
}

impl From<StateError> for WalletError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}
