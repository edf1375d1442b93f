//! The embedded chain for other processes: the part of Bitcoin Core's JSON-RPC that nodes and wallet developers use.

use crate::DevnetChain;
use axum::{Json, Router, extract::State, routing::post};
use bitcoin::{
    Address, BlockHash, OutPoint, ScriptBuf, Transaction, Txid,
    address::NetworkUnchecked,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use quorate_node::chain::{Chain as _, ChainError};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// Serves until the listener fails.
///
/// # Errors
/// The listener failed.
pub async fn serve_rpc(listener: TcpListener, chain: Arc<DevnetChain>) -> std::io::Result<()> {
    let app = Router::new().route("/", post(answer)).with_state(chain);
    axum::serve(listener, app).await
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Vec<Value>,
}

/// One call, or some that are answered in order.
#[derive(Deserialize)]
#[serde(untagged)]
enum Calls {
    One(Request),
    Some(Vec<Request>),
}

async fn answer(State(chain): State<Arc<DevnetChain>>, Json(calls): Json<Calls>) -> Json<Value> {
    match calls {
        Calls::One(request) => Json(reply(&chain, &request).await),
        Calls::Some(requests) => {
            let mut replies = Vec::with_capacity(requests.len());
            for request in &requests {
                replies.push(reply(&chain, request).await);
            }
            Json(Value::Array(replies))
        }
    }
}

async fn reply(chain: &DevnetChain, request: &Request) -> Value {
    match call(chain, request).await {
        Ok(result) => json!({"result": result, "error": null, "id": request.id}),
        Err((code, message)) => {
            json!({"result": null, "error": {"code": code, "message": message}, "id": request.id})
        }
    }
}

type Failure = (i32, String);

fn param<T: DeserializeOwned>(request: &Request, index: usize) -> Result<T, Failure> {
    let value = request.params.get(index).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| (-8, format!("parameter {index}: {error}")))
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn failed(error: ChainError) -> Failure {
    (-25, error.to_string())
}

async fn call(chain: &DevnetChain, request: &Request) -> Result<Value, Failure> {
    match request.method.as_str() {
        "getbestblockhash" => Ok(json!(chain.tip().await.map_err(failed)?)),
        "getblockchaininfo" => {
            let (tip, height) = (chain.tip().await.map_err(failed)?, chain.height());
            Ok(json!({"chain": "regtest", "blocks": height, "headers": height, "bestblockhash": tip}))
        }
        "scantxoutset" => scan(chain, request),
        "getblockcount" => Ok(json!(chain.height())),
        "getblockhash" => {
            let hash = chain.block_hash(param(request, 0)?);
            hash.map(|hash| json!(hash)).ok_or_else(|| (-8, "block height out of range".to_owned()))
        }
        "waitfornewblock" => {
            let timeout: u64 = param(request, 0)?;
            let known: BlockHash = param(request, 1)?;
            let waited =
                tokio::time::timeout(Duration::from_millis(timeout), chain.wait_for_tip(known)).await;
            let hash = waited.unwrap_or(Ok(known)).map_err(failed)?;
            Ok(json!({"hash": hash, "height": chain.height()}))
        }
        "getblockheader" => {
            let (header, height) = chain.header(param(request, 0)?).await.map_err(failed)?;
            let verbose: Option<bool> = param(request, 1)?;
            if verbose == Some(false) {
                Ok(json!(serialize_hex(&header)))
            } else {
                Ok(json!({"height": height}))
            }
        }
        "getblock" => Ok(json!(serialize_hex(&chain.block(param(request, 0)?).await.map_err(failed)?))),
        "gettxout" => coin(chain, request).await,
        "sendrawtransaction" => {
            let hex: String = param(request, 0)?;
            let transaction: Transaction = deserialize_hex(&hex).map_err(|error| (-22, error.to_string()))?;
            chain.submit(transaction).map(|txid| json!(txid)).map_err(failed)
        }
        "getmempoolentry" => {
            let txid: Txid = param(request, 0)?;
            let known = chain.mempool().contains(&txid);
            if known { Ok(json!({})) } else { Err((-5, "Transaction not in mempool".to_owned())) }
        }
        "getmempoolinfo" => Ok(json!({"mempoolminfee": 0.00001, "minrelaytxfee": 0.00001})),
        "submitpackage" => {
            let package: Vec<String> = param(request, 0)?;
            let read = |hex: &String| deserialize_hex(hex).map_err(|error| (-22, error.to_string()));
            let package = package.iter().map(read).collect::<Result<_, _>>()?;
            chain.broadcast_package(package).await.map_err(failed)?;
            Ok(json!({"package_msg": "success"}))
        }
        "getrawmempool" => Ok(json!(chain.mempool())),
        "estimatesmartfee" => Ok(json!({"errors": ["Insufficient data"]})),
        "generatetoaddress" => {
            let address: Address<NetworkUnchecked> = param(request, 1)?;
            let script: ScriptBuf = address.assume_checked().script_pubkey();
            Ok(json!(chain.mine(param(request, 0)?, &script).map_err(failed)?))
        }
        method => Err((-32601, format!("method {method} is not served by the embedded chain"))),
    }
}

/// Unspent outputs by descriptors of the form `raw(SCRIPT)`.
fn scan(chain: &DevnetChain, request: &Request) -> Result<Value, Failure> {
    let action: String = param(request, 0)?;
    if action != "start" {
        return Err((-8, format!("action {action} is not served by the embedded chain")));
    }
    let objects: Vec<String> = param(request, 1)?;
    let scripts = objects.iter().map(|object| {
        let script = object.strip_prefix("raw(").and_then(|rest| rest.strip_suffix(')'));
        let script = script.and_then(|hex| ScriptBuf::from_hex(hex).ok());
        script.ok_or_else(|| (-5, format!("{object}: the embedded chain looks for raw(SCRIPT) only")))
    });
    let coins = chain.coins_with(&scripts.collect::<Result<_, _>>()?);
    let unspents = coins.iter().map(|(outpoint, coin)| {
        json!({
            "txid": outpoint.txid,
            "vout": outpoint.vout,
            "scriptPubKey": coin.output.script_pubkey,
            "amount": coin.output.value.to_btc(),
            "coinbase": coin.coinbase,
            "height": coin.height,
        })
    });
    Ok(json!({"success": true, "height": chain.height(), "unspents": unspents.collect::<Vec<_>>()}))
}

async fn coin(chain: &DevnetChain, request: &Request) -> Result<Value, Failure> {
    let outpoint = OutPoint { txid: param(request, 0)?, vout: param(request, 1)? };
    let Some(coin) = chain.coin(outpoint).await.map_err(failed)? else { return Ok(Value::Null) };
    Ok(json!({
        "bestblock": chain.tip().await.map_err(failed)?,
        "confirmations": chain.height() + 1 - coin.height,
        "value": coin.output.value.to_btc(),
        "scriptPubKey": {"hex": coin.output.script_pubkey},
        "coinbase": coin.coinbase,
    }))
}
