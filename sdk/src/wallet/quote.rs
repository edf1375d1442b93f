//! What a payment would be, before it is made.

use super::{PaymentRequest, Wallet, WalletError};
use crate::{
    proposal::JointProposal,
    relay_policy::{bounded_sum, signed_vbytes},
};
use bitcoin::{Amount, FeeRate, OutPoint, Psbt, ScriptBuf, TxOut};

/// A payment as it would be made: nothing is reserved or sent. [`Client::pay_psbt`](crate::client::Client::pay_psbt)
/// with [`Quote::psbt`] pays exactly this, or says that one of its coins is not spendable any more
/// ([`WalletError::Coin`]): ask for another quote then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The payment.
    pub psbt: Psbt,
    /// What is paid to those that the request names.
    pub amount: Amount,
    /// What miners get.
    pub fee: Amount,
    /// What the fee comes to, for each virtual byte.
    pub fee_rate: FeeRate,
    /// What comes back to this wallet.
    pub change: Amount,
    /// The coins that are spent.
    pub coins: Vec<OutPoint>,
    /// Whether one of them is in no block yet: what hangs on it is final all the same, and waits for it on the chain.
    pub unconfirmed: bool,
    /// The most that the first destination could be paid, with what others get unchanged and the same rate asked for;
    /// `None` if that is nothing, or the destination is this wallet's own.
    pub most: Option<Amount>,
}

impl Quote {
    /// What leaves the wallet: amount and fee.
    ///
    /// ```
    /// # fn example(quote: &quorate::wallet::Quote) {
    /// assert_eq!(quote.total(), quote.amount + quote.fee);
    /// # }
    /// ```
    pub fn total(&self) -> Amount {
        bounded_sum([self.amount, self.fee])
    }
}

impl Wallet {
    /// Says what a payment would be, without reserving or sending anything.
    ///
    /// # Errors
    /// As [`Wallet::create_psbt`], and what the nodes would refuse, such as more than the account's policy allows.
    pub fn quote(&mut self, request: &PaymentRequest, default_rate: FeeRate) -> Result<Quote, WalletError> {
        let psbt = self.create_psbt(request, default_rate)?;
        let to: Vec<ScriptBuf> = paid_to(request).collect();
        let quote = self.quote_of(psbt, &to)?;
        Ok(Quote { most: self.most(request, default_rate), ..quote })
    }

    /// What a payment to these scripts is; what is of no other is change.
    pub(super) fn quote_of(&self, psbt: Psbt, to: &[ScriptBuf]) -> Result<Quote, WalletError> {
        self.check_as_nodes_do(&psbt)?;
        let fee = psbt.fee().map_err(|_| WalletError::Derivation)?;
        let sum = |paid: bool| {
            let outputs = psbt.unsigned_tx.output.iter();
            let is_paid = |output: &&TxOut| to.contains(&output.script_pubkey) == paid;
            bounded_sum(outputs.filter(is_paid).map(|output| output.value))
        };
        let vbytes = u64::try_from(signed_vbytes(&psbt.unsigned_tx)).unwrap_or(u64::MAX).max(1);
        let per_kwu = fee.to_sat().saturating_mul(250) / vbytes;
        let coins: Vec<OutPoint> = psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect();
        let is_unconfirmed = |coin: &OutPoint| {
            let coin = self.book.coin(coin);
            !coin.and_then(|coin| coin.block).is_some_and(|block| self.chain.contains(&block))
        };
        let unconfirmed = coins.iter().any(is_unconfirmed);
        let (amount, change) = (sum(true), sum(false));
        let fee_rate = FeeRate::from_sat_per_kwu(per_kwu);
        Ok(Quote { psbt, amount, fee, fee_rate, change, coins, unconfirmed, most: None })
    }
}

impl Wallet {
    /// What nodes would refuse for its form or the account's policy is not worth to be shown.
    fn check_as_nodes_do(&self, psbt: &Psbt) -> Result<(), WalletError> {
        let Ok(keys) = self.keys() else { return Ok(()) };
        let (key, account, deadline) = (&keys.authorisation, self.account.id(), self.deadline(psbt)?);
        let proposal = JointProposal::authorise(&self.federation, account, key, psbt.clone(), deadline);
        proposal.check(&self.federation, &self.account)?;
        Ok(())
    }

    /// The most that the first destination could be paid.
    fn most(&mut self, request: &PaymentRequest, default_rate: FeeRate) -> Option<Amount> {
        let first = request.destination.script_pubkey();
        if self.owns(&first) {
            // Everything is more than what can be paid: coins that have expired can be moved home.
            return None;
        }
        let psbt = self.create_psbt(&request.clone().everything(), default_rate).ok()?;
        let mut outputs = psbt.unsigned_tx.output.into_iter();
        let all = outputs.find(|output| output.script_pubkey == first)?.value;
        let others = request.others.iter().filter(|(to, _)| !self.owns(&to.script_pubkey()));
        let others = others.map(|(_, amount)| *amount);
        let limit = self.account.record().policy.payment_max.unwrap_or(Amount::MAX_MONEY);
        Some(all.min(limit.checked_sub(bounded_sum(others))?))
    }
}

fn paid_to(request: &PaymentRequest) -> impl Iterator<Item = ScriptBuf> + '_ {
    let others = request.others.iter().map(|(destination, _)| destination.script_pubkey());
    others.chain([request.destination.script_pubkey()])
}
