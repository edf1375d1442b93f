//! An Esplora in front of a daemon, as far as a node asks it, and one that can be told to lie.

use crate::daemon::Daemon;
use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bitcoin::{
    Block,
    consensus::encode::deserialize_hex,
    hashes::{Hash as _, sha256},
};
use quorate_node::chain::{Bitcoind, ChainError};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpListener;

/// Arguments of a daemon that can serve one.
pub const TXINDEX: [&str; 1] = ["-txindex=1"];

/// What the server does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It answers nothing but that it is busy.
    Busy,
    /// It knows no block above a height.
    Stuck(u32),
    /// It says that there are so many blocks more than there are.
    Ahead(u32),
    /// It gives the Merkle proof of another transaction.
    WrongProof,
}

/// A running server.
#[derive(Clone, Debug)]
pub struct EsploraServer {
    url: String,
    state: Served,
}

#[derive(Clone, Debug)]
struct Served {
    rpc: Bitcoind,
    fault: Arc<Mutex<Fault>>,
}

type Answered = Result<Response, Response>;

fn no(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

impl Served {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, method: &str, parameters: Value) -> Result<Value, Response> {
        if self.fault() == Fault::Busy {
            return Err(no(StatusCode::SERVICE_UNAVAILABLE, "busy"));
        }
        self.rpc.call_raw(method, parameters).await.map_err(|error| {
            let ChainError::Daemon(error) = error else {
                return no(StatusCode::BAD_GATEWAY, error.to_string());
            };
            if matches!(error.code, -5 | -8) {
                return no(StatusCode::NOT_FOUND, error.message);
            }
            let reason = json!({"code": error.code, "message": error.message});
            no(StatusCode::BAD_REQUEST, format!("{method} RPC error: {reason}"))
        })
    }

    async fn text(&self, method: &str, parameters: Value) -> Answered {
        let value = self.call(method, parameters).await?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned).into_response())
    }

    async fn bytes(&self, method: &str, parameters: Value) -> Answered {
        let value = self.call(method, parameters).await?;
        let bytes = hex::decode(value.as_str().unwrap_or_default());
        bytes.map(IntoResponse::into_response).map_err(|error| no(StatusCode::BAD_GATEWAY, error.to_string()))
    }

    async fn height(&self) -> Result<u64, Response> {
        let real = self.call("getblockcount", json!([])).await?.as_u64().unwrap_or_default();
        Ok(match self.fault() {
            Fault::Stuck(height) => real.min(u64::from(height)),
            Fault::Ahead(blocks) => real + u64::from(blocks),
            Fault::None | Fault::Busy | Fault::WrongProof => real,
        })
    }
}

async fn tip(State(served): State<Served>) -> Answered {
    let height = served.height().await?;
    let real = served.call("getblockcount", json!([])).await?.as_u64().unwrap_or_default();
    served.text("getblockhash", json!([height.min(real)])).await
}

async fn hash_at(State(served): State<Served>, Path(height): Path<u64>) -> Answered {
    if height > served.height().await? {
        return Err(no(StatusCode::NOT_FOUND, "Block not found"));
    }
    served.text("getblockhash", json!([height])).await
}

async fn header(State(served): State<Served>, Path(hash): Path<String>) -> Answered {
    served.text("getblockheader", json!([hash, false])).await
}

async fn block_status(State(served): State<Served>, Path(hash): Path<String>) -> Answered {
    let found = served.call("getblockheader", json!([hash, true])).await?;
    let in_best_chain = found.get("confirmations").and_then(Value::as_i64).is_some_and(|depth| depth > 0);
    let ahead = match served.fault() {
        Fault::Ahead(blocks) => u64::from(blocks),
        Fault::None | Fault::Busy | Fault::Stuck(_) | Fault::WrongProof => 0,
    };
    let height = found.get("height").and_then(Value::as_u64).map(|height| height + ahead);
    let next_best = found.get("nextblockhash");
    Ok(Json(json!({"in_best_chain": in_best_chain, "height": height, "next_best": next_best}))
        .into_response())
}

async fn block(State(served): State<Served>, Path(hash): Path<String>) -> Answered {
    served.bytes("getblock", json!([hash, 0])).await
}

async fn transaction(State(served): State<Served>, Path(txid): Path<String>) -> Answered {
    served.bytes("getrawtransaction", json!([txid, false])).await
}

/// The block that has a transaction.
async fn place(served: &Served, txid: &str) -> Result<Value, Response> {
    let found = served.call("getrawtransaction", json!([txid, true])).await;
    let hash = found.ok().and_then(|found| found.get("blockhash").cloned());
    let Some(hash) = hash else { return Ok(json!({"confirmed": false})) };
    let header = served.call("getblockheader", json!([hash, true])).await?;
    Ok(json!({
        "confirmed": true,
        "block_hash": hash,
        "block_height": header.get("height"),
        "block_time": header.get("time"),
    }))
}

async fn transaction_status(State(served): State<Served>, Path(txid): Path<String>) -> Answered {
    served.height().await?;
    Ok(Json(place(&served, &txid).await?).into_response())
}

async fn proof(State(served): State<Served>, Path(txid): Path<String>) -> Answered {
    let mut asked = json!(txid);
    if served.fault() == Fault::WrongProof {
        let first = served.call("getblockhash", json!([1])).await?;
        let block = served.call("getblock", json!([first, 1])).await?;
        asked = block.pointer("/tx/0").cloned().unwrap_or_default();
    }
    served.text("gettxoutproof", json!([[asked]])).await
}

async fn outspend(State(served): State<Served>, Path((txid, vout)): Path<(String, u32)>) -> Answered {
    let unspent = |mempool: bool| served.call("gettxout", json!([txid, vout, mempool]));
    let (with_mempool, in_chain) = (unspent(true).await?, unspent(false).await?);
    let confirmed = in_chain.is_null();
    let status = with_mempool.is_null().then(|| json!({"confirmed": confirmed}));
    Ok(Json(json!({"spent": with_mempool.is_null(), "status": status})).into_response())
}

/// Looks through all blocks for what a script with this hash has.
async fn utxos(State(served): State<Served>, Path(hash): Path<String>) -> Answered {
    let mut found = Vec::new();
    for height in 0..=served.height().await? {
        let block_hash = served.call("getblockhash", json!([height])).await?;
        let raw = served.call("getblock", json!([block_hash, 0])).await?;
        let block: Result<Block, _> = deserialize_hex(raw.as_str().unwrap_or_default());
        let block = block.map_err(|error| no(StatusCode::BAD_GATEWAY, error.to_string()))?;
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            for (output, vout) in transaction.output.iter().zip(0..) {
                if sha256::Hash::hash(output.script_pubkey.as_bytes()).to_string() != hash {
                    continue;
                }
                let coin: Value = served.call("gettxout", json!([txid, vout, false])).await?;
                if !coin.is_null() {
                    let status = json!({"confirmed": true, "block_height": height, "block_hash": block_hash});
                    let value = output.value.to_sat();
                    found.push(json!({"txid": txid, "vout": vout, "value": value, "status": status}));
                }
            }
        }
    }
    Ok(Json(found).into_response())
}

async fn fee_estimates(State(served): State<Served>) -> Answered {
    served.height().await?;
    Ok(Json(BTreeMap::from([("1", 3.0), ("6", 2.0), ("144", 1.0)])).into_response())
}

async fn send(State(served): State<Served>, raw: String) -> Answered {
    served.text("sendrawtransaction", json!([raw])).await
}

async fn send_package(State(served): State<Served>, package: String) -> Answered {
    let package: Value = serde_json::from_str(&package).unwrap_or_default();
    Ok(Json(served.call("submitpackage", json!([package])).await?).into_response())
}

impl EsploraServer {
    /// Serves what a daemon with [`TXINDEX`] knows.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(daemon: &Daemon) -> Result<Self> {
        let state = Served { rpc: daemon.rpc.clone(), fault: Arc::default() };
        let api = Router::new()
            .route("/blocks/tip/hash", get(tip))
            .route("/block-height/{height}", get(hash_at))
            .route("/block/{hash}/header", get(header))
            .route("/block/{hash}/status", get(block_status))
            .route("/block/{hash}/raw", get(block))
            .route("/tx/{txid}/raw", get(transaction))
            .route("/tx/{txid}/status", get(transaction_status))
            .route("/tx/{txid}/merkleblock-proof", get(proof))
            .route("/tx/{txid}/outspend/{vout}", get(outspend))
            .route("/scripthash/{hash}/utxo", get(utxos))
            .route("/fee-estimates", get(fee_estimates))
            .route("/tx", post(send))
            .route("/txs/package", post(send_package))
            .with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/api", listener.local_addr()?);
        let app = Router::new().nest("/api", api);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, state })
    }

    /// The address of its API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Has it do something wrong from now on.
    pub fn lie(&self, fault: Fault) {
        *self.state.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}
