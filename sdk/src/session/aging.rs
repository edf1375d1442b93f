//! Coins that grow old: told once, and moved home when their owner wants it or has allowed it.

use super::{Event, Now, PaymentState, Session};
use crate::{
    relay_policy::bounded_sum,
    wallet::{CoinState, Quote, WalletError},
};
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
    /// Height at which the next one may be made: after one that failed it waits.
    retry_at: u32,
}

/// Blocks to wait after a refresh that failed. Each attempt uses up an address.
const RETRY_BLOCKS: u32 = 144;
/// Coins that stay payable for less than this many blocks are not moved home by themselves: a week.
const PAYABLE_MIN: u32 = 1_008;

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
        let kept = bounded_sum(psbt.unsigned_tx.output.iter().map(|output| output.value));
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
    /// most this fee rate; `None`, as at first, lets it not. After one that failed it waits a day.
    ///
    /// ```
    /// # fn example(session: &mut quorate::session::Session) -> Result<(), quorate::wallet::WalletError> {
    /// session.set_auto_refresh(Some(bitcoin::FeeRate::from_sat_per_vb_u32(5)))
    /// # }
    /// ```
    ///
    /// # Errors
    /// The rate is out of bounds; or coins of this account stay payable for less than a week, so that it would move
    /// them all the time.
    pub fn set_auto_refresh(&mut self, rate_max: Option<FeeRate>) -> Result<(), WalletError> {
        if let Some(rate) = rate_max {
            self.wallet.check_fee_rate(rate)?;
            let blocks = self.wallet.payable_blocks();
            if blocks < PAYABLE_MIN {
                return Err(WalletError::ShortLived { blocks, least: PAYABLE_MIN });
            }
        }
        self.aging.auto = rate_max;
        (self.aging.looked_at, self.aging.retry_at) = (None, 0);
        Ok(())
    }

    /// What it would be to make one coin of many small ones ([`Wallet::create_consolidation`]), at this fee rate or the
    /// server's estimate; `None` if there are not two. [`Session::send_psbt`] with [`Quote::psbt`] does it.
    ///
    /// # Errors
    /// The fee rate is out of bounds, or the fee out of proportion if it is only the server's.
    ///
    /// [`Wallet::create_consolidation`]: crate::wallet::Wallet::create_consolidation
    pub fn consolidation_quote(&mut self, rate: Option<FeeRate>) -> Result<Option<Quote>, WalletError> {
        let quote = self.wallet.consolidation_quote(rate.unwrap_or(self.fee_rate))?;
        if let (Some(quote), None) = (&quote, rate) {
            self.wallet.check_unasked_fee(&quote.psbt, self.fee_rate)?;
        }
        Ok(quote)
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
        if let Some(txid) = self.aging.under_way {
            match self.payment(txid) {
                Some(PaymentState::Final { .. }) => self.aging.under_way = None,
                Some(PaymentState::Rejected { .. } | PaymentState::Failed { .. }) | None => {
                    self.aging.under_way = None;
                    self.aging.retry_at = tip.saturating_add(RETRY_BLOCKS);
                }
                Some(_) => return,
            }
        }
        if let Some(max) = self.aging.auto.filter(|_| tip >= self.aging.retry_at) {
            match self.refresh(now, Some(self.fee_rate.min(max))) {
                Ok(made) => self.aging.under_way = made,
                Err(error) => {
                    self.aging.retry_at = tip.saturating_add(RETRY_BLOCKS);
                    self.event(Event::RefreshFailed { reason: error.to_string() });
                }
            }
        }
    }
}
