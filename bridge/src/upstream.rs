//! Connections to the nodes: one per node, a shared stream of events on each, and a stream per relayed request.

use crate::hub::Hub;
use anyhow::{Context as _, Result};
use quorate_protocol::{
    NodeId,
    wire::{ClientMessage, Pages, ServerMessage, SubscriptionKey, decode, limits},
};
use quorate_quic::{FrameReader, TlsIdentity, server_name, write_message};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, broadcast, watch};

/// Wait before connecting to a node again.
const RECONNECT: Duration = Duration::from_millis(250);
/// How long a request waits for a node while none is connected.
const NOBODY_PATIENCE: Duration = Duration::from_secs(3);
/// Changes of interest that an event stream may lag behind; then it is opened anew.
const INTEREST_CHANGES_MAX: usize = 4_096;

/// A node's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number in the roster.
    pub id: NodeId,
    /// UDP address of its QUIC endpoint.
    pub address: SocketAddr,
}

#[derive(Clone, Debug)]
enum Interest {
    Begin(Vec<SubscriptionKey>),
    End(Vec<SubscriptionKey>),
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Upstream {
    links: Vec<watch::Sender<Option<quinn::Connection>>>,
    next: AtomicUsize,
    interests: broadcast::Sender<Interest>,
    hub: Arc<Mutex<Hub>>,
    /// Woken when a node's snapshots have been taken in.
    pub(crate) progress: Notify,
    /// Woken when a node is connected.
    up: Notify,
}

pub(crate) fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    pub(crate) fn start(
        identity: &TlsIdentity,
        nodes: &[NodeAddress],
        hub: Arc<Mutex<Hub>>,
    ) -> Result<Arc<Self>> {
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?;
        endpoint.set_default_client_config(identity.client_config()?);
        let (interests, _) = broadcast::channel(INTEREST_CHANGES_MAX);
        let links = nodes.iter().map(|_| watch::Sender::new(None)).collect();
        let upstream = Arc::new(Self {
            links,
            next: AtomicUsize::new(0),
            interests,
            hub,
            progress: Notify::new(),
            up: Notify::new(),
        });
        for (index, node) in nodes.iter().cloned().enumerate() {
            tokio::spawn(keep_connected(upstream.clone(), endpoint.clone(), index, node));
        }
        Ok(upstream)
    }

    /// Nodes that are connected.
    pub(crate) fn connected(&self) -> usize {
        self.links.iter().filter(|link| link.borrow().is_some()).count()
    }

    pub(crate) fn begin(&self, keys: Vec<SubscriptionKey>) {
        // No listener means no node; the keys are sent when one connects.
        let _no_node = self.interests.send(Interest::Begin(keys));
    }

    pub(crate) fn end(&self, keys: Vec<SubscriptionKey>) {
        if !keys.is_empty() {
            let _no_node = self.interests.send(Interest::End(keys));
        }
    }

    /// Opens a session stream to the next node in turn and sends a message on it.
    pub(crate) async fn open(&self, id: Option<u64>, message: &ClientMessage) -> Result<Relay> {
        // Between two epochs no node is there for a moment.
        let up = async {
            loop {
                let change = self.up.notified();
                if self.connected() > 0 {
                    return;
                }
                change.await;
            }
        };
        let _nobody_in_time = tokio::time::timeout(NOBODY_PATIENCE, up).await;
        let count = self.links.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let live = (0..count).filter_map(|step| self.links.get((first + step) % count)?.borrow().clone());
        for connection in live.collect::<Vec<_>>() {
            if let Ok((send, receive)) = connection.open_bi().await {
                let mut relay = Relay::new(send, receive);
                if relay.send(None, &hello()).await.is_ok() && relay.send(id, message).await.is_ok() {
                    return Ok(relay);
                }
            }
        }
        anyhow::bail!("no node is reachable at the moment")
    }
}

fn hello() -> ClientMessage {
    let agent = concat!("quorate-bridge/", env!("CARGO_PKG_VERSION")).to_owned();
    ClientMessage::Hello { protocol: limits::PROTOCOL_VERSION, federation: None, agent }
}

/// A session stream to one node.
#[derive(Debug)]
pub(crate) struct Relay {
    send: quinn::SendStream,
    frames: FrameReader,
}

impl Relay {
    fn new(send: quinn::SendStream, receive: quinn::RecvStream) -> Self {
        Self { send, frames: FrameReader::of::<ServerMessage>(receive) }
    }

    pub(crate) async fn send(&mut self, id: Option<u64>, message: &ClientMessage) -> Result<()> {
        Ok(write_message(&mut self.send, id, message).await?)
    }

    /// The next message of the node but its greeting. Cancelling it loses nothing.
    pub(crate) async fn receive(&mut self) -> Result<(Option<u64>, ServerMessage)> {
        loop {
            let json = self.frames.next().await?.context("the node closed the stream")?;
            let envelope = decode::<ServerMessage>(&json).map_err(|(_, error)| error)?;
            if !matches!(envelope.body, ServerMessage::Welcome { .. }) {
                return Ok((envelope.id, envelope.body));
            }
        }
    }
}

async fn keep_connected(upstream: Arc<Upstream>, endpoint: quinn::Endpoint, index: usize, node: NodeAddress) {
    loop {
        if let Err(error) = connected(&upstream, &endpoint, index, &node).await {
            tracing::debug!(node = %node.id, error = format!("{error:#}"), "not connected to a node");
        }
        if let Some(link) = upstream.links.get(index) {
            link.send_replace(None);
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn connected(
    upstream: &Upstream,
    endpoint: &quinn::Endpoint,
    index: usize,
    node: &NodeAddress,
) -> Result<()> {
    let connection = endpoint.connect(node.address, &server_name(node.id))?.await?;
    let (send, receive) = connection.open_bi().await?;
    let mut events = Relay::new(send, receive);
    let mut interests = upstream.interests.subscribe();
    events.send(None, &hello()).await?;
    subscribe(&mut events, vec![SubscriptionKey::Tip]).await?;
    let keys = lock(&upstream.hub).keys();
    subscribe(&mut events, keys).await?;
    // The first answer shows that the node is ready to serve.
    let (_, first) = events.receive().await?;
    let mut pages = Pages::default();
    take(upstream, &mut pages, first)?;
    if let Some(link) = upstream.links.get(index) {
        link.send_replace(Some(connection));
        upstream.up.notify_waiters();
    }
    tracing::info!(node = %node.id, "connected to a node");
    loop {
        tokio::select! {
            event = events.receive() => take(upstream, &mut pages, event?.1)?,
            change = interests.recv() => match change.context("fell behind; connecting anew")? {
                Interest::Begin(keys) => subscribe(&mut events, keys).await?,
                Interest::End(keys) => {
                    // A key may have found a new subscriber since.
                    let wanted = lock(&upstream.hub).keys();
                    let keys: Vec<_> = keys.into_iter().filter(|key| !wanted.contains(key)).collect();
                    for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
                        events.send(None, &ClientMessage::UTXOUnsubscribe { keys: keys.to_vec() }).await?;
                    }
                }
            }
        }
    }
}

async fn subscribe(events: &mut Relay, keys: Vec<SubscriptionKey>) -> Result<()> {
    for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
        events.send(None, &ClientMessage::UTXOSubscribe { keys: keys.to_vec() }).await?;
    }
    Ok(())
}

fn take(upstream: &Upstream, pages: &mut Pages, message: ServerMessage) -> Result<()> {
    let mut hub = lock(&upstream.hub);
    match message {
        ServerMessage::UTXOStateNotification { key, utxo, proof, .. } => {
            hub.notify(&key, &utxo, proof.map(|proof| *proof));
        }
        ServerMessage::UTXOSubscribed { results, tip, more } => {
            hub.take_tip(tip);
            if let Some(results) = pages.take(results, more) {
                for result in results {
                    hub.take_result(result);
                }
                drop(hub);
                upstream.progress.notify_waiters();
            }
        }
        ServerMessage::TransactionStatus { txid, status } => hub.take_status(txid, &status),
        ServerMessage::Tip { tip } => hub.take_tip(tip),
        ServerMessage::Error { error } => return Err(error.into()),
        ServerMessage::Welcome { .. }
        | ServerMessage::UTXOUnsubscribed { .. }
        | ServerMessage::UTXOStateResponse { .. }
        | ServerMessage::SignRequest { .. }
        | ServerMessage::AccountCertified { .. }
        | ServerMessage::Federation { .. }
        | ServerMessage::Headers { .. }
        | ServerMessage::Proof { .. }
        | ServerMessage::FeeRate { .. }
        | ServerMessage::Gap { .. }
        | ServerMessage::GoingAway { .. }
        | ServerMessage::Pong => {}
    }
    Ok(())
}
