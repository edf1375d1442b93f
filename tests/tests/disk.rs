//! Disks that are full, read-only or cut off: a node says so in one sentence and does not vote on; the others go on.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster, PATIENCE, eventually,
    operator::{api, status},
    wallets::{PAYMENT_PATIENCE, federation, fund, open_wallet, request, wait_spendable},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(100_000);

/// A node on a disk of its own, which only it sees; it ends with this.
struct OnDisk {
    child: Child,
    place: PathBuf,
}

impl OnDisk {
    /// Whether this machine lets its users mount a disk that only they see. In CI it has to.
    fn is_possible() -> bool {
        let script = "mount -t tmpfs -o size=64k disk /mnt";
        let mounted =
            Command::new("unshare").args(["--map-root-user", "--mount", "sh", "-c", script]).output();
        let possible = mounted.is_ok_and(|mounted| mounted.status.success());
        assert!(
            possible || std::env::var_os("CI").is_none(),
            "CI has to allow mounts in a user's own namespace"
        );
        if !possible {
            eprintln!(
                "skipped: this machine does not let its users mount a disk (unshare --map-root-user --mount)"
            );
        }
        possible
    }

    /// Mounts a disk with these options in the place of a node's directory, copies that to it, makes it writable or
    /// not, and starts the node.
    fn start(home: &Path, options: &str, then: &str) -> Result<Self> {
        let place = home.with_extension("disk");
        fs::create_dir_all(&place)?;
        let script = format!(
            "mount -t tmpfs -o {options} disk '{place}' && cp -a '{home}'/. '{place}' && {then} && exec '{NODE}' run '{place}'",
            place = place.display(),
            home = home.display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script]);
        command.env("RUST_LOG", "error").env("NO_COLOR", "1");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child, place })
    }

    /// The directory as the node sees it.
    fn seen(&self) -> Result<PathBuf> {
        let inside = self.place.strip_prefix("/")?;
        Ok(PathBuf::from(format!("/proc/{}/root", self.child.id())).join(inside))
    }

    /// How it ended, and what it said.
    async fn ended(mut self) -> Result<(ExitStatus, String)> {
        let child = &mut self.child;
        eventually("the node ends", || matches!(child.try_wait(), Ok(Some(_)))).await?;
        let mut said = String::new();
        self.child.stderr.take().context("what it says")?.read_to_string(&mut said)?;
        Ok((self.child.wait()?, said))
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Writes until nothing fits any more.
fn fill(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path)?;
    for size in [64 * 1_024, 4_096, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    Ok(path)
}

async fn pay(payer: &Client, payee: &Client) -> Result<()> {
    let to = payee.next_address().await?;
    let paid = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, Amount::from_sat(5_000))?)).await;
    paid.context("a payment takes too long")??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_stops_and_the_others_go_on() -> Result<()> {
    if !OnDisk::is_possible() {
        return Ok(());
    }
    let mut cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    fund(&cluster.chain, &[payer.next_address().await?], 8, COIN)?;
    wait_spendable(&payer, COIN * 8).await?;
    let home = cluster.files.nodes.get(1).context("a node")?.clone();
    status(&home, "voting").await?;
    cluster.kill(2)?;
    let node = OnDisk::start(&home, "size=16m", "true")?;
    status(&home, "voting").await?;
    fill(&node.seen()?)?;
    let mut left = Box::pin(node.ended());
    // Its store has room for some records before it has to grow.
    let (status_code, said) = loop {
        tokio::select! {
            ended = &mut left => break ended?,
            paid = pay(&payer, &payee) => paid.context("the others are enough")?,
        }
        cluster.chain.mine(1, &quorate_tests::wallets::nobody())?;
    };
    ensure!(!status_code.success(), "{status_code}");
    ensure!(said.contains("No space left on device"), "{said}");
    ensure!(reqwest::get(format!("{}/health", api(&home)?)).await.is_err(), "it is gone");
    pay(&payer, &payee).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_read_only_disk_does_not_start() -> Result<()> {
    if !OnDisk::is_possible() {
        return Ok(());
    }
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes.get(2).context("a node")?.clone();
    status(&home, "voting").await?;
    cluster.kill(3)?;
    let place = home.with_extension("disk");
    let then = format!("mount -o remount,ro '{}'", place.display());
    let node = OnDisk::start(&home, "size=16m", &then)?;
    let (status_code, said) = timeout(PATIENCE, node.ended()).await??;
    ensure!(!status_code.success(), "{status_code}");
    ensure!(said.contains("Read-only file system") && said.lines().count() == 1, "{said}");
    Ok(())
}

/// What is left of a store that lost its end is kept for the operator, and costs the vote (V9).
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_cut_off_is_kept_aside() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes.get(3).context("a node")?.clone();
    status(&home, "voting").await?;
    cluster.kill(4)?;
    let store = home.join("store.redb");
    let length = fs::metadata(&store)?.len();
    fs::File::options().write(true).open(&store)?.set_len(length / 2)?;
    let index = home.join("index.redb");
    fs::File::options().write(true).open(&index)?.set_len(100)?;
    cluster.start_node(4, None)?;
    let lost = status(&home, "lost").await?;
    let reason = lost.get("reason").and_then(serde_json::Value::as_str).context("a reason")?;
    ensure!(reason.contains("damaged") && reason.contains("next epoch"), "{reason}");
    ensure!(home.join("store.damaged.redb").exists());
    Ok(())
}
