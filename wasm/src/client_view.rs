//! Wallet data and events as plain objects.

use bitcoin::{Address, Amount, Network};
use quorate::{
    account::Keychain,
    finality::FinalityKind,
    headers::HeaderChain,
    session::{Event, PaymentState, RefreshQuote, Session},
    wallet::{Balance, Coin, HistoryDetails, HistoryEntry, Quote, Wallet},
    wire::{BlockRef, ConfirmedSpend, NodeReject, WireError},
};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BalanceView {
    spendable: u64,
    incoming: u64,
    locked: u64,
    immature: u64,
    expired: u64,
}

impl From<Balance> for BalanceView {
    fn from(balance: Balance) -> Self {
        Self {
            spendable: balance.spendable.to_sat(),
            incoming: balance.incoming.to_sat(),
            locked: balance.locked.to_sat(),
            immature: balance.immature.to_sat(),
            expired: balance.expired.to_sat(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockView {
    height: u32,
    hash: String,
}

impl From<BlockRef> for BlockView {
    fn from(block: BlockRef) -> Self {
        Self { height: block.height, hash: block.hash.to_string() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CoinView {
    outpoint: String,
    value: u64,
    address: String,
    keychain: Keychain,
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    finality: Option<FinalityKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<BlockView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locked_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spent_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicted: Option<ConflictView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u32>,
    frozen: bool,
}

/// A payment as it would be made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QuoteView {
    psbt: String,
    amount: u64,
    fee: u64,
    total: u64,
    fee_rate: f64,
    change: u64,
    coins: Vec<String>,
    unconfirmed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    most: Option<u64>,
}

impl From<Quote> for QuoteView {
    fn from(quote: Quote) -> Self {
        // A rate is far below 2^32.
        let per_kwu = u32::try_from(quote.fee_rate.to_sat_per_kwu()).map_or(f64::MAX, f64::from);
        Self {
            total: quote.total().to_sat(),
            psbt: quote.psbt.to_string(),
            amount: quote.amount.to_sat(),
            fee: quote.fee.to_sat(),
            fee_rate: per_kwu / 250.0,
            change: quote.change.to_sat(),
            coins: quote.coins.iter().map(ToString::to_string).collect(),
            unconfirmed: quote.unconfirmed,
            most: quote.most.map(Amount::to_sat),
        }
    }
}

/// What a refresh would do.
#[derive(Serialize)]
pub(crate) struct RefreshView {
    coins: u32,
    amount: u64,
    fee: u64,
    expired: bool,
}

impl From<RefreshQuote> for RefreshView {
    fn from(quote: RefreshQuote) -> Self {
        let RefreshQuote { coins, amount, fee, expired } = quote;
        let coins = u32::try_from(coins).unwrap_or(u32::MAX);
        Self { coins, amount: amount.to_sat(), fee: fee.to_sat(), expired }
    }
}

/// What a block has in place of a transaction that can be in none any more.
#[derive(Serialize)]
pub(crate) struct ConflictView {
    txid: String,
    block: BlockView,
}

impl From<ConfirmedSpend> for ConflictView {
    fn from(by: ConfirmedSpend) -> Self {
        Self { txid: by.txid.to_string(), block: by.block.into() }
    }
}

impl CoinView {
    pub(crate) fn new(coin: &Coin, wallet: &Wallet, network: Network) -> Self {
        Self {
            outpoint: coin.outpoint.to_string(),
            value: coin.value.to_sat(),
            // Every script of the wallet is Taproot and has one.
            address: Address::from_script(&coin.script_pubkey, network)
                .map_or_else(|_| coin.script_pubkey.to_hex_string(), |address| address.to_string()),
            keychain: coin.position.keychain,
            index: coin.position.index,
            finality: coin.finality,
            block: coin.block.map(BlockView::from),
            locked_by: coin.held_by().map(|txid| txid.to_string()),
            spent_by: coin.spent_by.map(|txid| txid.to_string()),
            conflicted: coin.conflicted.map(ConflictView::from),
            expires_at: wallet.expires_at(&coin.outpoint),
            frozen: wallet.is_frozen(&coin.outpoint),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HistoryView {
    txid: String,
    received: u64,
    spent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    finality: Option<FinalityKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<BlockView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_time: Option<u32>,
    confirmations: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee: Option<u64>,
    /// Whom this wallet paid.
    to: Vec<PaidView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicted: Option<ConflictView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// A payment of this wallet that is not final: how it stands, or how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<PaymentView>,
}

#[derive(Serialize)]
struct PaidView {
    address: String,
    amount: u64,
}

impl HistoryView {
    pub(crate) fn new(entry: &HistoryEntry, session: &Session) -> Self {
        let wallet = session.wallet();
        let chain: &HeaderChain = wallet.chain();
        let HistoryDetails { fee, paid, time } = wallet.history_details(entry);
        let network = wallet.federation().network();
        let to = paid.into_iter().filter_map(|(script, amount)| {
            let address = Address::from_script(&script, network).ok()?.to_string();
            Some(PaidView { address, amount: amount.to_sat() })
        });
        let payment = Some(entry).filter(|entry| entry.finality.is_none() && entry.block.is_none());
        let payment = payment.and_then(|entry| session.payment(entry.txid));
        Self {
            txid: entry.txid.to_string(),
            received: entry.received.to_sat(),
            spent: entry.spent.to_sat(),
            finality: entry.finality,
            block: entry.block.map(BlockView::from),
            block_time: time,
            confirmations: entry.block.map_or(0, |block| chain.confirmations(&block)),
            fee: fee.map(Amount::to_sat),
            to: to.collect(),
            conflicted: entry.conflicted.map(ConflictView::from),
            refusal: session.refusal(entry.txid).map(str::to_owned),
            payment: payment.and_then(PaymentView::new),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub(crate) enum PaymentView {
    Submitted,
    Voting { votes: u16, quorum: u16, nodes: u16 },
    Approved,
    Signing { attempt: u32 },
    Final { finality: FinalityKind, proof: String },
    Rejected { rejects: Vec<NodeReject>, retryable: bool },
    Failed { message: String, retryable: bool },
}

impl PaymentView {
    /// `None` for what a later SDK may add.
    fn new(state: PaymentState) -> Option<Self> {
        Some(match state {
            PaymentState::Submitted => Self::Submitted,
            PaymentState::Voting { votes, quorum, nodes } => Self::Voting { votes, quorum, nodes },
            PaymentState::Approved => Self::Approved,
            PaymentState::Signing { attempt } => Self::Signing { attempt },
            PaymentState::Final { kind, proof } => Self::Final {
                finality: kind,
                proof: serde_json::to_string(&proof).expect("own types are written without fail"),
            },
            PaymentState::Rejected { rejects, retry } => Self::Rejected { rejects, retryable: retry },
            PaymentState::Failed { message, retry } => Self::Failed { message, retryable: retry },
            _ => return None,
        })
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum EventView {
    Connected,
    Disconnected {
        reason: String,
        retry_in_ms: u32,
    },
    Ready,
    Synced,
    Epoch {
        epoch: u32,
    },
    Balance {
        balance: BalanceView,
    },
    Payment {
        txid: String,
        #[serde(flatten)]
        state: PaymentView,
    },
    Received {
        txid: String,
        amount: u64,
        finality: FinalityKind,
    },
    Confirmed {
        txid: String,
        block: BlockView,
    },
    Conflicted {
        txid: String,
        by: ConflictView,
    },
    Broadcasting {
        txid: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
    },
    RefreshFailed {
        reason: String,
    },
    CoinExpiring {
        outpoint: String,
        value: u64,
        expires_at: u32,
    },
    Tip {
        tip: BlockView,
    },
    TipStale {
        tip: BlockView,
        time: u32,
    },
    Lagged {
        missed: u32,
    },
    Refused {
        error: WireError,
    },
    ServerMisbehaved {
        what: String,
    },
}

impl EventView {
    /// `None` for what a later SDK may add.
    pub(crate) fn new(event: Event) -> Option<Self> {
        Some(match event {
            Event::Connected => Self::Connected,
            Event::Disconnected { reason, retry_in } => Self::Disconnected {
                reason,
                retry_in_ms: u32::try_from(retry_in.as_millis()).unwrap_or(u32::MAX),
            },
            Event::Ready => Self::Ready,
            Event::Synced => Self::Synced,
            Event::Epoch { epoch } => Self::Epoch { epoch: u32::try_from(epoch.0).unwrap_or(u32::MAX) },
            Event::Balance(balance) => Self::Balance { balance: balance.into() },
            Event::Payment { txid, state } => {
                Self::Payment { txid: txid.to_string(), state: PaymentView::new(state)? }
            }
            Event::Received { txid, amount, kind, .. } => {
                Self::Received { txid: txid.to_string(), amount: amount.to_sat(), finality: kind }
            }
            Event::Confirmed { txid, block } => {
                Self::Confirmed { txid: txid.to_string(), block: block.into() }
            }
            Event::Conflicted { txid, by } => Self::Conflicted { txid: txid.to_string(), by: by.into() },
            Event::Broadcasting { txid, refusal } => Self::Broadcasting { txid: txid.to_string(), refusal },
            Event::RefreshFailed { reason } => Self::RefreshFailed { reason },
            Event::CoinExpiring { outpoint, value, expires_at } => {
                Self::CoinExpiring { outpoint: outpoint.to_string(), value: value.to_sat(), expires_at }
            }
            Event::Tip { tip } => Self::Tip { tip: tip.into() },
            Event::TipStale { tip, time } => {
                Self::TipStale { tip: tip.into(), time: u32::try_from(time).unwrap_or(u32::MAX) }
            }
            Event::Lagged { missed } => Self::Lagged { missed: u32::try_from(missed).unwrap_or(u32::MAX) },
            Event::Refused { error } => Self::Refused { error },
            Event::ServerMisbehaved { what } => Self::ServerMisbehaved { what },
            _ => return None,
        })
    }
}
