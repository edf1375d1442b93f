//! A certificate of the federation in hands that mean it no good: what it may hold of a node, others do not notice.

use anyhow::{Context as _, Result, ensure};
use quorate::{
    client::TlsIdentity,
    wire::{ClientMessage, ServerMessage, decode, encode_frame, limits},
};
use quorate_quic::FrameReader;
use quorate_tests::{Cluster, PATIENCE, operator::status, process::memory};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{interval, timeout};

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
/// What one certificate may have of connections to a node.
const CONNECTIONS: usize = 16;
/// Messages that are begun on each and not ended, and what of each is said: 640 MB in all, ten times what may be read
/// of a certificate.
const BEGUN: usize = 40;
const SAID: usize = 1_000_000;
/// What a node holds more while they wait: what is read of a certificate, what waits unread on its connections, and
/// what the allocator keeps.
const GROWTH_MAX: u64 = 400_000_000;

async fn connect(cluster: &Cluster, client: &Path) -> Result<quinn::Connection> {
    let identity = TlsIdentity::read(client)?;
    let node = cluster.files.addresses.first().context("a node")?;
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    endpoint.set_default_client_config(identity.client_config()?);
    Ok(timeout(PATIENCE, endpoint.connect(node.address, "node-1.quorate")?).await??)
}

/// Whether the node answers on a connection.
async fn greeted(connection: &quinn::Connection) -> Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello =
        serde_json::json!({ "id": 1, "type": "Hello", "protocol": limits::PROTOCOL_VERSION }).to_string();
    let length = u32::try_from(hello.len())?.to_be_bytes();
    send.write_all(&[&length, hello.as_bytes()].concat()).await?;
    let mut answer = [0; 4];
    timeout(PATIENCE, receive.read_exact(&mut answer)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_certificate_holds_of_a_node_the_others_do_not_notice() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let client = &cluster.files.client;
    let home = cluster.files.nodes.first().context("a node")?;
    status(home, "voting").await?;
    let pid = cluster.pid(1).context("it runs")?;
    let before = memory(pid)?;

    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = connect(&cluster, client).await?;
        greeted(&connection).await?;
        connections.push(connection);
    }
    let one_more = connect(&cluster, client).await?;
    let reason = timeout(PATIENCE, one_more.closed()).await?;
    ensure!(reason.to_string().contains("too many connections"), "{reason}");

    // Messages that are begun and not ended.
    let (prefix, said) = (u32::try_from(limits::FRAME_BYTES_MAX)?.to_be_bytes(), vec![b' '; SAID]);
    let mut begun = tokio::task::JoinSet::new();
    for connection in &connections {
        for _ in 0..BEGUN {
            let (connection, said) = (connection.clone(), said.clone());
            begun.spawn(async move {
                let (mut send, mut receive) = connection.open_bi().await?;
                // It is stopped when there is no room.
                let _stopped = async {
                    send.write_all(&prefix).await?;
                    send.write_all(&said).await
                }
                .await;
                let _ended = receive.read_to_end(limits::FRAME_BYTES_MAX).await;
                anyhow::Ok(())
            });
        }
    }
    // The bridge has a certificate of its own, and is served meanwhile.
    let mut pause = interval(Duration::from_millis(50));
    let mut most = 0;
    loop {
        let document = reqwest::get(format!("http://{}/federation", cluster.bridge.address()));
        let document = timeout(Duration::from_secs(5), document).await.context("the bridge waits")??;
        ensure!(document.status().is_success(), "{document:?}");
        most = most.max(memory(pid)?);
        if begun.is_empty() {
            break;
        }
        tokio::select! {
            ended = begun.join_next() => ended.context("some are left")???,
            _ = pause.tick() => {}
        }
    }
    ensure!(most < before + GROWTH_MAX, "a node went from {before} to {most} bytes");
    // They have been given up, and there is room again for what is said whole.
    let first = connections.first().context("a connection")?;
    greeted(first).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_asks_faster_than_it_reads_is_not_read_from_and_loses_nothing() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let connection = connect(&cluster, &cluster.files.client).await?;
    let (mut send, receive) = connection.open_bi().await?;
    // Far more answers than may wait for a session.
    let (questions, padding) = (12_000_u64, "x".repeat(400));
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    let asking = tokio::spawn(async move {
        let hello = ClientMessage::Hello {
            protocol: limits::PROTOCOL_VERSION,
            federation: None,
            agent: "test".to_owned(),
        };
        send.write_all(&encode_frame(Some(0), &hello)).await?;
        for id in 1..=questions {
            // Longer than it need be: they do not fit into what may wait unread.
            let question =
                serde_json::json!({ "id": id, "type": "FederationQuery", "padding": padding }).to_string();
            let length = u32::try_from(question.len())?.to_be_bytes();
            send.write_all(&[&length, question.as_bytes()].concat()).await?;
            counter.store(id, Ordering::Relaxed);
        }
        anyhow::Ok(send)
    });
    // Until nothing is taken any more.
    let mut pause = interval(Duration::from_millis(250));
    let mut before = None;
    timeout(PATIENCE, async {
        while before.replace(asked.load(Ordering::Relaxed)) != Some(asked.load(Ordering::Relaxed)) {
            pause.tick().await;
        }
    })
    .await?;
    ensure!(asked.load(Ordering::Relaxed) < questions, "it is read from though it does not read");
    let mut frames = FrameReader::of::<ServerMessage>(receive);
    for id in 0..=questions {
        let frame = timeout(PATIENCE, frames.next()).await??.with_context(|| format!("no answer to {id}"))?;
        let answer = decode::<ServerMessage>(&frame).map_err(|(_, error)| error)?;
        ensure!(answer.id == Some(id), "{:?} in place of {id}", answer.id);
    }
    asking.await??.finish()?;
    Ok(())
}
