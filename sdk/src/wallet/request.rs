//! What its user wants paid.

use super::{Destination, WalletError};
use crate::relay_policy::bounded_sum;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, TxOut,
    hashes::{Hash as _, HashEngine as _, sha256},
    script::PushBytesBuf,
};

/// Most bytes that a payment can carry beside what it pays: with the opcodes around them 83, what all versions of
/// Bitcoin Core in use relay.
pub const DATA_MAX: usize = 80;

/// How much to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentAmount {
    /// This much; the fee comes on top.
    Exact(Amount),
    /// Everything that is spendable and worth more than its part of the fee, less the fee: up to 64 coins in one
    /// transaction, and of those that hang on unconfirmed transactions as many as the network takes together. What
    /// stays can be sent after the next block.
    Everything,
}

/// A payment that the user asks for.
///
/// ```
/// use bitcoin::{Amount, Network::Regtest};
/// use quorate::wallet::{Destination, PaymentRequest};
/// let shop = Destination::parse("bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw", Regtest)?;
/// let request = PaymentRequest::new(shop.clone())
///     .exact(Amount::from_sat(5_000))
///     .and(shop, Amount::from_sat(1_000))
///     .data(b"order 17");
/// assert_eq!(request.others.len(), 1);
/// # Ok::<(), quorate::wallet::WalletError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentRequest {
    /// To whom.
    pub destination: Destination,
    /// How much; if absent, what the link asks for.
    pub amount: Option<PaymentAmount>,
    /// Who else is paid in the same transaction, and how much.
    pub others: Vec<(Destination, Amount)>,
    /// What it says on the chain for everybody to read, up to [`DATA_MAX`] bytes.
    pub data: Option<Vec<u8>>,
    /// The coins to spend, all of them and no others; if absent, the wallet selects, and leaves frozen ones out.
    pub coins: Option<Vec<OutPoint>>,
    /// At which fee rate; if absent, what the server estimates for the next blocks, as long as the fee is not above
    /// [`FEE_UNASKED_MAX`](super::FEE_UNASKED_MAX) and a tenth of the payment.
    pub fee_rate: Option<FeeRate>,
}

impl PaymentRequest {
    /// Pays what the destination's link asks for.
    pub fn new(destination: Destination) -> Self {
        Self { destination, amount: None, others: Vec::new(), data: None, coins: None, fee_rate: None }
    }

    /// Pays an exact amount.
    #[must_use]
    pub fn exact(mut self, amount: Amount) -> Self {
        self.amount = Some(PaymentAmount::Exact(amount));
        self
    }

    /// Pays everything that is spendable, less the fee and what others are paid.
    #[must_use]
    pub fn everything(mut self) -> Self {
        self.amount = Some(PaymentAmount::Everything);
        self
    }

    /// Pays somebody else too.
    #[must_use]
    pub fn and(mut self, destination: Destination, amount: Amount) -> Self {
        self.others.push((destination, amount));
        self
    }

    /// Carries data.
    #[must_use]
    pub fn data(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.data = Some(bytes.into());
        self
    }

    /// Spends these coins, and no others.
    #[must_use]
    pub fn with_coins(mut self, coins: impl IntoIterator<Item = OutPoint>) -> Self {
        self.coins = Some(coins.into_iter().collect());
        self
    }

    /// Uses a fee rate.
    #[must_use]
    pub fn fee_rate(mut self, rate: FeeRate) -> Self {
        self.fee_rate = Some(rate);
        self
    }

    /// What is paid beside the first destination.
    pub(super) fn further_outputs(&self) -> Result<Vec<TxOut>, WalletError> {
        let paid = self.others.iter().map(|(destination, value)| {
            if *value > Amount::MAX_MONEY {
                return Err(WalletError::AmountTooLarge { amount: *value });
            }
            Ok(TxOut { value: *value, script_pubkey: destination.script_pubkey() })
        });
        paid.chain(self.data.as_deref().map(data_output)).collect()
    }

    /// The hash of all that it asks for.
    pub(crate) fn fingerprint(&self) -> sha256::Hash {
        let mut engine = sha256::Hash::engine();
        let mut field = |bytes: &[u8]| {
            engine.input(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            engine.input(bytes);
        };
        let wanted = self.amount.or(self.destination.amount.map(PaymentAmount::Exact));
        field(self.destination.script_pubkey().as_bytes());
        field(&match wanted {
            Some(PaymentAmount::Exact(amount)) => amount.to_sat().to_be_bytes(),
            Some(PaymentAmount::Everything) => [0xff; 8],
            None => [0xfe; 8],
        });
        for (destination, amount) in &self.others {
            field(destination.script_pubkey().as_bytes());
            field(&amount.to_sat().to_be_bytes());
        }
        field(b"data");
        self.data.iter().for_each(|data| field(data));
        field(b"coins");
        self.coins.iter().flatten().for_each(|coin| field(coin.to_string().as_bytes()));
        field(b"rate");
        self.fee_rate.iter().for_each(|rate| field(&rate.to_sat_per_kwu().to_be_bytes()));
        sha256::Hash::from_engine(engine)
    }
}

/// The sum of outputs, of at most all that there can be.
pub(super) fn sum(outputs: &[TxOut]) -> Result<Amount, WalletError> {
    let all = outputs.iter().try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value));
    let amount = all.unwrap_or_else(|| bounded_sum(outputs.iter().map(|output| output.value)));
    if all.is_none_or(|all| all > Amount::MAX_MONEY) {
        return Err(WalletError::AmountTooLarge { amount });
    }
    Ok(amount)
}

fn data_output(data: &[u8]) -> Result<TxOut, WalletError> {
    let too_long = || WalletError::DataTooLong { length: data.len(), max: DATA_MAX };
    if data.len() > DATA_MAX {
        return Err(too_long());
    }
    let bytes = PushBytesBuf::try_from(data.to_vec()).map_err(|_| too_long())?;
    Ok(TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return(bytes) })
}
