//! A running wallet.

use crate::{
    client_view::{BalanceView, CoinView, EventView, HistoryView, QuoteView, RefreshView},
    error::Failure,
    js::{from_js, promise},
    options::{Payment, PaymentOptions, WalletOptions, fee_rate, fee_rate_or_none},
    plain::to_js,
    store::{JsStore, read_state},
    verify::Federation,
};
use bitcoin::{Network, OutPoint, Transaction, Txid};
use futures_util::StreamExt as _;
use js_sys::{Function, Map, Promise};
use quorate::{
    client::{Client, Receipt, WebSocket},
    recovery::BackupKit,
    session::{Reach, Session},
    wallet::{Destination, SecretWords},
};
use serde::Serialize;
use std::cell::RefCell;
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};
use zeroize::Zeroizing;

/// A running wallet; ends when [`Engine::close`] is called.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Engine {
    client: RefCell<Option<Client>>,
    network: Network,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReceiptView {
    txid: String,
    finality: quorate::finality::FinalityKind,
    proof: String,
}

impl From<Receipt> for ReceiptView {
    fn from(receipt: Receipt) -> Self {
        let proof = serde_json::to_string(&receipt.proof).expect("own types are written without fail");
        Self { txid: receipt.txid.to_string(), finality: receipt.kind, proof }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountView {
    id: String,
    descriptor: String,
    record: String,
    network: String,
    federation: String,
    watch_only: bool,
}

/// Asks a bridge for its federation document, as JSON. Verify it against the id that is pinned.
#[wasm_bindgen(js_name = fetchFederation)]
pub fn fetch_federation(urls: Vec<String>, socket: Option<Function>) -> Promise {
    promise(async move {
        let bridges = urls.len();
        let mut transport = transport(urls, socket)?;
        let mut failure = String::new();
        // Each attempt is at the next one.
        for _ in 0..bridges {
            match quorate::client::fetch_federation(&mut transport).await {
                Ok(document) => {
                    return Ok(serde_json::to_string(&document).expect("own types are written without fail"));
                }
                Err(error) => failure = error.to_string(),
            }
        }
        Err(Failure::new("bridge_unreachable", failure).retryable(true))
    })
}

fn transport(urls: Vec<String>, socket: Option<Function>) -> Result<WebSocket, Failure> {
    let mut urls = urls.into_iter();
    let first = urls.next().ok_or_else(|| Failure::argument("bridge", "at least one address is needed"))?;
    Ok(urls.fold(WebSocket::new(first), WebSocket::or).with_factory(socket))
}

#[wasm_bindgen]
impl Engine {
    /// Opens a wallet: from a saved state (a `Map`, which may be empty), saving through `save(change)` if it is given.
    pub fn open(
        federation: &Federation,
        options: JsValue,
        state: &Map,
        save: Option<Function>,
        socket: Option<Function>,
    ) -> Result<Engine, JsValue> {
        let mut options: WalletOptions = from_js("options", options)?;
        let wallet = options.wallet(federation.inner.clone())?;
        let network = wallet.federation().network();
        let transport = transport(options.urls, socket)?;
        let client = match save {
            Some(save) => Client::open(wallet, transport, &read_state(state), JsStore(save))
                .map_err(|error| Failure::from(quorate::wallet::WalletError::from(error)))?,
            None => Client::start(wallet, transport),
        };
        Ok(Self { client: RefCell::new(Some(client)), network })
    }

    fn client(&self) -> Result<Client, Failure> {
        let client = self.client.try_borrow().ok().and_then(|client| client.clone());
        client.ok_or_else(|| Failure::from(quorate::client::ClientError::Ended))
    }

    fn ask<T: Serialize + Send + 'static>(
        &self,
        look: impl FnOnce(&Session) -> T + Send + 'static,
    ) -> Promise {
        let client = self.client();
        promise(async move { Ok(to_js(&client?.inspect(look).await?)) })
    }

    /// Ends the wallet and waits until nothing of it runs. Calls that wait end with the code `closed`.
    pub fn close(&self) -> Promise {
        let client = self.client.try_borrow_mut().ok().and_then(|mut client| client.take());
        promise(async move {
            if let Some(client) = client {
                client.close().await;
            }
            Ok(JsValue::UNDEFINED)
        })
    }

    /// The federation's document as JSON, of the latest epoch that the wallet knows.
    pub fn federation(&self) -> Promise {
        self.ask(|session| {
            let document = session.wallet().federation().document();
            serde_json::to_string(document).expect("own types are written without fail")
        })
    }

    /// Calls `listener(event)` for everything that happens from now on, and `listener()` at the end.
    pub fn listen(&self, listener: Function) -> Result<(), JsValue> {
        let mut events = self.client()?.events();
        wasm_bindgen_futures::spawn_local(async move {
            while let Some(event) = events.next().await {
                let Some(event) = EventView::new(event) else { continue };
                // What a listener throws is its own affair; the TypeScript face never throws here.
                let _thrown = listener.call1(&JsValue::NULL, &to_js(&event));
            }
            let _thrown = listener.call0(&JsValue::NULL);
        });
        Ok(())
    }

    /// Resolves when payments can be made.
    pub fn ready(&self) -> Promise {
        let client = self.client();
        promise(async move { Ok(client?.ready().await.map(|()| JsValue::UNDEFINED)?) })
    }

    /// Resolves when what the wallet shows is as of now.
    pub fn synced(&self) -> Promise {
        let client = self.client();
        promise(async move {
            client?.wait(|session| session.is_synced().then_some(())).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// What never changes.
    pub fn account(&self) -> Promise {
        self.ask(|session| {
            let wallet = session.wallet();
            AccountView {
                id: wallet.account().id().to_string(),
                descriptor: wallet.descriptor().to_string(),
                record: serde_json::to_string(wallet.account().record())
                    .expect("own types are written without fail"),
                network: wallet.federation().network().to_string(),
                federation: wallet.federation().id().to_string(),
                watch_only: wallet.is_watch_only(),
            }
        })
    }

    /// What the wallet has.
    pub fn balance(&self) -> Promise {
        self.ask(|session| BalanceView::from(session.wallet().balance()))
    }

    /// Coins that are not spent.
    pub fn coins(&self) -> Promise {
        let network = self.network;
        self.ask(move |session| {
            let wallet = session.wallet();
            wallet.coins().map(|coin| CoinView::new(coin, wallet, network)).collect::<Vec<_>>()
        })
    }

    /// Payments in and out, in the order of their blocks.
    pub fn history(&self) -> Promise {
        self.ask(|session| {
            session
                .wallet()
                .history_by_block()
                .into_iter()
                .map(|entry| HistoryView::new(entry, session))
                .collect::<Vec<_>>()
        })
    }

    /// The verified proof that a transaction is final, as JSON.
    pub fn proof(&self, txid: &str) -> Result<Promise, JsValue> {
        let txid = parse_txid(txid)?;
        Ok(self.ask(move |session| {
            let proof = session.wallet().proof(txid);
            proof.map(|proof| serde_json::to_string(proof).expect("own types are written without fail"))
        }))
    }

    /// The tip of the wallet's own chain.
    pub fn tip(&self) -> Promise {
        self.ask(|session| crate::client_view::BlockView::from(session.wallet().chain().tip()))
    }

    /// The fee rate in use, in sat/vB.
    #[wasm_bindgen(js_name = feeRate)]
    pub fn fee_rate(&self) -> Promise {
        // A rate is far below 2^32.
        self.ask(|session| {
            u32::try_from(session.fee_rate().to_sat_per_kwu()).map_or(f64::MAX, f64::from) / 250.0
        })
    }

    /// Gives out the next receive address.
    #[wasm_bindgen(js_name = nextAddress)]
    pub fn next_address(&self) -> Promise {
        let client = self.client();
        promise(async move { Ok(client?.next_address().await?.to_string()) })
    }

    /// The receive address of an index.
    #[wasm_bindgen(js_name = addressAt)]
    pub fn address_at(&self, index: u32) -> Promise {
        let (client, network) = (self.client(), self.network);
        promise(async move {
            let address = client?.inspect(move |session| session.wallet().address_at(index)).await??;
            Ok(address.to_address(network).to_string())
        })
    }

    /// Gives the receive address that was given out last, until somebody pays to it.
    #[wasm_bindgen(js_name = unusedAddress)]
    pub fn unused_address(&self) -> Promise {
        let client = self.client();
        promise(async move { Ok(client?.unused_address().await?.to_string()) })
    }

    /// Everything that ever arrived at an address of this wallet, spent or not.
    #[wasm_bindgen(js_name = coinsAt)]
    pub fn coins_at(&self, address: &str) -> Result<Promise, JsValue> {
        let network = self.network;
        let address = Destination::parse(address, network).map_err(Failure::from)?.script_pubkey();
        Ok(self.ask(move |session| {
            let wallet = session.wallet();
            wallet.coins_at(&address).map(|coin| CoinView::new(coin, wallet, network)).collect::<Vec<_>>()
        }))
    }

    /// The network may be back: connects now.
    pub fn wake(&self) -> Promise {
        let client = self.client();
        promise(async move { Ok(client?.wake().await.map(|()| JsValue::UNDEFINED)?) })
    }

    /// How far the wallet has come with its bridge.
    pub fn connection(&self) -> Promise {
        self.ask(|session| match session.reach() {
            Reach::Offline => "offline",
            Reach::Connected => "connected",
            Reach::Ready => "ready",
        })
    }

    /// Waits until a payment that was submitted is final.
    pub fn outcome(&self, txid: &str) -> Result<Promise, JsValue> {
        let txid = parse_txid(txid)?;
        let client = self.client();
        Ok(promise(async move { Ok(to_js(&ReceiptView::from(client?.outcome(txid).await?))) }))
    }

    /// Builds a payment as a PSBT in base64.
    #[wasm_bindgen(js_name = createPsbt)]
    pub fn create_psbt(&self, payment: JsValue) -> Promise {
        let (client, network) = (self.client(), self.network);
        promise(async move {
            let request = from_js::<PaymentOptions>("payment", payment)?.request(network)?;
            Ok(client?.create_psbt(request).await?.to_string())
        })
    }

    /// Says what a payment would be.
    pub fn quote(&self, payment: JsValue) -> Promise {
        let (client, network) = (self.client(), self.network);
        promise(async move {
            let request = from_js::<PaymentOptions>("payment", payment)?.request(network)?;
            Ok(to_js(&QuoteView::from(client?.quote(request).await?)))
        })
    }

    /// Leaves a coin (`txid:vout`) out of payments, or lets them spend it again.
    #[wasm_bindgen(js_name = setFrozen)]
    pub fn set_frozen(&self, outpoint: &str, frozen: bool) -> Result<Promise, JsValue> {
        let outpoint: OutPoint = outpoint.parse().map_err(|error| Failure::argument("outpoint", error))?;
        let client = self.client();
        Ok(promise(async move {
            let client = client?;
            if frozen {
                client.freeze(outpoint).await?
            } else {
                client.unfreeze(outpoint).await?
            }
            Ok(JsValue::UNDEFINED)
        }))
    }

    /// Submits a payment; gives its txid.
    pub fn send(&self, payment: JsValue) -> Promise {
        self.submit(payment, false)
    }

    /// Pays and waits until it is final.
    pub fn pay(&self, payment: JsValue) -> Promise {
        self.submit(payment, true)
    }

    fn submit(&self, payment: JsValue, wait: bool) -> Promise {
        let (client, network) = (self.client(), self.network);
        promise(async move {
            let options = from_js::<PaymentOptions>("payment", payment)?;
            let (client, payment) = (client?, options.payment(network)?);
            let key = options.idempotency_key;
            let keyed = key.is_some();
            let txid = match (payment, key) {
                (Payment::Request(request), None) => client.send(request).await?,
                (Payment::Request(request), Some(key)) => client.send_once(&key, request).await?,
                (Payment::Psbt(psbt), None) => client.send_psbt(psbt).await?,
                (Payment::Psbt(psbt), Some(key)) => client.send_psbt_once(&key, psbt).await?,
            };
            if !wait {
                return Ok(txid.to_string().into());
            }
            let receipt = client.outcome(txid).await;
            let receipt = receipt.map_err(|error| if keyed { error.for_good() } else { error })?;
            Ok(to_js(&ReceiptView::from(receipt)))
        })
    }

    /// Submits a signed transaction (hex) of coins in sole custody, and waits until it is attested.
    pub fn attest(&self, transaction: &str) -> Result<Promise, JsValue> {
        let transaction: Transaction = bitcoin::consensus::encode::deserialize_hex(transaction)
            .map_err(|error| Failure::argument("transaction", error))?;
        let client = self.client();
        Ok(promise(async move { Ok(to_js(&ReceiptView::from(client?.attest(transaction).await?))) }))
    }

    /// What moving old coins home would cost, at this fee rate (sat/vB) or the server's; `undefined` if none is old.
    #[wasm_bindgen(js_name = refreshQuote)]
    pub fn refresh_quote(&self, fee_rate: Option<f64>) -> Promise {
        let client = self.client();
        promise(async move {
            let quote = client?.refresh_quote(fee_rate_or_none(fee_rate)?).await?;
            Ok(quote.map_or(JsValue::UNDEFINED, |quote| to_js(&RefreshView::from(quote))))
        })
    }

    /// What making one coin of many small ones would be, at this fee rate (sat/vB) or the server's; `undefined` if
    /// there are not two.
    #[wasm_bindgen(js_name = consolidateQuote)]
    pub fn consolidate_quote(&self, fee_rate: Option<f64>) -> Promise {
        let client = self.client();
        promise(async move {
            let quote = client?.consolidation_quote(fee_rate_or_none(fee_rate)?).await?;
            Ok(quote.map_or(JsValue::UNDEFINED, |quote| to_js(&QuoteView::from(quote))))
        })
    }

    /// Moves old coins home and waits until that is final; `undefined` if none is old.
    pub fn refresh(&self, fee_rate: Option<f64>) -> Promise {
        let client = self.client();
        promise(async move {
            let receipt = client?.refresh(fee_rate_or_none(fee_rate)?).await?;
            Ok(receipt.map_or(JsValue::UNDEFINED, |receipt| to_js(&ReceiptView::from(receipt))))
        })
    }

    /// What lifting a transaction to a fee rate (sat/vB) would cost, in satoshis.
    #[wasm_bindgen(js_name = bumpQuote)]
    pub fn bump_quote(&self, txid: &str, rate: f64) -> Result<Promise, JsValue> {
        let (txid, rate) = (parse_txid(txid)?, fee_rate(rate)?);
        let client = self.client();
        Ok(promise(async move { Ok(to_js(&client?.bump_quote(txid, rate).await?.to_sat())) }))
    }

    /// Lifts a transaction that waits for its block, and waits until what pays for it is final.
    pub fn bump(&self, txid: &str, rate: f64) -> Result<Promise, JsValue> {
        let (txid, rate) = (parse_txid(txid)?, fee_rate(rate)?);
        let client = self.client();
        Ok(promise(async move { Ok(to_js(&ReceiptView::from(client?.bump(txid, rate).await?))) }))
    }

    /// Lets the wallet move old coins home by itself, at most at this fee rate in sat/vB; `undefined` lets it not.
    #[wasm_bindgen(js_name = setAutoRefresh)]
    pub fn set_auto_refresh(&self, fee_rate_max: Option<f64>) -> Promise {
        let client = self.client();
        promise(async move {
            client?.set_auto_refresh(fee_rate_or_none(fee_rate_max)?).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// The backup as text: words if they are given, whether there is a passphrase, descriptor, network, birthday.
    pub fn backup(&self, words: Option<String>, passphrase: bool) -> Result<Promise, JsValue> {
        let words = words.map(Zeroizing::new);
        let words = words.map(|words| SecretWords::parse(&words)).transpose().map_err(Failure::from)?;
        Ok(self.ask(move |session| {
            let kit = BackupKit { passphrase, ..BackupKit::new(session.wallet(), words) };
            kit.to_text().as_str().to_owned()
        }))
    }

    /// Asks the federation to stop a payment that is not final.
    pub fn cancel(&self, txid: &str) -> Result<Promise, JsValue> {
        let txid = parse_txid(txid)?;
        let client = self.client();
        Ok(promise(async move { Ok(client?.cancel(txid).await.map(|()| JsValue::UNDEFINED)?) }))
    }
}

fn parse_txid(text: &str) -> Result<Txid, Failure> {
    text.parse().map_err(|error| Failure::argument("txid", error))
}
