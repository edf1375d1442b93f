//! A node's secrets at rest, as its operator moves the key away from them, backs them up and restores them; and one
//! directory, one node.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{client::WebSocket, wallet::SecretWords};
use quorate_tests::{
    Cluster, free_port,
    operator::{command, command_with, status, status_where},
    wallets::{PAYMENT_PATIENCE, federation, fund, open_wallet, request, wait_spendable},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const PASSPHRASE: (&str, &str) = ("QUORATE_SEAL_PASSPHRASE", "four words are enough");

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

fn home(cluster: &Cluster, number: usize) -> Result<PathBuf> {
    cluster.files.nodes.get(number - 1).cloned().context("no such node")
}

/// What a node says that does not start.
fn refusal(home: &Path) -> String {
    command(NODE, &["run", text(home)]).expect_err("it does not start").to_string()
}

/// Whether any file of a directory has these bytes, as they are or in hexadecimal digits.
fn contains(directory: &Path, secret: &[u8]) -> Result<bool> {
    let digits = hex::encode(secret).into_bytes();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if contains(&path, secret)? {
                return Ok(true);
            }
            continue;
        }
        let bytes = fs::read(&path)?;
        let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
        if has(secret) || has(&digits) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_node_opens_with_the_key_from_elsewhere_alone() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let node = home(&cluster, 2)?;
    status(&node, "voting").await?;
    let elsewhere = tempfile::tempdir()?;
    let key = elsewhere.path().join("node-2.seal");
    let lock = ["share", "lock", text(&node), "--key-file", text(&key)];
    let running = command(NODE, &lock).expect_err("the node runs").to_string();
    let pid = cluster.pid(2).context("it runs")?;
    ensure!(running.contains(&format!("is in use by process {pid}: stop it first")), "{running}");
    let twice = refusal(&node);
    ensure!(twice.contains("stop it first") && !key.exists(), "{twice}");

    cluster.kill(2)?;
    let identity = hex::decode(fs::read_to_string(node.join("identity.key"))?.trim())?;
    ensure!(contains(&node, &identity)?, "a new node has it in the clear");
    let inside = node.join("key");
    let beside = command(NODE, &["share", "lock", text(&node), "--key-file", text(&inside)]);
    ensure!(beside.expect_err("beside").to_string().contains("beside what it seals"));
    let said = command(NODE, &lock)?;
    ensure!(said.contains("locked") && said.contains(text(&key)), "{said}");
    ensure!(!contains(&node, &identity)?, "it is sealed");
    for gone in ["seal.key", "identity.key", "tls.key"] {
        ensure!(!node.join(gone).exists(), "{gone}");
    }
    cluster.start_node(2, None)?;
    status(&node, "voting").await?;
    cluster.kill(2)?;

    // Without the key, or with another one, it says so and starts nothing.
    let away = elsewhere.path().join("away");
    fs::rename(&key, &away)?;
    let refused = refusal(&node);
    ensure!(refused.contains("locked") && refused.contains(text(&key)), "{refused}");
    fs::write(&key, "07".repeat(32))?;
    let open = refusal(&node);
    ensure!(open.contains("chmod 600"), "others may read it: {open}");
    fs::remove_file(&key)?;
    fs::copy(&away, &key)?;

    // From a file to a passphrase, and the next start wants that.
    let words = command_with(NODE, &["share", "lock", text(&node), "--passphrase"], &[PASSPHRASE])?;
    ensure!(words.contains("the passphrase"), "{words}");
    let refused = refusal(&node);
    ensure!(refused.contains("set QUORATE_SEAL_PASSPHRASE"), "{refused}");
    let wrong = command_with(NODE, &["run", text(&node)], &[(PASSPHRASE.0, "five words are too many")]);
    let wrong = wrong.expect_err("another passphrase").to_string();
    ensure!(wrong.contains("wrong key or passphrase"), "{wrong}");
    cluster.variables.push((PASSPHRASE.0.to_owned(), PASSPHRASE.1.to_owned()));
    cluster.start_node(2, None)?;
    status(&node, "voting").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_does_not_vote_before_the_next_epoch() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let first = federation(&cluster).await?;
    let wallet = async || open_wallet(&first, &SecretWords::generate()?, WebSocket::new(cluster.url())).await;
    let (payer, payee) = (wallet().await?, wallet().await?);
    let coin = Amount::from_sat(100_000);
    fund(&cluster.chain, &[payer.next_address().await?], 4, coin)?;
    wait_spendable(&payer, coin * 4).await?;
    let pay = async || {
        let to = payee.next_address().await?;
        timeout(PAYMENT_PATIENCE, payer.pay(request(&to, Amount::from_sat(5_000))?)).await??;
        anyhow::Ok(())
    };
    pay().await?;
    let node = home(&cluster, 3)?;
    status(&node, "voting").await?;
    let backup = node.with_file_name("node-3.backup");
    let arguments = ["share", "backup", text(&node), "--to", text(&backup), "--passphrase"];
    let said = command_with(NODE, &arguments, &[PASSPHRASE])?;
    ensure!(said.contains("node 3 in epoch 1"), "{said}");
    let identity = hex::decode(fs::read_to_string(node.join("identity.key"))?.trim())?;
    let sealed = node.with_file_name("only the backup");
    fs::create_dir(&sealed)?;
    fs::rename(&backup, sealed.join("b"))?;
    ensure!(!contains(&sealed, &identity)?, "a backup is sealed");
    let backup = sealed.join("b");
    pay().await?;

    // The machine burns down.
    cluster.kill(3)?;
    fs::remove_dir_all(&node)?;
    let restore = ["share", "restore", text(&node), "--from", text(&backup), "--passphrase"];
    let wrong = command_with(NODE, &restore, &[(PASSPHRASE.0, "five words are too many")]);
    ensure!(wrong.expect_err("wrong").to_string().contains("wrong key or passphrase"));
    ensure!(!node.exists(), "nothing is written before it opens");
    let damaged = sealed.join("damaged");
    fs::write(&damaged, fs::read_to_string(&backup)?.replacen("\"node\": 3", "\"node\": 2", 1))?;
    let other = ["share", "restore", text(&node), "--from", text(&damaged), "--passphrase"];
    ensure!(command_with(NODE, &other, &[PASSPHRASE]).is_err(), "it is bound to its node");
    let said = command_with(NODE, &restore, &[PASSPHRASE])?;
    ensure!(said.contains("does not vote until the next epoch"), "{said}");
    cluster.start_node(3, None)?;
    let lost = status(&node, "lost").await?;
    ensure!(lost["reason"].as_str().is_some_and(|reason| reason.contains("next epoch")), "{lost}");
    pay().await?;

    // The operators begin the next epoch, and it votes again.
    let homes = cluster.files.nodes.clone();
    let plan = node.with_file_name("plan.json");
    let first_home = home(&cluster, 1)?;
    fs::write(&plan, command(NODE, &["epoch", "plan", text(&first_home)])?)?;
    for home in &homes {
        command(NODE, &["epoch", "approve", text(home), text(&plan)])?;
    }
    for home in &homes {
        let voting = |status: &Value| status["epoch"] == 2 && status["standing"] == "voting";
        status_where(home, "voting in the next epoch", voting).await?;
    }
    cluster.kill(1)?;
    pay().await
}

/// A copy of a directory on the same machine, started beside the original and in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_votes_neither_beside_the_original_nor_after_it() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let node = home(&cluster, 4)?;
    let before = status(&node, "voting").await?;
    ensure!(before["lost"].is_null(), "{before}");
    cluster.kill(4)?;
    let copy = node.with_file_name("copy-4");
    let copied = std::process::Command::new("cp").arg("-a").args([&node, &copy]).status()?;
    ensure!(copied.success());
    cluster.start_node(4, None)?;
    status(&node, "voting").await?;

    // Beside it: elsewhere, because the port is taken.
    let taken = refusal(&copy);
    ensure!(taken.contains("cannot listen on"), "{taken}");
    let listen = cluster.files.addresses.get(3).context("an address")?.address.to_string();
    let config = fs::read_to_string(copy.join("node.toml"))?;
    fs::write(copy.join("node.toml"), config.replacen(&listen, &free_port()?.to_string(), 1))?;
    if let Some(first) = cluster.files.nodes.first_mut() {
        // In the place of node 1, for the cluster to start and end it.
        first.clone_from(&copy);
    }
    cluster.kill(1)?;
    cluster.start_node(1, None)?;
    let beside = status(&copy, "lost").await?;
    ensure!(beside["reason"].as_str().is_some_and(|reason| reason.contains("next epoch")), "{beside}");
    Ok(())
}
