//! A bridge among people who mean it no good: connections that say nothing, sessions that do not read, frames that are
//! none, pages that may not, and its own certificate.

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use quorate::wire::limits;
use quorate_bridge::{BridgeConfig, RunningBridge, TlsFiles};
use quorate_tests::{Bridge, Cluster, PATIENCE};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::json;
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{interval, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        http::{HeaderValue, StatusCode},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
/// What a bridge gives a connection to become a session, and some more.
const REQUEST_PATIENCE: Duration = Duration::from_secs(15);

/// A bridge of its own beside that of the federation, which nobody else uses.
async fn bridge(cluster: &Cluster, change: impl FnOnce(&mut BridgeConfig)) -> Result<RunningBridge> {
    let home = &cluster.files.bridge;
    let mut config = BridgeConfig::read(&home.join("bridge.toml"))?;
    change(&mut config);
    let bridge = RunningBridge::start(home, config).await?;
    timeout(PATIENCE, async {
        let mut pause = interval(Duration::from_millis(5));
        while bridge.connected_nodes() < 4 {
            pause.tick().await;
        }
    })
    .await
    .context("the nodes are not there")?;
    Ok(bridge)
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(address: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}").into_client_request()?;
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a header"));
    }
    tokio_tungstenite::connect_async(request).await.map(|(socket, _)| socket)
}

fn status(answer: Result<Socket, Error>) -> Result<StatusCode> {
    match answer {
        Ok(_) => Ok(StatusCode::SWITCHING_PROTOCOLS),
        Err(Error::Http(answer)) => Ok(answer.status()),
        Err(other) => Err(other.into()),
    }
}

fn hello() -> Message {
    Message::text(json!({ "id": 1, "type": "Hello", "protocol": limits::PROTOCOL_VERSION }).to_string())
}

async fn greeted(address: SocketAddr) -> Result<Socket> {
    let mut socket = connect(address, &[]).await?;
    socket.send(hello()).await?;
    let answer = timeout(PATIENCE, socket.next()).await?.context("an answer")??;
    ensure!(answer.to_text()?.contains("Welcome"), "{answer}");
    Ok(socket)
}

/// Waits until a gauge of the bridge has a value.
async fn gauge(address: SocketAddr, name: &str, wanted: usize) -> Result<()> {
    let line = format!("quorate_bridge_{name} {wanted}");
    let mut last = String::new();
    let asked = async {
        let mut pause = interval(Duration::from_millis(50));
        loop {
            pause.tick().await;
            if let Ok(answer) = reqwest::get(format!("http://{address}/metrics")).await {
                let ends = answer.headers().get("connection").is_some_and(|value| value == "close");
                assert!(ends, "a connection is for one question");
                last = answer.text().await.unwrap_or_default();
            }
            if last.lines().any(|found| found == line) {
                return;
            }
        }
    };
    timeout(PATIENCE, asked).await.with_context(|| format!("never {line}: {last}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_send_and_do_not_read_end_and_leave_nothing() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = bridge(&cluster, |_| ()).await?;
    let address = bridge.address();
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut socket = greeted(address).await?;
        // Each is answered, and nobody reads the answers. Who is not read from any more has sent enough.
        let flood = async {
            for _ in 0..4_000 {
                socket.feed(Message::binary(vec![0; 64])).await?;
            }
            socket.flush().await
        };
        let _closed_or_stuck = timeout(Duration::from_millis(200), flood).await;
        stuck.push(socket);
    }
    // Others are served meanwhile.
    let mut other = greeted(address).await?;
    other.send(Message::text(json!({ "id": 2, "type": "Ping" }).to_string())).await?;
    let answer = timeout(PATIENCE, other.next()).await?.context("an answer")??;
    ensure!(answer.to_text()?.contains("Pong"), "{answer}");
    // Who stays and is silent is let go after two pings (`session.rs`); who goes is gone at once.
    drop(stuck);
    gauge(address, "sessions", 1).await?;
    // The last session, and who asks for the metrics.
    gauge(address, "connections", 2).await?;
    bridge.shut_down().await
}

/// The other direction: more is answered than the network holds, and the wallet stays and reads none of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_stays_and_reads_nothing_is_let_go() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = bridge(&cluster, |_| ()).await?;
    let address = bridge.address();
    let mut stuck = greeted(address).await?;
    let keys: Vec<_> =
        (0..limits::KEYS_PER_MESSAGE_MAX).map(|key| json!({ "script": format!("51{key:04x}") })).collect();
    let subscribe = json!({ "id": 2, "type": "UTXOSubscribe", "keys": keys }).to_string();
    for _ in 0..60 {
        stuck.send(Message::text(subscribe.clone())).await?;
    }
    gauge(address, "sessions", 0).await?;
    drop(stuck);
    bridge.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_keep_nobody_out_and_are_closed() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = bridge(&cluster, |config| config.connections_max = 40).await?;
    let address = bridge.address();
    let mut held = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(address).await?;
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await?;
        }
        held.push(stream);
    }
    let sessions = [greeted(address).await?, greeted(address).await?];
    let open = held.iter().filter(|stream| {
        stream.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    ensure!(open.count() > 0, "they come in while others hold theirs");
    for mut stream in held {
        let closed = async { while stream.read(&mut [0; 256]).await.is_ok_and(|count| count > 0) {} };
        timeout(REQUEST_PATIENCE, closed).await.context("a connection is held open")?;
    }
    gauge(address, "sessions", sessions.len()).await?;
    bridge.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_without_descriptors_serves_those_it_has_and_loses_no_node() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = Bridge::start_with_descriptors(&cluster.files.bridge, Path::new(NODE), 200)?;
    bridge.connected(|nodes| nodes == 4).await?;
    let address = bridge.address();
    let mut first = greeted(address).await?;
    // More than it may have open, which half say something.
    let mut held = Vec::new();
    for number in 0..260 {
        let mut stream = TcpStream::connect(address).await?;
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await?;
        }
        held.push(stream);
    }
    let second = greeted(address).await?;
    // As many sessions as it takes.
    let mut sessions = vec![second];
    let refused = loop {
        ensure!(sessions.len() < 260, "more sessions than it has descriptors");
        match connect(address, &[]).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    ensure!(status(Err(refused))? == StatusCode::SERVICE_UNAVAILABLE);
    first.send(Message::text(r#"{"id":2,"type":"FeeRateQuery"}"#)).await?;
    let answer = timeout(PATIENCE, first.next()).await?.context("an answer")??;
    ensure!(answer.to_text()?.contains("FeeRate"), "who is in is served: {answer}");
    drop(sessions);
    drop(held);
    let room = async {
        let mut pause = interval(Duration::from_millis(20));
        while greeted(address).await.is_err() {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, room).await.context("it takes new ones when others have left")?;
    bridge.connected(|nodes| nodes == 4).await
}

/// Subscribes to so many scripts of 200 bytes, a message of a thousand after the other.
async fn subscribe(socket: &mut Socket, first: usize, count: usize) -> Result<()> {
    for message in 0..count.div_ceil(limits::KEYS_PER_MESSAGE_MAX) {
        let from = first + message * limits::KEYS_PER_MESSAGE_MAX;
        let keys = (from..first + count).take(limits::KEYS_PER_MESSAGE_MAX);
        let keys: Vec<_> = keys.map(|number| json!({ "script": format!("{number:0400x}") })).collect();
        let id = from + 2;
        socket
            .send(Message::text(json!({ "id": id, "type": "UTXOSubscribe", "keys": keys }).to_string()))
            .await?;
        let answer = timeout(PATIENCE, socket.next()).await?.context("an answer")??;
        let answer: serde_json::Value = serde_json::from_str(answer.to_text()?)?;
        let results = answer.get("results").and_then(|results| results.as_array()).context("results")?;
        let refused = results.iter().find(|result| result.get("error").is_some());
        ensure!(answer.get("id") == Some(&json!(id)) && refused.is_none(), "{refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_with_more_keys_than_a_node_tells_of_at_once_comes_back_to_it() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let address = cluster.bridge.address();
    // Of these, questions and answers are more than waits in either direction.
    let mut sessions = Vec::new();
    for session in 0..5 {
        let mut socket = greeted(address).await?;
        subscribe(&mut socket, session * 10_000, limits::KEYS_PER_SESSION_MAX).await?;
        sessions.push(socket);
    }
    for node in 1..=4 {
        cluster.kill(node)?;
    }
    cluster.bridge.connected(|nodes| nodes == 0).await?;
    for node in 1..=4 {
        cluster.start_node(node, None)?;
    }
    cluster.connected(4).await?;
    let mut socket = greeted(address).await?;
    subscribe(&mut socket, 1_000_000, 1).await.context("nodes answer what is asked after all these")
}

/// Says something on a session's connection below its frames; gives the close frame that comes back.
async fn closed_with(address: SocketAddr, bytes: &[u8]) -> Result<Option<CloseFrame>> {
    let mut socket = greeted(address).await?;
    let MaybeTlsStream::Plain(stream) = socket.get_mut() else { anyhow::bail!("no TLS here") };
    stream.write_all(bytes).await?;
    loop {
        match timeout(PATIENCE, socket.next()).await? {
            Some(Ok(Message::Close(frame))) => return Ok(frame),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(None),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_frame_is_answered_by_the_code_that_says_so() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = bridge(&cluster, |_| ()).await?;
    let address = bridge.address();
    let code = |frame: Option<CloseFrame>| frame.map(|frame| frame.code);
    // A frame of a client that is not masked; one with a reserved bit.
    for bytes in [&[0x81, 0x01, b'a'][..], &[0xf1, 0x80, 0, 0, 0, 0]] {
        ensure!(code(closed_with(address, bytes).await?) == Some(CloseCode::Protocol), "{bytes:?}");
    }
    let no_text = [0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28];
    ensure!(code(closed_with(address, &no_text).await?) == Some(CloseCode::Invalid));
    let too_long = [&[0x81, 0xff][..], &(1_u64 << 21).to_be_bytes(), &[0; 4]].concat();
    ensure!(code(closed_with(address, &too_long).await?) == Some(CloseCode::Size));

    // A close is answered by a close, with its code.
    let mut socket = greeted(address).await?;
    socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).await?;
    let answer = timeout(PATIENCE, socket.next()).await?.context("an answer")??;
    ensure!(matches!(&answer, Message::Close(Some(frame)) if frame.code == CloseCode::Normal), "{answer:?}");

    // A bridge that stops says so.
    let mut waiting = greeted(address).await?;
    let stopped = tokio::spawn(bridge.shut_down());
    let mut told = Vec::new();
    while let Some(Ok(message)) = timeout(PATIENCE, waiting.next()).await? {
        told.push(message);
    }
    ensure!(told.first().is_some_and(|first| first.to_string().contains("GoingAway")), "{told:?}");
    let away =
        |message: &Message| matches!(message, Message::Close(Some(frame)) if frame.code == CloseCode::Away);
    ensure!(told.last().is_some_and(away), "{told:?}");
    stopped.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_addresses_are_let_in_as_the_operator_says() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let bridge = bridge(&cluster, |config| {
        config.origins = vec!["https://shop.example".to_owned()];
        config.trusted_proxies = vec![IpAddr::from([127, 0, 0, 1])];
        config.sessions_per_address_max = 2;
    })
    .await?;
    let address = bridge.address();
    let other_page = connect(address, &[("origin", "https://evil.example")]).await;
    ensure!(status(other_page)? == StatusCode::FORBIDDEN);
    gauge(address, "sessions_refused_page_total", 1).await?;
    let page = connect(address, &[("origin", "https://shop.example")]).await;
    ensure!(status(page)? == StatusCode::SWITCHING_PROTOCOLS);

    let from = async |forwarded: &str| connect(address, &[("x-forwarded-for", forwarded)]).await;
    let held = [from("203.0.113.7").await?, from("203.0.113.7").await?];
    ensure!(status(from("203.0.113.7").await)? == StatusCode::TOO_MANY_REQUESTS);
    // What a wallet says of itself stands before what the proxy has seen.
    ensure!(status(from("198.51.100.1, 203.0.113.7").await)? == StatusCode::TOO_MANY_REQUESTS);
    ensure!(status(from("198.51.100.1, 203.0.113.7:4711").await)? == StatusCode::TOO_MANY_REQUESTS);
    gauge(address, "sessions_refused_address_total", 3).await?;
    ensure!(status(from("203.0.113.7, 198.51.100.1").await)? == StatusCode::SWITCHING_PROTOCOLS);
    drop(held);
    let mut pause = interval(Duration::from_millis(20));
    let again = async {
        while from("203.0.113.7").await.is_err() {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, again).await.context("its room is not given back")?;
    bridge.shut_down().await
}

/// A certificate for `localhost` that signs itself, into the bridge's files.
fn new_certificate(home: &Path) -> Result<RootCertStore> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(home.join("wallets.pem"), made.cert.pem())?;
    std::fs::write(home.join("wallets.key"), made.signing_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    Ok(roots)
}

/// Asks over TLS for the bridge's health.
async fn health(address: SocketAddr, roots: &RootCertStore) -> Result<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    // The connection is closed after the answer.
    let _closed = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8(answer)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_has_its_own_certificate_and_takes_a_new_one_without_a_restart() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let first = new_certificate(&cluster.files.bridge)?;
    let tls = TlsFiles { certificate: "wallets.pem".into(), key: "wallets.key".into() };
    let bridge = bridge(&cluster, |config| config.tls = Some(tls)).await?;
    let address = bridge.address();
    let answer = health(address, &first).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("nodes_connected"), "{answer}");
    // Who speaks without TLS is held off.
    ensure!(connect(address, &[]).await.is_err());
    let second = new_certificate(&cluster.files.bridge)?;
    let renewed = async {
        let mut pause = interval(Duration::from_millis(100));
        while health(address, &second).await.is_err() {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, renewed).await.context("the new certificate is not used")?;
    ensure!(health(address, &first).await.is_err(), "the one of before is gone");
    bridge.shut_down().await
}
