//! What an operator sees of a node: whether it votes, and why not.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster, PATIENCE,
    wallets::{PAYMENT_PATIENCE, federation, fund, open_wallet, request, wait_spendable},
};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};
use tokio::time::{interval, timeout};

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(5_000);

/// Where the node's API is: by default at the port of its `listen`.
fn api(home: &Path) -> Result<String> {
    let text = fs::read_to_string(home.join("node.toml"))?;
    let listen = text.lines().find_map(|line| line.strip_prefix("listen = ")).context("listen")?;
    Ok(format!("http://{}", listen.trim_matches('"')))
}

/// Asks until the status is as wanted.
async fn status(url: &str, standing: &str) -> Result<Value> {
    let asked = async {
        let mut pause = interval(Duration::from_millis(50));
        loop {
            pause.tick().await;
            let Ok(answer) = reqwest::get(format!("{url}/api/v1/status")).await else { continue };
            let Ok(status) = answer.json::<Value>().await else { continue };
            if status.get("standing").is_some_and(|found| found == standing) {
                return status;
            }
        }
    };
    timeout(PATIENCE, asked).await.with_context(|| format!("the node is never {standing}"))
}

async fn pay(payer: &Client, payee: &Client) -> Result<()> {
    let to = payee.next_address().await?;
    timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PAID)?)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_is_gone_says_so_and_does_not_vote() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes[1].clone();
    let url = api(&home)?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 4, COIN)?;
    wait_spendable(&payer, COIN * 4).await?;
    pay(&payer, &payee).await?;
    let before = status(&url, "voting").await?;
    ensure!(before["log_records"].as_u64() > Some(0), "it has voted: {before}");
    ensure!(before["evidence"] == serde_json::json!({}), "nobody cheated: {before}");
    ensure!(reqwest::get(format!("{url}/health")).await?.status().is_success());

    cluster.kill(2)?;
    fs::remove_file(home.join("store.redb"))?;
    cluster.start_node(2, None)?;
    let after = status(&url, "lost").await?;
    let reason = after["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("missing or older") && reason.contains("next epoch"), "{reason}");
    let health = reqwest::get(format!("{url}/health")).await?;
    ensure!(health.status() == 503, "a node without a vote is not healthy: {health:?}");
    let metrics = reqwest::get(format!("{url}/metrics")).await?.text().await?;
    ensure!(metrics.contains("quorate_node_lost_its_vote 1"), "{metrics}");
    // The others are enough, and it stays without a vote when it starts again.
    pay(&payer, &payee).await?;
    cluster.kill(2)?;
    cluster.start_node(2, None)?;
    status(&url, "lost").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_kept_aside_and_costs_the_vote() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes[2].clone();
    let url = api(&home)?;
    status(&url, "voting").await?;
    cluster.kill(3)?;
    fs::write(home.join("store.redb"), b"not what was written here")?;
    cluster.start_node(3, None)?;
    let after = status(&url, "lost").await?;
    ensure!(after["reason"].as_str().is_some_and(|reason| reason.contains("damaged")), "{after}");
    ensure!(home.join("store.damaged.redb").exists(), "the file is kept for the operator");
    Ok(())
}
