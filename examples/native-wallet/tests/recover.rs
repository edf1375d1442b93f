//! Leaving with Bitcoin Core alone: no node and no bridge runs here.

#![expect(clippy::indexing_slicing, reason = "a test panics on what cannot happen")]
#![expect(deprecated, reason = "what takes their place in bdk_wallet wants signers that the caller makes")]

use anyhow::{Context as _, Result, ensure};
use axum::{Json, Router, extract::Path as UrlPath, extract::State, routing::get};
use bdk_wallet::{KeychainKind, SignOptions};
use bip39::Mnemonic;
use bitcoin::{
    Address, Block, Network, Transaction,
    bip32::Xpriv,
    consensus::encode::{deserialize_hex, serialize_hex},
    hashes::{Hash as _, sha256},
    secp256k1::Secp256k1,
};
use quorate::{
    account::{Keychain, KeychainIndex},
    recovery::BackupKit,
    wallet::{AccountOptions, SecretWords, Wallet},
};
use quorate_node::chain::Bitcoind;
use quorate_tests::{bitcoind, daemon::Daemon};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, process::Command};

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
/// The least that regtest allows with the margin of the federation.
const DELAY: u16 = 289;
/// Addresses that are paid: far apart, on both keychains.
const PAID: [(Keychain, u32); 4] =
    [(Keychain::Receive, 0), (Keychain::Receive, 57), (Keychain::Change, 3), (Keychain::Receive, 130)];
/// Nobody's.
const ELSEWHERE: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

struct Scene {
    daemon: Daemon,
    home: tempfile::TempDir,
    kit: String,
    wallet: Wallet,
}

impl Scene {
    /// A wallet that was paid in the first blocks of a chain, and whose nodes are gone.
    async fn new() -> Result<Option<Self>> {
        let Some(binary) = bitcoind() else {
            eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
            return Ok(None);
        };
        let daemon = Daemon::start(&binary, &[])?;
        daemon.ready().await?;
        let words = SecretWords::parse(WORDS)?;
        let options = AccountOptions { recovery_delay: Some(DELAY), ..AccountOptions::default() };
        let wallet =
            Wallet::new(quorate_protocol::testing::federation(4).federation, &words, &options, None)?;
        let home = tempfile::tempdir()?;
        let kit = home.path().join("kit.txt").display().to_string();
        std::fs::write(&kit, BackupKit::new(&wallet, Some(words)).to_text().as_bytes())?;
        let scene = Self { daemon, home, kit, wallet };
        for (keychain, index) in PAID {
            let address = scene.wallet.account().address(KeychainIndex { keychain, index })?;
            scene.mine(1, &address.to_address(Network::Regtest).to_string()).await?;
        }
        Ok(Some(scene))
    }

    fn rpc(&self) -> &Bitcoind {
        &self.daemon.rpc
    }

    async fn mine(&self, count: u32, to: &str) -> Result<()> {
        self.rpc().call_raw("generatetoaddress", json!([count, to])).await?;
        Ok(())
    }

    async fn mine_to(&self, height: u32) -> Result<()> {
        let tip = self.height().await?;
        self.mine(height - tip, ELSEWHERE).await
    }

    async fn height(&self) -> Result<u32> {
        let height = self.rpc().call_raw("getblockcount", json!([])).await?;
        Ok(u32::try_from(height.as_u64().context("a height")?)?)
    }

    /// Why the daemon refuses a transaction, if it does.
    async fn refusal(&self, transaction: &str) -> Result<Option<String>> {
        let verdict = self.rpc().call_raw("testmempoolaccept", json!([[transaction]])).await?;
        Ok(verdict[0]["reject-reason"].as_str().map(str::to_owned))
    }

    fn core(&self) -> [String; 4] {
        let url = self.daemon.url();
        ["--bitcoind".to_owned(), url, "--rpc-auth".to_owned(), "test:test".to_owned()]
    }

    fn file(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    /// Runs `quorate recover` and gives what it prints, or what it complains about.
    async fn recover(&self, arguments: &[&str]) -> Result<Result<String, String>> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let home = self.home.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
            command.arg("recover").args(&arguments).current_dir(home);
            if arguments.iter().any(|argument| argument == "--kit" || argument == "--descriptor") {
                command.args(["--addresses", "150"]);
            }
            let output = command.output()?;
            let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
            Ok(if output.status.success() { Ok(out) } else { Err(err) })
        })
        .await?
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_leaves_with_words_descriptor_and_bitcoin_core() -> Result<()> {
    let Some(scene) = Scene::new().await? else { return Ok(()) };
    let core = scene.core();
    let core: Vec<&str> = core.iter().map(String::as_str).collect();
    let kit = ["--kit", scene.kit.as_str()];
    let with = |step: &'static str, more: &[&'static str]| {
        let mut all = vec![step];
        all.extend(kit);
        all.extend(&core);
        all.extend(more);
        all
    };
    // Nothing is open: the coins are shown with their times, and nothing is built.
    scene.mine_to(110).await?;
    let found = scene.recover(&with("find", &[])).await?.map_err(anyhow::Error::msg)?;
    ensure!(
        found.contains("4 with 200 BTC") && found.contains("opens at height 290, in 180 blocks"),
        "{found}"
    );
    let early = scene.recover(&with("sweep", &["--to", ELSEWHERE, "--fee-rate", "2"])).await?;
    let early = early.expect_err("nothing is open");
    ensure!(early.contains("the first one opens at height 290"), "{early}");
    // The block after the tip is the first that can have two of them.
    scene.mine_to(u32::from(DELAY) + 1).await?;
    let psbt = scene.file("sweep.psbt");
    let mut sweep = with("sweep", &["--to", ELSEWHERE, "--fee-rate", "2", "--psbt"]);
    sweep.push(&psbt);
    let built = scene.recover(&sweep).await?.map_err(anyhow::Error::msg)?;
    ensure!(built.contains(&format!("to {ELSEWHERE}")), "{built}");
    // A machine without a connection signs.
    let signed = scene.recover(&["sign", kit[0], kit[1], &psbt]).await?.map_err(anyhow::Error::msg)?;
    let transaction = last_line(&signed).to_owned();
    let parsed: Transaction = deserialize_hex(&transaction)?;
    ensure!(parsed.input.len() == 2, "two coins are open");
    ensure!(scene.refusal(&transaction).await?.is_none(), "the daemon takes it");
    // One block earlier the daemon would not have: it is undone.
    let tip = scene.rpc().call_raw("getbestblockhash", json!([])).await?;
    scene.rpc().call_raw("invalidateblock", json!([tip])).await?;
    ensure!(scene.refusal(&transaction).await?.as_deref() == Some("non-BIP68-final"), "too early");
    scene.rpc().call_raw("reconsiderblock", json!([tip])).await?;
    let mut send = vec!["send"];
    send.extend(&core);
    send.push(&transaction);
    let sent = scene.recover(&send).await?.map_err(anyhow::Error::msg)?;
    ensure!(sent.contains(&parsed.compute_txid().to_string()), "{sent}");
    // The rest is swept in one go.
    scene.mine_to(u32::from(DELAY) + 3).await?;
    let rest = with("sweep", &["--to", ELSEWHERE, "--fee-rate", "2", "--send"]);
    let rest = scene.recover(&rest).await?.map_err(anyhow::Error::msg)?;
    ensure!(rest.contains("sent"), "{rest}");
    scene.mine(1, ELSEWHERE).await?;
    let left = scene.recover(&with("find", &[])).await?.map_err(anyhow::Error::msg)?;
    ensure!(left.contains("0 with"), "{left}");
    Ok(())
}

/// The part of Esplora's HTTP API that leaving needs, on a daemon.
async fn esplora(scene: &Scene) -> Result<String> {
    let mut scripts: BTreeMap<String, String> = BTreeMap::new();
    for keychain in [Keychain::Receive, Keychain::Change] {
        for index in 0..300 {
            let script = scene.wallet.account().address(KeychainIndex { keychain, index })?.script_pubkey;
            let hash = sha256::Hash::hash(script.as_bytes());
            scripts.insert(hash.to_string(), script.to_hex_string());
        }
    }
    type Shared = (Bitcoind, BTreeMap<String, String>);
    async fn utxos((rpc, scripts): &Shared, hash: &str) -> Vec<Value> {
        let Some(script) = scripts.get(hash) else { return Vec::new() };
        let found = rpc.call_raw("scantxoutset", json!(["start", [format!("raw({script})")]])).await;
        let found = found.expect("the daemon answers");
        let unspents = found["unspents"].as_array().expect("a list").clone();
        let utxo = |coin: &Value| {
            let value =
                bitcoin::Amount::from_btc(coin["amount"].as_f64().expect("a number")).expect("an amount");
            json!({"txid": coin["txid"], "vout": coin["vout"], "value": value.to_sat(),
                "status": {"confirmed": true, "block_height": coin["height"], "block_hash": coin["blockhash"], "block_time": 0}})
        };
        unspents.iter().map(utxo).collect()
    }
    async fn stats(State(shared): State<Shared>, UrlPath(hash): UrlPath<String>) -> Json<Value> {
        let count = utxos(&shared, &hash).await.len();
        let summary = |count| json!({"funded_txo_count": count, "funded_txo_sum": 0, "spent_txo_count": 0, "spent_txo_sum": 0, "tx_count": count});
        Json(json!({"scripthash": hash, "chain_stats": summary(count), "mempool_stats": summary(0)}))
    }
    async fn utxo(State(shared): State<Shared>, UrlPath(hash): UrlPath<String>) -> Json<Value> {
        Json(utxos(&shared, &hash).await.into())
    }
    async fn genesis(State((rpc, _)): State<Shared>) -> String {
        rpc.call_raw("getblockhash", json!([0])).await.expect("a hash").as_str().expect("text").to_owned()
    }
    async fn height(State((rpc, _)): State<Shared>) -> String {
        rpc.call_raw("getblockcount", json!([])).await.expect("a height").to_string()
    }
    async fn send(
        State((rpc, _)): State<Shared>,
        body: String,
    ) -> Result<String, (axum::http::StatusCode, String)> {
        match rpc.call_raw("sendrawtransaction", json!([body])).await {
            Ok(txid) => Ok(txid.as_str().expect("text").to_owned()),
            Err(error) => Err((axum::http::StatusCode::BAD_REQUEST, error.to_string())),
        }
    }
    let app = Router::new()
        .route("/api/scripthash/{hash}", get(stats))
        .route("/api/scripthash/{hash}/utxo", get(utxo))
        .route("/api/block-height/0", get(genesis))
        .route("/api/blocks/tip/height", get(height))
        .route("/api/fee-estimates", get(|| async { Json(json!({"1": 9.0, "6": 3.5, "144": 1.0})) }))
        .route("/api/tx", axum::routing::post(send))
        .with_state((scene.rpc().clone(), scripts));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/api", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn esplora_or_a_list_of_coins_will_do_too() -> Result<()> {
    let Some(scene) = Scene::new().await? else { return Ok(()) };
    scene.mine_to(u32::from(DELAY) + 1).await?;
    let url = esplora(&scene).await?;
    let descriptor = scene.wallet.descriptor().to_string();
    let account = ["--descriptor", descriptor.as_str(), "--network", "regtest"];
    let mut find = vec!["find"];
    find.extend(account);
    find.extend(["--esplora", &url]);
    let found = scene.recover(&find).await?.map_err(anyhow::Error::msg)?;
    ensure!(found.contains("4 with 200 BTC") && found.matches("  open\n").count() == 2, "{found}");
    // The same from a list that somebody copied from there.
    let mut list = "# copied from an explorer\n".to_owned();
    for ((keychain, index), line) in PAID.into_iter().zip(found.lines().skip(1)) {
        let outpoint = line.split_whitespace().next().context("an outpoint")?;
        let position = KeychainIndex { keychain, index };
        let address = scene.wallet.account().address(position)?.to_address(Network::Regtest);
        let height = 1 + PAID.iter().position(|paid| *paid == (keychain, index)).context("paid")?;
        list += &format!("{outpoint} 5000000000 {height} {address}\n");
    }
    let coins = scene.file("coins.txt");
    std::fs::write(&coins, list)?;
    let tip = scene.height().await?.to_string();
    let sweep = [
        "sweep",
        "--kit",
        &scene.kit,
        "--coins",
        &coins,
        "--tip",
        &tip,
        "--fee-rate",
        "1",
        "--to",
        ELSEWHERE,
    ];
    let signed = scene.recover(&sweep).await?.map_err(anyhow::Error::msg)?;
    ensure!(scene.refusal(last_line(&signed)).await?.is_none(), "the daemon takes it");
    // Esplora's estimate, and its refusal in its own words.
    let mut sweep = vec!["sweep", "--kit", &scene.kit, "--to", ELSEWHERE, "--send"];
    sweep.extend(["--esplora", &url]);
    let sent = scene.recover(&sweep).await?.map_err(anyhow::Error::msg)?;
    ensure!(sent.contains("sent"), "{sent}");
    let wrong = format!("{}00", serialize_hex(&deserialize_hex::<Transaction>(last_line(&signed))?));
    let refused = scene.recover(&["send", "--esplora", &url, &wrong]).await?.expect_err("no transaction");
    ensure!(refused.contains("no transaction"), "{refused}");
    let mut elsewhere = vec!["find", "--descriptor", &descriptor, "--network", "signet"];
    elsewhere.extend(["--esplora", &url]);
    let refused = scene.recover(&elsewhere).await?.expect_err("another network");
    ensure!(refused.contains("is on regtest"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_descriptor_wallet_leaves_with_the_words_alone() -> Result<()> {
    let Some(scene) = Scene::new().await? else { return Ok(()) };
    scene.mine_to(u32::from(DELAY) + 4).await?;
    // All that its owner has: the words, and the descriptor with its origin. The key goes where its public half stands.
    let kit = std::fs::read_to_string(Path::new(&scene.kit))?;
    let line = |name: &str| {
        let found = kit.lines().find_map(|line| line.strip_prefix(name));
        found.map(str::trim).with_context(|| format!("no line {name}"))
    };
    let seed = line("words:")?.parse::<Mnemonic>()?.to_seed("");
    let secp = Secp256k1::new();
    let master = Xpriv::new_master(Network::Regtest, &seed)?;
    let descriptor = line("descriptor:")?;
    let (before, after) = descriptor.split_once("v:pk([").context("an origin")?;
    let (origin, after) = after.split_once(']').context("an origin")?;
    let (fingerprint, path) = origin.split_once('/').context("a path")?;
    ensure!(fingerprint == master.fingerprint(&secp).to_string(), "the words' fingerprint");
    let key = master.derive_priv(&secp, &path.parse::<bitcoin::bip32::DerivationPath>()?)?;
    let (_, after) = after.split_once("/<0;1>").context("two keychains")?;
    let after = after.split('#').next().context("a body")?;
    let private = format!("{before}v:pk([{origin}]{key}/<0;1>{after}");
    let chain = |number: &str| private.replace("<0;1>", number);
    let mut wallet = bdk_wallet::Wallet::create(chain("0"), chain("1"))
        .network(Network::Regtest)
        .lookahead(200)
        .create_wallet_no_persist()?;
    for height in 1..=scene.height().await? {
        let hash = scene.rpc().call_raw("getblockhash", json!([height])).await?;
        let block = scene.rpc().call_raw("getblock", json!([hash, 0])).await?;
        let block: Block = deserialize_hex(block.as_str().context("hex")?)?;
        wallet.apply_block(&block, height)?;
    }
    ensure!(wallet.balance().total() == bitcoin::Amount::from_int_btc(200), "it sees all coins");
    let elsewhere = ELSEWHERE.parse::<Address<_>>()?.require_network(Network::Regtest)?;
    // Of the ways to spend, the second: the script leaf.
    let mut paths = Vec::new();
    for keychain in [KeychainKind::External, KeychainKind::Internal] {
        let policy = wallet.policies(keychain)?.context("a policy")?;
        paths.push((BTreeMap::from([(policy.id, vec![1])]), keychain));
    }
    let mut builder = wallet.build_tx();
    builder.drain_wallet().drain_to(elsewhere.script_pubkey());
    for (path, keychain) in paths {
        builder.policy_path(path, keychain);
    }
    let mut psbt = builder.finish()?;
    ensure!(wallet.sign(&mut psbt, SignOptions::default())?, "it finalises");
    let transaction = serialize_hex(&psbt.extract_tx()?);
    ensure!(scene.refusal(&transaction).await?.is_none(), "the daemon takes it");
    Ok(())
}
