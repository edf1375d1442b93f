//! The Quorate bridge: many wallets over WebSocket, few QUIC connections to the nodes.
//!
//! It is not trusted with anything: it sees addresses and timing, can delay and refuse, and cannot forge a state,
//! because wallets verify everything themselves.

mod driver;
mod events;
mod fees;
mod hub;
mod machine;
mod metrics;
mod relays;
mod session;
mod tips;
mod upstream;
mod websocket;

/// The machine, for anybody who drives it without sockets.
pub mod sans_io {
    pub use crate::{
        hub::WalletId,
        machine::{Counters, Machine, Output},
        relays::{RelayId, ends_submission},
        session::Next,
        tips::LinkId,
    };
}

pub use quorate_quic::NodeAddress;

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    extract::{State, WebSocketUpgrade},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt as _,
};
use driver::Driver;
use machine::Machine;
use quorate_protocol::{
    FederationDocument, FederationId,
    wire::{ClientMessage, ServerMessage, limits},
};
use quorate_quic::TlsIdentity;
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::watch};
use upstream::Upstream;

/// Most sessions at a time; more are told to go elsewhere.
const SESSIONS_MAX: usize = 16_000;
/// Time for which the federation's document is served without asking a node; a new epoch begins rarely.
const DOCUMENT_AGE_MAX: Duration = Duration::from_secs(1);

/// `bridge.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// TCP address for WebSocket and HTTP; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// The federation that is served.
    pub federation: FederationId,
    /// The nodes.
    pub nodes: Vec<NodeAddress>,
}

impl BridgeConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, is not TOML, or has unknown or malformed keys.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }
}

#[derive(Debug)]
struct Bridge {
    federation: FederationId,
    driver: Arc<Driver>,
    /// The latest document known, and when it was fetched.
    document: tokio::sync::Mutex<Option<(Instant, FederationDocument)>>,
    stopping: watch::Sender<bool>,
}

/// A running bridge.
#[derive(Debug)]
pub struct RunningBridge {
    address: SocketAddr,
    bridge: Arc<Bridge>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl RunningBridge {
    /// Starts a bridge with the identity in `directory`.
    ///
    /// # Errors
    /// Its files are missing or its port is taken.
    pub async fn start(directory: &Path, config: BridgeConfig) -> Result<Self> {
        let identity = TlsIdentity::read(directory)?;
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?;
        endpoint.set_default_client_config(identity.client_config()?);
        let upstream = Arc::new(Upstream::new(config.nodes.len()));
        let driver = Driver::start(Machine::new(config.federation, config.nodes.len()), upstream);
        for (index, node) in config.nodes.iter().cloned().enumerate() {
            tokio::spawn(events::keep_connected(driver.clone(), endpoint.clone(), index, node));
        }
        let bridge = Arc::new(Bridge {
            federation: config.federation,
            driver,
            document: tokio::sync::Mutex::default(),
            stopping: watch::Sender::new(false),
        });
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/", get(upgrade))
            .route("/federation", get(federation))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .with_state(bridge.clone());
        // Small frames that answer each other must not wait for acknowledgements.
        let listener = listener.tap_io(|stream| {
            let _only_slower = stream.set_nodelay(true);
        });
        let mut stopping = bridge.stopping.subscribe();
        let stopped = async move {
            let _stopped = stopping.wait_for(|stopping| *stopping).await;
        };
        let server =
            tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await });
        Ok(Self { address, bridge, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nodes that it is connected to.
    pub fn connected_nodes(&self) -> usize {
        self.bridge.driver.upstream.connected()
    }

    /// Tells every wallet when to come back, and closes.
    ///
    /// # Errors
    /// The server had failed.
    pub async fn shut_down(self) -> Result<()> {
        self.bridge.stopping.send_replace(true);
        Ok(self.server.await??)
    }
}

async fn upgrade(State(bridge): State<Arc<Bridge>>, upgrade: WebSocketUpgrade) -> Response {
    if bridge.driver.with(|machine, _| machine.sizes().0) >= SESSIONS_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], "this bridge is full")
            .into_response();
    }
    upgrade
        .protocols([limits::PROTOCOL])
        .max_message_size(limits::FRAME_BYTES_MAX)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .on_upgrade(move |socket| {
            websocket::serve(socket, bridge.driver.clone(), bridge.stopping.subscribe())
        })
}

async fn federation(State(bridge): State<Arc<Bridge>>) -> Response {
    let mut cached = bridge.document.lock().await;
    let fresh = |(at, document): &(Instant, FederationDocument)| {
        (at.elapsed() < DOCUMENT_AGE_MAX).then(|| document.clone())
    };
    if let Some(document) = cached.as_ref().and_then(fresh) {
        return Json(document).into_response();
    }
    let older = cached.take().map(|(_, document)| document);
    match (fetch(&bridge).await, older) {
        // A node that is behind does not take the federation back to an earlier epoch.
        (Ok(document), older) => {
            let later = older.filter(|older| older.epoch() > document.epoch()).unwrap_or(document);
            *cached = Some((Instant::now(), later.clone()));
            Json(later).into_response()
        }
        (Err(_), Some(older)) => {
            *cached = Some((Instant::now(), older.clone()));
            Json(older).into_response()
        }
        (Err(error), None) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")).into_response(),
    }
}

async fn fetch(bridge: &Bridge) -> Result<FederationDocument> {
    let mut relay = bridge.driver.upstream.open(Some(1), &ClientMessage::FederationQuery).await?;
    let (_, answer) = relay.receive().await?;
    let ServerMessage::Federation { document } = answer else { anyhow::bail!("a node did not answer") };
    Ok(document.verify(bridge.federation)?.document().clone())
}

async fn health(State(bridge): State<Arc<Bridge>>) -> Response {
    let connected = bridge.driver.upstream.connected();
    let status = if connected > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "nodes_connected": connected }))).into_response()
}

async fn metrics(State(bridge): State<Arc<Bridge>>) -> Response {
    let connected = bridge.driver.upstream.connected();
    let text = bridge.driver.with(|machine, _| metrics::text(machine, connected));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
