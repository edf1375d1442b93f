//! Certificates that change while everything runs: renewed ones are shown, revoked ones count no more.

use anyhow::{Context as _, Result, ensure};
use quorate::client::{Quic, TlsIdentity, Transport as _};
use quorate_tests::{
    Cluster, PATIENCE,
    operator::{command, status},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{interval, timeout};

const NODE: &str = env!("CARGO_BIN_EXE_test-node");

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

fn home(cluster: &Cluster, number: usize) -> Result<PathBuf> {
    cluster.files.nodes.get(number - 1).cloned().context("no such node")
}

/// The certificate that a node shows to a client, if it takes the client's.
async fn shown(cluster: &Cluster, client: &Path, number: usize) -> Result<Vec<u8>> {
    let identity = TlsIdentity::read(client)?;
    let node = cluster.files.addresses.get(number - 1).context("no such node")?;
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    endpoint.set_default_client_config(identity.client_config()?);
    let name = format!("node-{number}.quorate");
    let connection = timeout(PATIENCE, endpoint.connect(node.address, &name)?).await??;
    // A server's refusal of the client's certificate comes after the client's handshake.
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&[0, 0, 0, 2, b'{', b'}']).await?;
    let mut answer = [0; 4];
    timeout(PATIENCE, receive.read_exact(&mut answer)).await?.context("refused")?;
    let chain = connection.peer_identity().context("a certificate")?;
    let chain =
        chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok().context("a chain")?;
    Ok(chain.first().context("a certificate")?.to_vec())
}

/// The address of a node's chain backend.
fn chain_url(home: &Path) -> Result<String> {
    let config = fs::read_to_string(home.join("node.toml"))?;
    let url = config.lines().find_map(|line| line.strip_prefix("url = ")).context("a backend")?;
    Ok(url.trim_matches('"').to_owned())
}

/// Looks again until it is as wanted.
async fn looks(what: &str, mut wanted: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let looking = async {
        let mut pause = interval(Duration::from_millis(200));
        while !wanted().await? {
            pause.tick().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, looking).await.with_context(|| format!("never: {what}"))?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let node = home(&cluster, 2)?;
    status(&node, "voting").await?;
    let client = cluster.files.client.clone();
    let before = shown(&cluster, &client, 2).await?;
    let (certificate, authority) = (node.join("tls.pem"), node.with_file_name("ca.key"));
    let said = command(NODE, &["federation", "renew", text(&certificate), "--authority", text(&authority)])?;
    ensure!(said.contains("renewed for node 2"), "{said}");
    looks("the new certificate", async || Ok(shown(&cluster, &client, 2).await? != before)).await?;
    let renewed = shown(&cluster, &client, 2).await?;
    // Another node's is not used. That it was looked at is seen by who is revoked after it, at the same look.
    let spare = node.with_file_name("spare");
    command(
        NODE,
        &["federation", "issue", text(&spare), "--role", "client", "--authority", text(&authority)],
    )?;
    shown(&cluster, &spare, 2).await.context("a new client is taken")?;
    let good = fs::read(&certificate)?;
    fs::copy(home(&cluster, 1)?.join("tls.pem"), &certificate)?;
    let revoked = spare.join("tls.pem");
    command(NODE, &["federation", "revoke", text(&node), "--certificate", text(&revoked)])?;
    looks("the look after", async || Ok(shown(&cluster, &spare, 2).await.is_err())).await?;
    ensure!(shown(&cluster, &client, 2).await? == renewed, "another node's certificate is shown");
    // Nor is another authority's.
    let other = tempfile::tempdir()?;
    let foreign = other.path().join("foreign");
    command(NODE, &["federation", "new", text(&foreign), "--nodes", "4", "--chain-url", &chain_url(&node)?])?;
    let wrong = foreign.join("ca.key");
    let refused = command(NODE, &["federation", "renew", text(&certificate), "--authority", text(&wrong)]);
    ensure!(refused.expect_err("another authority").to_string().contains("another authority"));
    fs::write(&certificate, good)?;
    status(&node, "voting").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_bridge_is_shut_out_at_once_and_comes_back_with_a_new_key() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let (first, authority) = (home(&cluster, 1)?, home(&cluster, 1)?.with_file_name("ca.key"));
    let bridge = cluster.files.bridge.clone();
    let spare = bridge.with_file_name("spare");
    let issue = ["federation", "issue", text(&spare), "--role", "client", "--authority", text(&authority)];
    command(NODE, &issue)?;
    ensure!(command(NODE, &issue).is_err(), "nothing is overwritten");
    shown(&cluster, &spare, 1).await.context("a new client is taken")?;

    let certificate = |home: &Path| home.join("tls.pem");
    let refused =
        command(NODE, &["federation", "revoke", text(&first), "--certificate", text(&certificate(&first))]);
    ensure!(refused.expect_err("a node").to_string().contains("next epoch"));
    for node in &cluster.files.nodes {
        for revoked in [certificate(&bridge), certificate(&spare)] {
            command(NODE, &["federation", "revoke", text(node), "--certificate", text(&revoked)])?;
        }
    }
    cluster.bridge.connected(|nodes| nodes == 0).await.context("the bridge is shut out")?;
    looks("the client is shut out", async || Ok(shown(&cluster, &spare, 1).await.is_err())).await?;
    let identity = TlsIdentity::read(&cluster.files.client)?;
    let nodes = cluster.files.addresses.iter().map(|node| (node.id, node.address)).collect();
    Quic::new(&identity, nodes)?.connect().await.context("another client is taken as before")?;

    // A new key for the bridge, while it runs.
    let new = bridge.with_file_name("new-bridge");
    command(NODE, &["federation", "issue", text(&new), "--role", "bridge", "--authority", text(&authority)])?;
    for name in ["tls.key", "tls.pem"] {
        fs::copy(new.join(name), bridge.join(name))?;
    }
    cluster.connected(4).await
}
