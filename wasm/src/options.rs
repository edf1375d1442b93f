//! Arguments of the engine.

use crate::{error::Failure, js::from_json};
use bitcoin::{Amount, FeeRate, Network, OutPoint, Psbt};
use quorate::{
    account::{AccountPolicy, AccountRecord},
    headers::Checkpoint,
    wallet::{
        AccountOptions, Destination, GAP_LIMIT_MAX, PaymentRequest, SecretWords, TILLS_MAX, Till, Wallet,
        WalletError,
    },
    wire::Header,
};
use serde::Deserialize;
use zeroize::Zeroizing;

/// How to open a wallet.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WalletOptions {
    /// The secret words; without them the wallet watches `record`.
    pub(crate) words: Option<String>,
    /// Beside the words (BIP39), normalised.
    pub(crate) passphrase: Option<String>,
    /// Account number of the words.
    #[serde(default)]
    pub(crate) account: u32,
    /// An account record as JSON, to watch.
    pub(crate) record: Option<String>,
    /// Blocks after which the owner can move a coin alone; the federation's default if absent.
    pub(crate) recovery_delay: Option<u16>,
    /// Most that one payment may be, enforced by the nodes, in satoshis.
    pub(crate) payment_max: Option<u64>,
    /// Where header verification starts.
    pub(crate) checkpoint: Option<CheckpointOption>,
    /// How many addresses after the last used one are watched.
    pub(crate) gap_limit: Option<u32>,
    /// Which of several wallets of the account this is.
    pub(crate) till: Option<TillOption>,
    /// Bridges, tried in turn.
    pub(crate) urls: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct TillOption {
    number: u32,
    of: u32,
}

#[derive(Deserialize)]
pub(crate) struct CheckpointOption {
    height: u32,
    header: Header,
}

impl WalletOptions {
    pub(crate) fn wallet(&mut self, federation: quorate::Federation) -> Result<Wallet, Failure> {
        let checkpoint = self.checkpoint.as_ref();
        let checkpoint = checkpoint.map(|one| Checkpoint { height: one.height, header: one.header.0 });
        let words = self.words.take().map(Zeroizing::new);
        let mut wallet = match (words, &self.record) {
            (Some(words), None) => {
                let policy = AccountPolicy { payment_max: self.payment_max.map(Amount::from_sat) };
                let passphrase = Zeroizing::new(self.passphrase.take().unwrap_or_default());
                let words = SecretWords::parse(&words)?.with_passphrase(&passphrase);
                let (account, recovery_delay) = (self.account, self.recovery_delay);
                Wallet::new(
                    federation,
                    &words,
                    &AccountOptions { account, recovery_delay, policy },
                    checkpoint,
                )?
            }
            (None, Some(record)) => {
                let record: AccountRecord = from_json("account record", record)?;
                Wallet::watch(federation, record, checkpoint)?
            }
            _ => return Err(Failure::argument("options", "either `words` or `record` is needed")),
        };
        if let Some(addresses) = self.gap_limit {
            if !(1..=GAP_LIMIT_MAX).contains(&addresses) {
                return Err(Failure::argument("gapLimit", format!("has to be from 1 to {GAP_LIMIT_MAX}")));
            }
            wallet.set_gap_limit(addresses)?;
        }
        if let Some(TillOption { number, of }) = self.till {
            let known = Till::new(number, of);
            wallet.set_till(known.ok_or_else(|| {
                Failure::argument("till", format!("has to be one of at most {TILLS_MAX}, counted from 0"))
            })?);
        }
        Ok(wallet)
    }
}

/// A payment to make.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PaymentOptions {
    /// A payment that was built before, base64: nothing else is asked for with it but a key.
    psbt: Option<String>,
    #[serde(default)]
    to: String,
    /// In satoshis.
    amount: Option<u64>,
    /// Everything that is spendable, less the fee.
    #[serde(default)]
    everything: bool,
    /// Who else is paid.
    #[serde(default)]
    others: Vec<OtherOption>,
    /// For everybody to read.
    data: Option<Hex>,
    /// The coins to spend; the wallet selects if absent.
    coins: Option<Vec<OutPoint>>,
    /// In sat/vB.
    fee_rate: Option<f64>,
    /// The payment is made once for each.
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherOption {
    to: String,
    amount: Option<u64>,
}

#[derive(Deserialize)]
struct Hex(#[serde(with = "hex::serde")] Vec<u8>);

/// What is paid.
pub(crate) enum Payment {
    Request(PaymentRequest),
    Psbt(Psbt),
}

impl PaymentOptions {
    pub(crate) fn payment(&self, network: Network) -> Result<Payment, Failure> {
        match &self.psbt {
            Some(text) => quorate::psbt::parse(text)
                .map(Payment::Psbt)
                .map_err(|error| Failure::new("invalid_psbt", error)),
            None => self.request(network).map(Payment::Request),
        }
    }

    pub(crate) fn request(&self, network: Network) -> Result<PaymentRequest, Failure> {
        let mut request = PaymentRequest::new(Destination::parse(&self.to, network)?);
        match (self.amount, self.everything) {
            (Some(_), true) => return Err(Failure::argument("amount", "either an amount or everything")),
            (Some(sat), false) => request = request.exact(Amount::from_sat(sat)),
            (None, true) => request = request.everything(),
            (None, false) => {}
        }
        for OtherOption { to, amount } in &self.others {
            let destination = Destination::parse(to, network)?;
            let amount = amount.map(Amount::from_sat).or(destination.amount);
            request = request.and(destination, amount.ok_or(WalletError::AmountMissing)?);
        }
        if let Some(Hex(data)) = &self.data {
            request = request.data(data.as_slice());
        }
        if let Some(coins) = &self.coins {
            request = request.with_coins(coins.iter().copied());
        }
        if let Some(rate) = self.fee_rate {
            request = request.fee_rate(fee_rate(rate)?);
        }
        Ok(request)
    }
}

/// A fee rate in sat/vB, if there is one.
pub(crate) fn fee_rate_or_none(sat_per_vb: Option<f64>) -> Result<Option<FeeRate>, Failure> {
    sat_per_vb.map(fee_rate).transpose()
}

/// A fee rate in sat/vB.
pub(crate) fn fee_rate(sat_per_vb: f64) -> Result<FeeRate, Failure> {
    let sat_per_kwu = (sat_per_vb * 250.0).ceil();
    if !(0.0..=f64::from(u32::MAX)).contains(&sat_per_kwu) {
        return Err(Failure::argument("feeRate", "has to be a positive number of sat/vB"));
    }
    // Checked above: a whole number that fits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    let sat_per_kwu = sat_per_kwu as u64;
    Ok(FeeRate::from_sat_per_kwu(sat_per_kwu))
}
