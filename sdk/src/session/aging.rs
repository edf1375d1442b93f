//! Coins that grow old: told once, and moved home when their owner wants it or has allowed it.

use super::{Event, Now, Session};
use crate::wallet::{CoinState, WalletError};
use bitcoin::{Amount, FeeRate, OutPoint, Psbt, Txid};
use std::collections::BTreeSet;

/// What a session knows of its coins' age.
#[derive(Debug, Default)]
pub(super) struct Aging {
    told: BTreeSet<OutPoint>,
    /// Highest fee rate at which coins are moved home without asking.
    auto: Option<FeeRate>,
    /// Height of the tip at which it was last looked.
    looked_at: Option<u32>,
    /// The refresh that was made without asking.
    under_way: Option<Txid>,
}

/// What a refresh would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshQuote {
    /// Coins that are moved home, in one transaction.
    pub coins: usize,
    /// What they are worth together.
    pub amount: Amount,
    /// What it costs.
    pub fee: Amount,
    /// Whether they have expired: then they are spendable again once the transaction is in a block, else at once.
    pub expired: bool,
}

impl Session {
    /// What [`Session::refresh`] would do next, at this fee rate or the server's estimate; `None` if no coin is old.
    ///
    /// # Errors
    /// The fee rate is out of bounds, or out of proportion if it is only the server's.
    pub fn refresh_quote(&mut self, rate: Option<FeeRate>) -> Result<Option<RefreshQuote>, WalletError> {
        let Some(psbt) = self.create_refresh(rate)? else { return Ok(None) };
        let fee = psbt.fee().map_err(|_| WalletError::Derivation)?;
        let kept: Amount = psbt.unsigned_tx.output.iter().map(|output| output.value).sum();
        let expired = |input: &bitcoin::TxIn| {
            matches!(self.wallet.coin_state(&input.previous_output), Some(CoinState::Expired { .. }))
        };
        let inputs = &psbt.unsigned_tx.input;
        let amount = kept.checked_add(fee).unwrap_or(Amount::MAX_MONEY);
        Ok(Some(RefreshQuote { coins: inputs.len(), amount, fee, expired: inputs.iter().any(expired) }))
    }

    /// Moves old coins home in one transaction, which makes them young again; up to 64 of them, expired ones first.
    /// `None` if there is nothing to do.
    ///
    /// # Errors
    /// As of [`Session::send`]; nothing has been sent.
    pub fn refresh(&mut self, now: Now, rate: Option<FeeRate>) -> Result<Option<Txid>, WalletError> {
        match self.create_refresh(rate)? {
            Some(psbt) => self.send_psbt(now, psbt).map(Some),
            None => Ok(None),
        }
    }

    /// Lets the session move coins home by itself when they grow old, once per block, at the server's estimate and at
    /// most this fee rate; `None`, as at first, lets it not.
    ///
    /// ```
    /// # fn example(session: &mut quorate::session::Session) {
    /// session.set_auto_refresh(Some(bitcoin::FeeRate::from_sat_per_vb_u32(5)));
    /// # }
    /// ```
    pub fn set_auto_refresh(&mut self, rate_max: Option<FeeRate>) {
        self.aging.auto = rate_max;
        self.aging.looked_at = None;
    }

    fn create_refresh(&mut self, rate: Option<FeeRate>) -> Result<Option<Psbt>, WalletError> {
        let psbt = self.wallet.create_refresh(rate.unwrap_or(self.fee_rate))?;
        if let (Some(psbt), None) = (&psbt, rate) {
            self.wallet.check_unasked_fee(psbt, self.fee_rate)?;
        }
        Ok(psbt)
    }

    /// Once per block, when the wallet is as of now.
    pub(super) fn look_after_age(&mut self, now: Now) {
        let tip = self.wallet.chain().tip().height;
        if self.aging.looked_at == Some(tip) || !self.is_synced() {
            return;
        }
        self.aging.looked_at = Some(tip);
        let old = self.wallet.aging_or_expired();
        self.aging.told.retain(|told| old.iter().any(|(outpoint, _, _)| outpoint == told));
        for (outpoint, value, expires_at) in old {
            if self.aging.told.insert(outpoint) {
                self.event(Event::CoinExpiring { outpoint, value, expires_at });
            }
        }
        let busy = self.aging.under_way.is_some_and(|txid| self.payments.contains_key(&txid));
        if let Some(max) = self.aging.auto.filter(|_| !busy) {
            // What cannot be done now is tried again at the next block.
            self.aging.under_way = self.refresh(now, Some(self.fee_rate.min(max))).unwrap_or(None);
        }
    }
}
