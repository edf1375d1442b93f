//! The Quorate bridge: many wallets over WebSocket, few QUIC connections to the nodes.
//!
//! It is not trusted with anything: it sees addresses and timing, can delay and refuse, and cannot forge a state,
//! because wallets verify everything themselves.

mod admission;
mod allowance;
mod alone;
pub mod cli;
mod config;
mod driver;
mod events;
mod facts;
mod fees;
mod frame;
mod hub;
mod interest;
mod listener;
mod machine;
mod metrics;
mod newcomers;
mod questions;
mod refusals;
mod relays;
mod session;
mod tips;
mod tls;
mod upstream;
mod websocket;
mod words;

/// The machine, for anybody who drives it without sockets.
pub mod sans_io {
    pub use crate::{
        interest::WalletId,
        machine::{Counters, Machine, Output},
        relays::{RelayId, ends_submission},
        session::Next,
        tips::LinkId,
    };
}

pub use config::{BridgeConfig, TlsFiles};
pub use quorate_quic::NodeAddress;

use admission::Refused;
use anyhow::{Context as _, Result};
use axum::{
    Extension, Json, Router,
    extract::{State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use driver::Driver;
use listener::{Door, Seat};
use machine::Machine;
use quorate_protocol::{
    FederationDocument, FederationId,
    wire::{ClientMessage, ServerMessage, limits},
};
use quorate_quic::{Renewal, TlsIdentity};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use upstream::Upstream;

/// Bytes that are read from a WebSocket at a time; a longer frame is put together from several.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// For sessions to say goodbye when the bridge stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// For a node to answer with the federation's document.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for which the federation's document is served without asking a node; a new epoch begins rarely.
const DOCUMENT_AGE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Bridge {
    federation: FederationId,
    driver: Arc<Driver>,
    /// The latest document known, and when it was fetched.
    document: tokio::sync::Mutex<Option<(Instant, FederationDocument)>>,
    stopping: watch::Sender<bool>,
    door: Arc<Door>,
    origins: Vec<String>,
    trusted_proxies: Vec<IpAddr>,
}

/// A running bridge.
#[derive(Debug)]
pub struct RunningBridge {
    address: SocketAddr,
    bridge: Arc<Bridge>,
    server: tokio::task::JoinHandle<()>,
}

impl RunningBridge {
    /// Starts a bridge with the identity in `directory`.
    ///
    /// # Errors
    /// Its files are missing or its port is taken.
    pub async fn start(directory: &Path, config: BridgeConfig) -> Result<Self> {
        let files = ["tls.pem", "tls.key"].map(|name| directory.join(name)).to_vec();
        let renewal = Renewal::new(files, tls::NAME.to_owned());
        let identity = TlsIdentity::read(directory)?;
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?;
        endpoint.set_default_client_config(identity.client_config()?);
        let upstream = Arc::new(Upstream::new(config.nodes.len()));
        let driver = Driver::start(Machine::new(config.federation, config.nodes.len()), upstream);
        for (index, node) in config.nodes.iter().cloned().enumerate() {
            tokio::spawn(events::keep_connected(driver.clone(), endpoint.clone(), index, node));
        }
        let certificates = config.tls.as_ref().map(|files| tls::watch_files(directory, files)).transpose()?;
        let bridge = Arc::new(Bridge {
            federation: config.federation,
            driver,
            document: tokio::sync::Mutex::default(),
            stopping: watch::Sender::new(false),
            door: Door::new(config.connections_max, config.sessions_per_address_max),
            origins: config.origins,
            trusted_proxies: config.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
        });
        let rotation =
            tls::keep_identity(directory.to_owned(), renewal, identity, bridge.stopping.subscribe());
        tokio::spawn(rotation);
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/", get(upgrade))
            .route("/federation", get(federation))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .layer(map_response(last))
            .with_state(bridge.clone());
        let (door, stopping) = (bridge.door.clone(), bridge.stopping.subscribe());
        let server = tokio::spawn(listener::run(listener, certificates, door, app, stopping));
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

    /// Tells every wallet when to come back, and closes. Those that do not listen are left after a few seconds.
    ///
    /// # Errors
    /// The server had failed.
    pub async fn shut_down(self) -> Result<()> {
        self.bridge.stopping.send_replace(true);
        self.server.await?;
        let _had_their_time = timeout(STOP_TIMEOUT, self.bridge.door.empty()).await;
        Ok(())
    }
}

/// An answer ends its connection: each question has to come in as a new one, past those that others hold.
async fn last(mut answer: Response) -> Response {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn upgrade(
    State(bridge): State<Arc<Bridge>>,
    Extension(seat): Extension<Arc<Seat>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !bridge.lets_in(&headers) {
        bridge.door.refuse_page();
        return (StatusCode::FORBIDDEN, "this page may not use this bridge\n").into_response();
    }
    let refused =
        |status: StatusCode, why: &'static str| (status, [(header::RETRY_AFTER, "5")], why).into_response();
    let allowance = match seat.take(bridge.address_of(seat.peer, &headers)) {
        Ok(allowance) => allowance,
        Err(Refused::Full) => return refused(StatusCode::SERVICE_UNAVAILABLE, "this bridge is full\n"),
        Err(Refused::Address) => {
            let why = "this address has as many sessions as it may\n";
            return refused(StatusCode::TOO_MANY_REQUESTS, why);
        }
    };
    upgrade
        .protocols([limits::PROTOCOL])
        .max_message_size(limits::FRAME_BYTES_MAX)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        // Held by each session for as long as it lasts: most say little.
        .read_buffer_size(READ_BUFFER_BYTES)
        .on_upgrade(async move |socket| {
            websocket::serve(socket, bridge.driver.clone(), allowance, bridge.stopping.subscribe()).await;
            drop(seat);
        })
}

impl Bridge {
    /// Whether the page that asks may; what is no browser does not say.
    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN).filter(|_| !self.origins.is_empty()) else {
            return true;
        };
        self.origins.iter().any(|known| known.as_bytes() == origin.as_bytes())
    }

    /// Where a connection comes from: as a trusted proxy says, or by TCP.
    fn address_of(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let is_proxy = |address: &IpAddr| self.trusted_proxies.contains(&address.to_canonical());
        if !is_proxy(&peer) {
            return peer;
        }
        // Each proxy adds the address that it has seen at the end; what stands before is what its client says.
        let lines = headers.get_all("x-forwarded-for").iter().rev().filter_map(|line| line.to_str().ok());
        let mut known = lines.flat_map(|line| line.rsplit(',')).map_while(|one| forwarded(one.trim()));
        known.find(|address| !is_proxy(address)).unwrap_or(peer)
    }
}

/// An address as proxies write it, some of them with the port.
fn forwarded(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse::<IpAddr>().ok().or_else(with_port)
}

async fn federation(State(bridge): State<Arc<Bridge>>) -> Response {
    let mut cached = bridge.document.lock().await;
    let fresh = |(at, document): &(Instant, FederationDocument)| {
        (at.elapsed() < DOCUMENT_AGE_MAX).then(|| document.clone())
    };
    if let Some(document) = cached.as_ref().and_then(fresh) {
        return Json(document).into_response();
    }
    // Who asks may leave in the middle.
    let older = cached.as_ref().map(|(_, document)| document.clone());
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
    let asked = async {
        let mut relay = bridge.driver.upstream.open(Some(1), &ClientMessage::FederationQuery).await?;
        relay.receive().await
    };
    let (_, answer) = timeout(DOCUMENT_TIMEOUT, asked).await.context("a node did not answer in time")??;
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
    let (connections, turned_away) = (bridge.door.sizes().0, bridge.door.turned_away());
    let text = bridge.driver.with(|machine, _| metrics::text(machine, connected, connections, turned_away));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
