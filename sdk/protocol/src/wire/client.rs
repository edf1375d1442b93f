//! Messages between a wallet and a server. The server is a node (over QUIC) or a bridge (over WebSocket); both speak
//! the same.

use super::{
    BlockRef, ConflictProof, Message, RawTransactionProof, TransactionStatus, UtxoRecord, UtxoState,
    WireError,
};
use crate::{
    AccountId, FederationDocument, FederationId, NodeId,
    account::{AccountCertificate, AccountRecord, Keychain},
    finality::FinalityProof,
    frost::{NodeCommitments, WalletSignature},
    proposal::Proposal,
    release::{ReleaseCertificate, SignedCancel},
    tagged::{self, tagged},
    vote::ApprovalCertificate,
};
use bitcoin::{Address, OutPoint, ScriptBuf, Txid, address::NetworkUnchecked, block};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashSet};

/// What a subscription or query is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionKey {
    /// All outputs of an output script, in hex.
    Script(ScriptBuf),
    /// The same by address; the answer and notifications use this key again.
    Address(Address<NetworkUnchecked>),
    /// One outpoint.
    Outpoint(OutPoint),
    /// One transaction's status.
    Txid(Txid),
    /// All outputs of an account's addresses: up to 20 after the last one on each keychain that had a coin.
    Account(AccountId),
    /// The tip of the chain.
    Tip,
}

impl SubscriptionKey {
    /// Keys as they stand in a message, each once: who names one a thousand times is answered once.
    ///
    /// ```
    /// use quorate_protocol::wire::SubscriptionKey;
    ///
    /// assert_eq!(SubscriptionKey::distinct(vec![SubscriptionKey::Tip; 3]), [SubscriptionKey::Tip]);
    /// ```
    pub fn distinct(mut keys: Vec<Self>) -> Vec<Self> {
        let mut seen = HashSet::new();
        keys.retain(|key| seen.insert(key.clone()));
        keys
    }

    /// Refuses keys of a message that are too many, or one of which is a script that no output needs.
    ///
    /// ```
    /// use quorate_protocol::wire::{SubscriptionKey, limits};
    ///
    /// let script = |bytes: usize| SubscriptionKey::Script(vec![0x51; bytes].into());
    /// assert!(SubscriptionKey::check(&[script(34), SubscriptionKey::Tip]).is_ok());
    /// assert!(SubscriptionKey::check(&[script(limits::KEY_SCRIPT_BYTES_MAX + 1)]).is_err());
    /// ```
    ///
    /// # Errors
    /// The limit, and what was found.
    pub fn check(keys: &[Self]) -> Result<(), WireError> {
        super::limits::check_keys(keys.len())?;
        keys.iter().try_for_each(|key| match key {
            Self::Script(script) => super::limits::check_script(script.len()),
            Self::Address(_) | Self::Outpoint(_) | Self::Txid(_) | Self::Account(_) | Self::Tip => Ok(()),
        })
    }
}

/// The outpoints among some keys.
pub fn outpoints_of(keys: &[SubscriptionKey]) -> Vec<OutPoint> {
    let outpoint = |key: &SubscriptionKey| match key {
        SubscriptionKey::Outpoint(outpoint) => Some(*outpoint),
        SubscriptionKey::Script(_)
        | SubscriptionKey::Address(_)
        | SubscriptionKey::Txid(_)
        | SubscriptionKey::Account(_)
        | SubscriptionKey::Tip => None,
    };
    keys.iter().filter_map(outpoint).collect()
}

/// The tip of a node's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainTip {
    /// The block.
    pub block: BlockRef,
}

/// A block header, 80 bytes in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Header(#[serde(with = "crate::consensus_hex")] pub block::Header);

/// What a node estimates that it costs to be mined, in satoshis per 1,000 weight units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeeEstimates {
    /// In one of the next blocks.
    pub next_block: u64,
    /// Within six blocks: what a wallet pays unless it is told otherwise.
    pub six_blocks: u64,
    /// Within 144 blocks.
    pub day: u64,
    /// Below this the node votes for nothing (rule V1).
    pub floor: u64,
}

impl Default for FeeEstimates {
    /// What relays at all, before a backend has said anything.
    fn default() -> Self {
        let least = crate::relay_policy::FEE_RATE_MIN.to_sat_per_kwu();
        Self { next_block: least, six_blocks: least, day: least, floor: least }
    }
}

/// How many addresses of an account are followed with its key, from the first one on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// To be paid at.
    pub receive: u32,
    /// For change.
    pub change: u32,
}

impl Followed {
    /// Those of one keychain.
    ///
    /// ```
    /// use quorate_protocol::{account::Keychain, wire::Followed};
    ///
    /// assert_eq!(Followed { receive: 25, change: 20 }.of(Keychain::Receive), 25);
    /// ```
    pub fn of(self, keychain: Keychain) -> u32 {
        match keychain {
            Keychain::Receive => self.receive,
            Keychain::Change => self.change,
        }
    }
}

/// What became of one key of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyResult {
    /// The key as it was sent.
    pub key: SubscriptionKey,
    /// Its answer.
    #[serde(flatten)]
    pub outcome: KeyOutcome,
}

impl KeyResult {
    /// The outputs that it tells of; nothing if the key was refused.
    ///
    /// ```
    /// use quorate_protocol::wire::{ErrorCode, KeyOutcome, KeyResult, SubscriptionKey, WireError};
    ///
    /// let error = WireError::sender(ErrorCode::InvalidKey, "an address of another network");
    /// let result = KeyResult { key: SubscriptionKey::Tip, outcome: KeyOutcome::Error(error) };
    /// assert_eq!(result.utxos(), None);
    /// ```
    pub fn utxos(&self) -> Option<&[UtxoRecord]> {
        if let KeyOutcome::Snapshot { utxos, .. } = &self.outcome { Some(utxos) } else { None }
    }
}

impl<'de> Deserialize<'de> for KeyResult {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Parts {
            key: SubscriptionKey,
            snapshot: Option<Box<RawValue>>,
            error: Option<Box<RawValue>>,
        }
        let Parts { key, snapshot, error } = Parts::deserialize(deserializer)?;
        let outcome = match (&snapshot, &error) {
            (Some(text), None) => tagged::Reader::of("snapshot", text),
            (None, Some(text)) => tagged::Reader::of("error", text),
            (None, None) | (Some(_), Some(_)) => {
                return Err(D::Error::custom("the answer for a key is either a snapshot or an error"));
            }
        };
        Ok(Self { key, outcome: KeyOutcome::deserialize(outcome).map_err(D::Error::custom)? })
    }
}

/// The answer for one key. "Nothing found" is an accepted key without records; hitting a limit is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOutcome {
    /// The key's state at this moment.
    Snapshot {
        /// Records of outputs, for scripts, outpoints and accounts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        utxos: Vec<UtxoRecord>,
        /// Proofs of the final transactions that created or spent them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        proofs: Vec<FinalityProof>,
        /// Status, for a txid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<TransactionStatus>,
        /// Height from which this script's or account's history in blocks is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        history_from: Option<u32>,
        /// Addresses that are followed, for an account. What it gives out beyond them is to be subscribed to by script.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        followed: Option<Followed>,
    },
    /// The key is refused.
    Error(WireError),
}

impl ClientMessage {
    /// A subscription to keys with all that is known of them, and without records of accounts.
    ///
    /// ```
    /// use quorate_protocol::wire::{ClientMessage, SubscriptionKey};
    ///
    /// let message = ClientMessage::subscribe(vec![SubscriptionKey::Tip]);
    /// assert!(matches!(message, ClientMessage::UTXOSubscribe { since: None, .. }));
    /// ```
    pub fn subscribe(keys: Vec<SubscriptionKey>) -> Self {
        Self::UTXOSubscribe { keys, accounts: BTreeMap::new(), since: None }
    }
}

/// Messages from a wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum ClientMessage {
    /// First message of a session.
    Hello {
        /// [`super::limits::PROTOCOL_VERSION`].
        protocol: u32,
        /// The federation that the wallet pins, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        federation: Option<FederationId>,
        /// Name and version of the client, for the operator's logs.
        #[serde(default)]
        agent: String,
    },
    /// Ask for snapshots of keys and all later changes.
    UTXOSubscribe {
        /// Up to [`super::limits::KEYS_PER_MESSAGE_MAX`].
        keys: Vec<SubscriptionKey>,
        /// Records of accounts among the keys, for nodes that do not know them. Up to
        /// [`super::limits::ACCOUNTS_PER_MESSAGE_MAX`].
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        accounts: BTreeMap<AccountId, AccountRecord>,
        /// What the wallet knows already is left out: coins that blocks below this height spend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<u32>,
    },
    /// End subscriptions.
    UTXOUnsubscribe {
        /// The keys.
        keys: Vec<SubscriptionKey>,
    },
    /// Ask for snapshots only.
    UTXOStateQuery {
        /// Up to [`super::limits::KEYS_PER_MESSAGE_MAX`].
        keys: Vec<SubscriptionKey>,
    },
    /// Have a transaction voted, signed and broadcast. Idempotent by txid.
    TransactionBroadcast {
        /// The proposal.
        proposal: Proposal,
        /// The paying account, for a joint proposal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<AccountCertificate>,
    },
    /// The wallet's part of a signing session.
    SignResponse {
        /// The transaction.
        txid: Txid,
        /// The attempt that was asked for.
        attempt: u32,
        /// Commitments, shares and their signature.
        wallet: WalletSignature,
    },
    /// Stop a payment of a joint account that is not final; its status says what became of it. Unless some node may
    /// have committed to it already, its inputs become free.
    TransactionCancel {
        /// The owner's signed wish.
        cancel: SignedCancel,
        /// The payment, for a node that never heard of it.
        proposal: Proposal,
        /// The paying account.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<AccountCertificate>,
    },
    /// Have an account certified.
    AccountRegister {
        /// The record.
        record: AccountRecord,
    },
    /// Ask for the federation document.
    FederationQuery,
    /// Ask for headers from a height on.
    HeadersQuery {
        /// First height.
        from: u32,
    },
    /// Ask for a transaction's place in the chain, or why it will have none.
    ProofQuery {
        /// The transaction.
        txid: Txid,
    },
    /// Hand in a finished transaction that the nodes may not know, for them to verify, keep and have mined: its payer
    /// may have shown it to its payee alone. The answer is `TransactionStatus` (`broadcasting`), or an error.
    FinalTransaction {
        /// The proof.
        proof: Box<FinalityProof>,
    },
    /// Ask for a fee rate.
    FeeRateQuery,
    /// Ask for a `Pong`.
    Ping,
}
tagged!("type": ClientMessage);

impl Message for ClientMessage {
    const TYPES: &'static [&'static str] = &[
        "Hello",
        "UTXOSubscribe",
        "UTXOUnsubscribe",
        "UTXOStateQuery",
        "TransactionBroadcast",
        "SignResponse",
        "TransactionCancel",
        "AccountRegister",
        "FederationQuery",
        "HeadersQuery",
        "ProofQuery",
        "FinalTransaction",
        "FeeRateQuery",
        "Ping",
    ];
}

/// Messages to a wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum ServerMessage {
    /// Answer to `Hello`.
    Welcome {
        /// [`super::limits::PROTOCOL_VERSION`].
        protocol: u32,
        /// The federation served here.
        federation: FederationId,
        /// Name and version of the server.
        agent: String,
        /// Tip of the chain.
        tip: ChainTip,
    },
    /// Answer to `UTXOSubscribe`, per key in the order asked. News of the keys can come before it.
    UTXOSubscribed {
        /// One per key, or more of a key that comes in several pages.
        results: Vec<KeyResult>,
        /// Tip of the chain that the snapshots are of.
        tip: ChainTip,
        /// Whether another page of this answer follows, under the same id. A key whose records do not fit comes in
        /// several.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        /// What was asked for: coins that blocks below this height spend are left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<u32>,
    },
    /// Answer to `UTXOUnsubscribe`.
    UTXOUnsubscribed {
        /// How many subscriptions ended.
        count: usize,
    },
    /// Answer to `UTXOStateQuery`, per key in the order asked.
    UTXOStateResponse {
        /// One per key, or more of a key that comes in several pages.
        results: Vec<KeyResult>,
        /// Tip of the chain that the snapshots are of.
        tip: ChainTip,
        /// Whether another page of this answer follows, under the same id. A key whose records do not fit comes in
        /// several.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// An outpoint of a subscribed key changed.
    #[serde(deserialize_with = "read_notification")]
    UTXOStateNotification {
        /// The key, as subscribed.
        key: SubscriptionKey,
        /// The facts.
        utxo: UtxoRecord,
        /// What they amount to.
        #[serde(flatten)]
        state: UtxoState,
        /// Proof of the final transaction that created or spent it, if that is the news.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Box<FinalityProof>>,
        /// Addresses that are followed, if the key is an account.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        followed: Option<Followed>,
    },
    /// A transaction moved on; answers `TransactionBroadcast` and follows subscriptions by txid.
    #[serde(deserialize_with = "read_status")]
    TransactionStatus {
        /// The transaction.
        txid: Txid,
        /// Where it stands.
        #[serde(flatten)]
        status: TransactionStatus,
    },
    /// The coordinator asks the wallet for its part of a signing session.
    SignRequest {
        /// The transaction.
        txid: Txid,
        /// Attempt, from 1.
        attempt: u32,
        /// The approval certificate; the wallet checks it.
        certificate: ApprovalCertificate,
        /// Signed nonce commitments of exactly q nodes.
        nodes: BTreeMap<NodeId, NodeCommitments>,
        /// Why its inputs are in these rounds; a wallet that cancelled the payment signs only if one of them forces it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
    },
    /// Answer to `AccountRegister`.
    AccountCertified {
        /// The certificate.
        certificate: AccountCertificate,
    },
    /// Answer to `FederationQuery`.
    Federation {
        /// The document; the wallet checks it against the id that it pins.
        document: Box<FederationDocument>,
    },
    /// Answer to `HeadersQuery`: consecutive headers, up to [`super::limits::HEADERS_MAX`].
    Headers {
        /// Height of the first.
        from: u32,
        /// The headers.
        headers: Vec<Header>,
    },
    /// Answer to `ProofQuery`.
    Proof {
        /// The transaction.
        txid: Txid,
        /// Its place, if it is in a block.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<RawTransactionProof>,
        /// Why it can be in none, if a block contradicts it or an ancestor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        conflict: Option<Box<ConflictProof>>,
    },
    /// Answer to `FeeRateQuery`.
    FeeRate {
        /// The node's estimates.
        estimates: FeeEstimates,
    },
    /// The tip changed; for subscribers of `tip`.
    Tip {
        /// The new tip.
        tip: ChainTip,
    },
    /// The session was too slow and notifications were lost for these keys: subscribe to them again.
    Gap {
        /// The keys.
        keys: Vec<SubscriptionKey>,
    },
    /// The server is going away; connect again after the delay.
    GoingAway {
        /// In milliseconds.
        retry_after: u64,
    },
    /// Answer to `Ping`.
    Pong,
    /// A refusal.
    #[serde(deserialize_with = "Deserialize::deserialize")]
    Error {
        /// Why.
        #[serde(flatten)]
        error: WireError,
    },
}
tagged!("type": ServerMessage);

type Notification = (SubscriptionKey, UtxoRecord, UtxoState, Option<Box<FinalityProof>>, Option<Followed>);

fn read_notification<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Notification, D::Error> {
    #[derive(Deserialize)]
    struct News {
        key: SubscriptionKey,
        utxo: UtxoRecord,
        proof: Option<Box<FinalityProof>>,
        followed: Option<Followed>,
    }
    let news = tagged::both(deserializer);
    news.map(|(News { key, utxo, proof, followed }, state)| (key, utxo, state, proof, followed))
}

fn read_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(Txid, TransactionStatus), D::Error> {
    #[derive(Deserialize)]
    struct Of {
        txid: Txid,
    }
    tagged::both(deserializer).map(|(Of { txid }, status)| (txid, status))
}

impl Message for ServerMessage {
    const TYPES: &'static [&'static str] = &[
        "Welcome",
        "UTXOSubscribed",
        "UTXOUnsubscribed",
        "UTXOStateResponse",
        "UTXOStateNotification",
        "TransactionStatus",
        "SignRequest",
        "AccountCertified",
        "Federation",
        "Headers",
        "Proof",
        "FeeRate",
        "Tip",
        "Gap",
        "GoingAway",
        "Pong",
        "Error",
    ];
}
