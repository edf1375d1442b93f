//! The life of a federation's key, as operators live it: refresh, repair of a share, a new node in the place of a
//! lost one.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster,
    operator::{command, status, status_where},
    wallets::{PAYMENT_PATIENCE, federation, fund, open_wallet, request, wait_spendable},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(5_000);

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

async fn pay(payer: &Client, payee: &Client) -> Result<()> {
    let to = payee.next_address().await?;
    timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PAID)?)).await.context("a payment takes too long")??;
    Ok(())
}

/// Makes a plan at the first node and has the operators of these nodes approve it.
fn approve(cluster: &Cluster, replace: &[&Path], homes: &[PathBuf]) -> Result<PathBuf> {
    let home = cluster.files.nodes.first().context("a node")?;
    let mut arguments = vec!["epoch", "plan", text(home)];
    for member in replace {
        arguments.extend(["--replace", text(member)]);
    }
    let plan = home.with_file_name("plan.json");
    fs::write(&plan, command(NODE, &arguments)?)?;
    for home in homes {
        let told = command(NODE, &["epoch", "approve", text(home), text(&plan), "--dry-run"])?;
        ensure!(told.contains("nothing has been changed"), "{told}");
        command(NODE, &["epoch", "approve", text(home), text(&plan)])?;
    }
    Ok(plan)
}

async fn in_epoch(homes: &[PathBuf], epoch: u64) -> Result<()> {
    for home in homes {
        let voting = |status: &Value| status["epoch"] == epoch && status["standing"] == "voting";
        status_where(home, "voting in the next epoch", voting).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_refreshed_under_way_and_a_lost_vote_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let first = federation(&cluster).await?;
    let (payer_words, payee_words) = (SecretWords::generate()?, SecretWords::generate()?);
    let payer = open_wallet(&first, &payer_words, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&first, &payee_words, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 8, COIN)?;
    wait_spendable(&payer, COIN * 8).await?;
    pay(&payer, &payee).await?;
    // A wallet that is offline while the epochs change.
    let descriptor = payee.inspect(|session| session.wallet().descriptor()).await?;
    drop(payee);

    // Node 4 loses its store, and with it its vote.
    let homes = cluster.files.nodes.clone();
    status(&homes[3], "voting").await?;
    cluster.kill(4)?;
    fs::remove_file(homes[3].join("store.redb"))?;
    cluster.start_node(4, None)?;
    status(&homes[3], "lost").await?;

    approve(&cluster, &[], &homes)?;
    // Payments go on while the shares are refreshed and the epoch is sealed and opened.
    let payee = open_wallet(&first, &payee_words, WebSocket::new(cluster.url())).await?;
    for _ in 0..4 {
        pay(&payer, &payee).await?;
    }
    in_epoch(&homes, 2).await?;
    for home in &homes {
        ensure!(!home.join("share.sealed").exists(), "the share of the epoch before is erased");
        ensure!(home.join("epoch-2-1/share.sealed").exists(), "the new one is there");
    }
    let second = federation(&cluster).await?;
    ensure!(second.epoch().0 == 2 && second.group_key() == first.group_key());

    // All nodes start again in the new epoch, one is away, and node 4 is needed.
    for number in 1..=4 {
        cluster.kill(number)?;
    }
    for number in 2..=4 {
        cluster.start_node(number, None)?;
    }
    in_epoch(&homes[1..], 2).await?;
    pay(&payer, &payee).await?;
    let late = open_wallet(&first, &payee_words, WebSocket::new(cluster.url())).await?;
    let known = late.inspect(|session| session.wallet().descriptor()).await?;
    ensure!(known == descriptor, "the account is the same");
    wait_spendable(&late, PAID * 6).await?;
    pay(&late, &payer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_share_is_repaired_by_command() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 2, COIN)?;
    wait_spendable(&payer, COIN * 2).await?;
    let home = cluster.files.nodes[1].clone();
    status(&home, "voting").await?;
    cluster.kill(2)?;
    let nothing = command(NODE, &["share", "repair", text(&home)])?;
    ensure!(nothing.contains("nothing to repair"), "{nothing}");

    let before = fs::read(home.join("share.sealed"))?;
    fs::write(home.join("share.sealed"), &before[..20])?;
    let dry = command(NODE, &["share", "repair", text(&home), "--dry-run"])?;
    ensure!(dry.contains("Nothing has been changed") && dry.contains("3 nodes have to answer"), "{dry}");
    ensure!(fs::read(home.join("share.sealed"))?.len() == 20, "a dry run changes nothing");
    let said = command(NODE, &["share", "repair", text(&home)])?;
    ensure!(said.contains("repaired; start the node"), "{said}");
    fs::remove_file(home.join("share.damaged"))?;

    // With too few helpers it says who does not help.
    fs::remove_file(home.join("share.sealed"))?;
    cluster.kill(3)?;
    let error = command(NODE, &["share", "repair", text(&home)]).expect_err("two helpers");
    ensure!(error.to_string().contains("fewer than 3 nodes help"), "{error}");
    cluster.start_node(3, None)?;
    status(&cluster.files.nodes[2], "voting").await?;
    command(NODE, &["share", "repair", text(&home)])?;

    cluster.start_node(2, None)?;
    status(&home, "voting").await?;
    cluster.kill(1)?;
    pay(&payer, &payee).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_takes_the_place_of_a_lost_one() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let first = federation(&cluster).await?;
    let payer_words = SecretWords::generate()?;
    let payer = open_wallet(&first, &payer_words, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&first, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 4, COIN)?;
    wait_spendable(&payer, COIN * 4).await?;
    pay(&payer, &payee).await?;
    drop(payer);

    // Node 3 is gone for good; its operator makes a new one, on an empty disk, at the same address.
    status(&cluster.files.nodes[2], "voting").await?;
    cluster.kill(3)?;
    let old = cluster.files.nodes[2].clone();
    let listen = cluster.files.addresses[2].address.to_string();
    let new = old.with_file_name("new-3");
    let authority = old.with_file_name("ca.key");
    let like = cluster.files.nodes[0].clone();
    command(
        NODE,
        &[
            "federation",
            "replacement",
            text(&new),
            "--id",
            "3",
            "--listen",
            &listen,
            "--like",
            text(&like),
            "--authority",
            text(&authority),
        ],
    )?;
    cluster.files.nodes[2].clone_from(&new);
    cluster.start_node(3, None)?;
    let homes = cluster.files.nodes.clone();
    let plan = approve(&cluster, &[&new.join("member.json")], &homes)?;
    let refused = command(NODE, &["epoch", "approve", text(&old), text(&plan)]).expect_err("it is replaced");
    ensure!(refused.to_string().contains("not a member in the plan"), "{refused}");
    in_epoch(&homes, 2).await?;

    // The same coins, a wallet that was offline, and a quorum that needs the new node.
    cluster.kill(1)?;
    let payer = open_wallet(&first, &payer_words, WebSocket::new(cluster.url())).await?;
    pay(&payer, &payee).await?;

    // The old node comes back from the dead, elsewhere: nobody talks to it.
    let config = fs::read_to_string(old.join("node.toml"))?;
    let elsewhere = quorate_tests::free_port()?.to_string();
    fs::write(old.join("node.toml"), config.replacen(&listen, &elsewhere, 1))?;
    cluster.files.nodes[0].clone_from(&old);
    cluster.start_node(1, None)?;
    let status = status(&old, "asking").await?;
    ensure!(status["epoch"] == 1, "{status}");
    pay(&payer, &payee).await?;
    let still = quorate_tests::operator::status(&old, "asking").await?;
    ensure!(still["answered"] == 0, "a node that was replaced is shut out: {still}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_cannot_go_on_is_superseded_or_withdrawn() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let homes = cluster.files.nodes.clone();
    status(&homes[3], "voting").await?;
    cluster.kill(4)?;
    // All shall stay, but node 4 is dead: the others say whom they wait for, and go on voting.
    let first = approve(&cluster, &[], &homes[..3])?;
    let waits = |status: &Value| {
        let problem = status["next_epoch"]["problem"].as_str().unwrap_or_default();
        problem.contains("nodes 4 do not") && status["standing"] == "voting"
    };
    status_where(&homes[0], "waiting for node 4", waits).await?;

    // A withdrawn plan is not approved again, and the next one has a higher number.
    let dry = command(NODE, &["epoch", "withdraw", text(&homes[0]), "--dry-run"])?;
    ensure!(dry.contains("nothing has been changed") && homes[0].join("epoch-2-1").exists(), "{dry}");
    cluster.kill(1)?;
    command(NODE, &["epoch", "withdraw", text(&homes[0])])?;
    ensure!(!homes[0].join("epoch-2-1").exists(), "it is gone");
    let again = command(NODE, &["epoch", "approve", text(&homes[0]), text(&first)]).expect_err("withdrawn");
    ensure!(again.to_string().contains("needs a higher number"), "{again}");
    cluster.start_node(1, None)?;

    let new = homes[3].with_file_name("new-4");
    let (authority, listen) =
        (homes[3].with_file_name("ca.key"), cluster.files.addresses[3].address.to_string());
    let (new_text, like, authority) = (text(&new), text(&homes[0]), text(&authority));
    let make = ["federation", "replacement", new_text, "--id", "4", "--listen", &listen];
    command(NODE, &[&make[..], &["--like", like, "--authority", authority]].concat())?;
    cluster.files.nodes[3].clone_from(&new);
    cluster.start_node(4, None)?;
    let homes = cluster.files.nodes.clone();
    approve(&cluster, &[&new.join("member.json")], &homes)?;
    in_epoch(&homes, 2).await?;
    ensure!(
        homes[1].join("epoch-2-2/share.sealed").exists(),
        "the second plan is the one that was carried out"
    );
    Ok(())
}
