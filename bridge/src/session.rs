//! One wallet's WebSocket session: greeting, subscriptions through the hub, everything else relayed to a node.

use crate::{
    Bridge,
    hub::{SESSION_QUEUE_MAX, SessionId, ends_answer, ends_submission, submitted_by},
    upstream::lock,
};
use axum::extract::ws::{Message, WebSocket};
use bitcoin::Txid;
use quorate_protocol::wire::{
    ClientMessage, ErrorCode, Fault, ServerMessage, SubscriptionKey, WireError, decode, encode_text, limits,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};

/// Relayed requests of one session at a time.
const RELAYS_MAX: usize = 256;
/// Wait for the first node's snapshot of a new key.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait for a node's answer to a relayed query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// When a wallet should come back after a shutdown, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

type Queue = mpsc::Sender<(Option<u64>, ServerMessage)>;
/// Where the wallet's part of a signing session goes, by transaction.
type Signers = Arc<Mutex<HashMap<Txid, mpsc::Sender<(Option<u64>, ClientMessage)>>>>;

#[derive(Clone)]
struct Session {
    id: SessionId,
    bridge: Arc<Bridge>,
    queue: Queue,
    signers: Signers,
    relays: Arc<Semaphore>,
}

pub(crate) async fn serve(mut socket: WebSocket, bridge: Arc<Bridge>) {
    let id = bridge.next_session();
    let (queue, mut outgoing) = mpsc::channel(SESSION_QUEUE_MAX);
    lock(&bridge.hub).open(id, queue.clone());
    let relays = Arc::new(Semaphore::new(RELAYS_MAX));
    let session = Session { id, bridge: bridge.clone(), queue, signers: Signers::default(), relays };
    let mut greeted = false;
    let mut heard = Instant::now();
    let mut ping = tokio::time::interval_at(Instant::now() + limits::PING_INTERVAL, limits::PING_INTERVAL);
    let mut stopping = bridge.stopping.subscribe();
    let opened = Instant::now();
    loop {
        tokio::select! {
            message = socket.recv() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => session.handle(&mut greeted, text.as_str()).await,
                    Some(Ok(Message::Binary(_))) => {
                        let error = WireError::sender(ErrorCode::MalformedMessage, "send text frames");
                        session.answer(None, ServerMessage::Error { error }).await;
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                }
            }
            item = outgoing.recv() => {
                let Some((id, message)) = item else { break };
                let frame = Message::text(encode_text(id, &message));
                let written = timeout(limits::PING_INTERVAL, socket.send(frame)).await;
                if !matches!(written, Ok(Ok(()))) {
                    break;
                }
                if outgoing.is_empty() {
                    let keys = lock(&bridge.hub).take_gap(session.id);
                    if !keys.is_empty() && socket.send(Message::text(encode_text(None, &ServerMessage::Gap { keys }))).await.is_err() {
                        break;
                    }
                }
            }
            _ = ping.tick() => {
                let silent = heard.elapsed() > limits::PING_INTERVAL * 2;
                let mute = !greeted && opened.elapsed() > limits::HELLO_TIMEOUT;
                if silent || mute || socket.send(Message::Ping(axum::body::Bytes::new())).await.is_err() {
                    break;
                }
            }
            () = stopped(&mut stopping) => {
                let message = ServerMessage::GoingAway { retry_after: RETRY_AFTER_MS };
                let _gone = socket.send(Message::text(encode_text(None, &message))).await;
                break;
            }
        }
    }
    let abandoned = lock(&bridge.hub).close(session.id);
    bridge.upstream.end(abandoned);
    let _gone = socket.send(Message::Close(None)).await;
}

async fn stopped(stopping: &mut tokio::sync::watch::Receiver<bool>) {
    let _stopped = stopping.wait_for(|stopping| *stopping).await;
}

impl Session {
    async fn answer(&self, id: Option<u64>, message: ServerMessage) {
        // The session may have ended.
        let _ended = self.queue.send((id, message)).await;
    }

    async fn handle(&self, greeted: &mut bool, text: &str) {
        let (id, message) = match decode::<ClientMessage>(text.as_bytes()) {
            Ok(envelope) => (envelope.id, envelope.body),
            Err((id, error)) => return self.refuse(id, error),
        };
        match (&message, *greeted) {
            (ClientMessage::Hello { protocol, federation, .. }, false) => {
                match self.greet(*protocol, *federation) {
                    Ok(welcome) => {
                        *greeted = true;
                        self.queue_now(id, welcome);
                    }
                    Err(error) => self.refuse(id, error),
                }
            }
            (ClientMessage::Hello { .. }, true) => {
                self.refuse(id, WireError::sender(ErrorCode::AlreadyGreeted, "Hello comes once"));
            }
            (_, false) => {
                self.refuse(
                    id,
                    WireError::sender(ErrorCode::HelloExpected, "the first message has to be Hello"),
                );
            }
            (_, true) => self.dispatch(id, message).await,
        }
    }

    /// Queues an answer from the reading side. A queue that is full of the wallet's own unread answers ends the session.
    fn queue_now(&self, id: Option<u64>, message: ServerMessage) {
        if self.queue.try_send((id, message)).is_err() {
            let _already_closed = lock(&self.bridge.hub).close(self.id);
        }
    }

    fn refuse(&self, id: Option<u64>, error: WireError) {
        self.queue_now(id, ServerMessage::Error { error });
    }

    fn greet(
        &self,
        protocol: u32,
        pinned: Option<quorate_protocol::FederationId>,
    ) -> Result<ServerMessage, WireError> {
        let ours = self.bridge.federation;
        if protocol != limits::PROTOCOL_VERSION {
            let message = format!("this bridge speaks protocol {}, not {protocol}", limits::PROTOCOL_VERSION);
            return Err(WireError::sender(ErrorCode::UnsupportedProtocol, message));
        }
        if let Some(other) = pinned.filter(|pinned| *pinned != ours) {
            let message = format!("this bridge serves federation {ours}, not {other}");
            return Err(WireError::sender(ErrorCode::WrongFederation, message));
        }
        let tip = lock(&self.bridge.hub).tip().ok_or_else(no_node)?;
        let agent = concat!("quorate-bridge/", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(ServerMessage::Welcome { protocol, federation: ours, agent, tip })
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "everything that the bridge does not answer itself is relayed"
    )]
    async fn dispatch(&self, id: Option<u64>, message: ClientMessage) {
        match message {
            ClientMessage::Ping => self.queue_now(id, ServerMessage::Pong),
            ClientMessage::UTXOSubscribe { keys } if keys.len() <= limits::KEYS_PER_MESSAGE_MAX => {
                self.subscribe(id, keys);
            }
            ClientMessage::UTXOUnsubscribe { keys } => {
                let (count, abandoned) = lock(&self.bridge.hub).unsubscribe(self.id, &keys);
                self.bridge.upstream.end(abandoned);
                self.queue_now(id, ServerMessage::UTXOUnsubscribed { count });
            }
            ClientMessage::UTXOSubscribe { keys } => {
                let limit = limits::KEYS_PER_MESSAGE_MAX;
                self.refuse(
                    id,
                    WireError::limit(ErrorCode::LimitExceeded, "keys in a message", limit, keys.len()),
                );
            }
            ClientMessage::SignResponse { txid, .. } => {
                let signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner).get(&txid).cloned();
                let sent = match signers {
                    Some(relay) => relay.send((id, message)).await.is_ok(),
                    None => false,
                };
                if !sent {
                    self.refuse(id, coordinator_lost());
                }
            }
            other => match self.relays.clone().try_acquire_owned() {
                Ok(permit) => {
                    let session = self.clone();
                    tokio::spawn(async move {
                        session.relay(id, other).await;
                        drop(permit);
                    });
                }
                Err(_) => {
                    let error = WireError::limit(
                        ErrorCode::LimitExceeded,
                        "requests under way",
                        RELAYS_MAX,
                        RELAYS_MAX + 1,
                    );
                    self.refuse(id, WireError { retry: true, ..error });
                }
            },
        }
    }

    fn subscribe(&self, id: Option<u64>, keys: Vec<SubscriptionKey>) {
        let (refused, new) = lock(&self.bridge.hub).subscribe(self.id, &keys);
        if !new.is_empty() {
            self.bridge.upstream.begin(new);
        }
        let session = self.clone();
        tokio::spawn(async move {
            let ready = timeout(SNAPSHOT_TIMEOUT, async {
                loop {
                    let progress = session.bridge.upstream.progress.notified();
                    tokio::pin!(progress);
                    progress.as_mut().enable();
                    if lock(&session.bridge.hub).is_ready(&keys) {
                        return;
                    }
                    progress.await;
                }
            });
            if ready.await.is_ok() {
                lock(&session.bridge.hub).answer_subscription(session.id, id, &keys, &refused);
            } else {
                session.answer(id, ServerMessage::Error { error: no_node() }).await;
            }
        });
    }

    async fn relay(&self, id: Option<u64>, message: ClientMessage) {
        let Ok(mut relay) = self.bridge.upstream.open(id, &message).await else {
            return self.answer(id, ServerMessage::Error { error: no_node() }).await;
        };
        if let Some(txid) = submitted_by(&message) {
            let (sender, mut parts) = mpsc::channel(4);
            let own = sender.downgrade();
            self.signers.lock().unwrap_or_else(PoisonError::into_inner).insert(txid, sender);
            // Submitted again, it goes to another node; then nobody holds the sender of this relay and it ends.
            loop {
                tokio::select! {
                    part = parts.recv() => {
                        let Some((id, part)) = part else { break };
                        if relay.send(id, &part).await.is_err() {
                            self.answer(id, ServerMessage::Error { error: coordinator_lost() }).await;
                            break;
                        }
                    }
                    answer = relay.receive() => match answer {
                        Ok((id, answer)) => {
                            let last = ends_submission(&answer);
                            self.answer(id, answer).await;
                            if last {
                                break;
                            }
                        }
                        Err(_) => {
                            self.answer(id, ServerMessage::Error { error: coordinator_lost() }).await;
                            break;
                        }
                    },
                    () = self.queue.closed() => break,
                }
            }
            let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
            let own = own.upgrade();
            if own.is_some_and(|own| signers.get(&txid).is_some_and(|current| current.same_channel(&own))) {
                signers.remove(&txid);
            }
            return;
        }
        loop {
            match timeout(QUERY_TIMEOUT, relay.receive()).await {
                Ok(Ok((id, answer))) => {
                    let last = ends_answer(&answer);
                    self.answer(id, answer).await;
                    if last {
                        return;
                    }
                }
                Ok(Err(_)) | Err(_) => {
                    return self.answer(id, ServerMessage::Error { error: no_node() }).await;
                }
            }
        }
    }
}

fn no_node() -> WireError {
    WireError::passing(
        ErrorCode::NoNodeAvailable,
        Fault::Receiver,
        "no node is reachable at the moment; try again",
    )
}

fn coordinator_lost() -> WireError {
    let message = "the connection to the coordinating node was lost; submit it again";
    WireError::passing(ErrorCode::CoordinatorLost, Fault::Network, message)
}
