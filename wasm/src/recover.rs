//! Leaving without the federation: words and descriptor alone. Who answers questions about the chain is JavaScript's
//! business.

use crate::{
    error::Failure,
    js::{from_js, promise},
    plain::to_js,
};
use bitcoin::{Amount, Network, OutPoint, Psbt, hex::DisplayHex as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use js_sys::Function;
use quorate::{
    account::{Keychain, KeychainIndex},
    recovery::{BackupKit, Query, RecoverableCoin, RecoveryError, Scan, SweepRequest},
    wallet::{Destination, SecretWords},
};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};
use wasm_bindgen_futures::JsFuture;
use zeroize::Zeroizing;

/// Questions to the source that are under way at a time.
const QUESTIONS_MAX: usize = 6;

impl From<RecoveryError> for Failure {
    fn from(error: RecoveryError) -> Self {
        Self::new(error.code(), &error).retryable(error.is_retryable())
    }
}

/// What a source knows of an address.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    used: bool,
    coins: Vec<KnownCoin>,
}

#[derive(Deserialize)]
struct KnownCoin {
    outpoint: OutPoint,
    value: u64,
    height: Option<u32>,
}

/// A coin, on its way to JavaScript and back.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CoinView {
    outpoint: OutPoint,
    value: u64,
    change: bool,
    index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opens_at: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoView<'a> {
    network: Network,
    descriptor: String,
    recovery_delay: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    federation: Option<String>,
    birthday: u32,
    has_words: bool,
    /// Whether a passphrase is needed beside the words.
    needs_passphrase: bool,
    genesis: &'a str,
}

#[derive(Serialize)]
struct SweepView {
    psbt: String,
    amount: u64,
    fee: u64,
    left: Vec<CoinView>,
}

#[derive(Serialize)]
struct SignedView {
    transaction: String,
    txid: String,
    fee: u64,
}

#[derive(Serialize)]
struct OutputView {
    address: String,
    value: u64,
}

#[derive(Serialize)]
struct InspectedView {
    outputs: Vec<OutputView>,
    fee: u64,
}

/// An account that is to be left.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Recovery {
    inner: Rc<quorate::recovery::Recovery>,
    kit: Option<BackupKit>,
}

#[wasm_bindgen]
impl Recovery {
    /// Reads a backup sheet, or a descriptor alone.
    #[wasm_bindgen(constructor)]
    pub fn new(backup: String, network: Option<String>) -> Result<Recovery, JsValue> {
        let backup = Zeroizing::new(backup);
        let named = network.map(|name| name.parse::<Network>()).transpose();
        let named = named.map_err(|error| Failure::argument("network", error))?;
        let bare = backup.trim().starts_with("tr(");
        let kit = if bare { None } else { Some(BackupKit::parse(&backup).map_err(Failure::from)?) };
        let network = named.or(kit.as_ref().map(|kit| kit.network));
        let network = network.ok_or_else(|| Failure::argument("network", "a descriptor does not name it"))?;
        let descriptor = kit.as_ref().map(|kit| kit.descriptor.to_string());
        let descriptor = descriptor.unwrap_or_else(|| backup.trim().to_owned());
        let inner = quorate::recovery::Recovery::new(&descriptor, network).map_err(Failure::from)?;
        Ok(Self { inner: Rc::new(inner), kit })
    }

    /// What the backup says.
    pub fn info(&self) -> JsValue {
        let kit = self.kit.as_ref();
        let network = self.inner.network();
        let genesis = bitcoin::constants::genesis_block(network).block_hash().to_string();
        to_js(&InfoView {
            network,
            descriptor: self.inner.descriptor().to_string(),
            recovery_delay: self.inner.descriptor().recovery_delay(),
            federation: kit.and_then(|kit| kit.federation).map(|id| id.to_string()),
            birthday: kit.map_or(0, |kit| kit.birthday),
            has_words: kit.is_some_and(|kit| kit.words.is_some()),
            needs_passphrase: kit.is_some_and(|kit| kit.passphrase),
            genesis: &genesis,
        })
    }

    /// Reads coins that were written down.
    #[wasm_bindgen(js_name = readList)]
    pub fn read_list(&self, text: &str) -> Result<JsValue, JsValue> {
        let coins = self.inner.read_list(text).map_err(Failure::from)?;
        Ok(to_js(&self.show(&coins)))
    }

    /// Finds the coins by a function that is asked for each address and answers with a promise of
    /// `{ used, coins: { outpoint, value, height }[] }`.
    pub fn find(&self, ask: Function) -> js_sys::Promise {
        let recovery = self.inner.clone();
        promise(async move {
            let coins = search(&recovery, &ask).await?;
            Ok(to_js(&show(&recovery, &coins)))
        })
    }

    /// Builds the transaction that moves what is open to one address.
    pub fn sweep(&self, coins: JsValue, tip: u32, to: &str, sat_per_vb: f64) -> Result<JsValue, JsValue> {
        let coins: Vec<CoinView> = from_js("coins", coins)?;
        let coins = coins.into_iter().map(|coin| {
            let keychain = if coin.change { Keychain::Change } else { Keychain::Receive };
            let position = KeychainIndex { keychain, index: coin.index };
            let value = Amount::from_sat(coin.value);
            RecoverableCoin { outpoint: coin.outpoint, value, position, height: coin.height }
        });
        let destination = Destination::parse(to, self.inner.network()).map_err(Failure::from)?;
        let fee_rate = crate::options::fee_rate(sat_per_vb)?;
        let request = SweepRequest { destination: destination.script_pubkey(), fee_rate, tip };
        let sweep = self.inner.sweep(&coins.collect::<Vec<_>>(), &request).map_err(Failure::from)?;
        Ok(to_js(&SweepView {
            psbt: sweep.psbt.to_string(),
            amount: sweep.amount.to_sat(),
            fee: sweep.fee.to_sat(),
            left: self.show(&sweep.left),
        }))
    }

    /// What a PSBT would do.
    pub fn inspect(&self, psbt: &str) -> Result<JsValue, JsValue> {
        let psbt = parse_psbt(psbt)?;
        let fee = psbt.fee().map_err(|error| Failure::new(INVALID_PSBT, error))?.to_sat();
        let network = self.inner.network();
        let outputs = psbt.unsigned_tx.output.iter().map(|output| OutputView {
            address: match bitcoin::Address::from_script(&output.script_pubkey, network) {
                Ok(address) => address.to_string(),
                Err(_) => output.script_pubkey.to_string(),
            },
            value: output.value.to_sat(),
        });
        Ok(to_js(&InspectedView { outputs: outputs.collect(), fee }))
    }

    /// Signs a sweep, with the words of the sheet unless others are given, and a passphrase that is normalised.
    pub fn sign(
        &self,
        psbt: &str,
        words: Option<String>,
        passphrase: Option<String>,
    ) -> Result<JsValue, JsValue> {
        let (words, passphrase) = (words.map(Zeroizing::new), Zeroizing::new(passphrase.unwrap_or_default()));
        let given = words.map(|words| SecretWords::parse(&words)).transpose().map_err(Failure::from)?;
        let words = given.or_else(|| self.kit.as_ref().and_then(|kit| kit.words.clone()));
        let words = words.ok_or_else(|| Failure::argument("words", "the backup does not have them"))?;
        let words = words.with_passphrase(&passphrase);
        let psbt = parse_psbt(psbt)?;
        let signed = self.inner.sign(&words, &psbt).map_err(Failure::from)?;
        let transaction = bitcoin::consensus::serialize(&signed.transaction).to_lower_hex_string();
        let txid = signed.transaction.compute_txid().to_string();
        Ok(to_js(&SignedView { transaction, txid, fee: signed.fee.to_sat() }))
    }
}

const INVALID_PSBT: &str = "invalid_psbt";

fn parse_psbt(text: &str) -> Result<Psbt, Failure> {
    quorate::psbt::parse(text).map_err(|error| Failure::new(INVALID_PSBT, error))
}

impl Recovery {
    fn show(&self, coins: &[RecoverableCoin]) -> Vec<CoinView> {
        show(&self.inner, coins)
    }
}

fn show(recovery: &quorate::recovery::Recovery, coins: &[RecoverableCoin]) -> Vec<CoinView> {
    let view = |coin: &RecoverableCoin| CoinView {
        outpoint: coin.outpoint,
        value: coin.value.to_sat(),
        change: coin.position.keychain == Keychain::Change,
        index: coin.position.index,
        height: coin.height,
        opens_at: recovery.opens_at(coin),
    };
    coins.iter().map(view).collect()
}

async fn search(
    recovery: &quorate::recovery::Recovery,
    ask: &Function,
) -> Result<Vec<RecoverableCoin>, Failure> {
    let mut scan = Scan::new(recovery);
    let mut open = FuturesUnordered::new();
    loop {
        while open.len() < QUESTIONS_MAX
            && let Some(query) = scan.next_query()?
        {
            open.push(answer(recovery.network(), ask, query));
        }
        let Some(answered) = open.next().await else { break };
        let (position, known) = answered?;
        let coins = known.coins.into_iter();
        let coins = coins.map(|coin| (coin.outpoint, Amount::from_sat(coin.value), coin.height));
        scan.answer(position, known.used, coins);
    }
    Ok(scan.finish(0).coins)
}

async fn answer(network: Network, ask: &Function, query: Query) -> Result<(KeychainIndex, Known), Failure> {
    let script = &query.script_pubkey;
    let address =
        bitcoin::Address::from_script(script, network).map_err(|error| Failure::new("internal", error))?;
    let asked = ask.call1(&JsValue::NULL, &address.to_string().into());
    let promised = js_sys::Promise::resolve(&asked.map_err(unavailable)?);
    let known = JsFuture::from(promised).await.map_err(unavailable)?;
    let known = from_js("source", known).map_err(|failure| Failure { code: UNAVAILABLE, ..failure })?;
    Ok((query.position, known))
}

const UNAVAILABLE: &str = "source_unavailable";

/// The face knows what the source threw.
fn unavailable(_thrown: JsValue) -> Failure {
    Failure::new(UNAVAILABLE, "the source does not answer").retryable(true)
}
