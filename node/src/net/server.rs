//! Incoming connections: peers' requests and wallets' sessions, by the role of their certificate.

use super::{
    membership::{Membership, Role},
    not_ready,
    peers::certificate_of,
};
use crate::{
    epoch::driver::{EpochRequest, Question, ask_epochs},
    run::{
        input::Input,
        live::{Live, ask_voter},
    },
};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use quorate_protocol::wire::{
    ClientMessage, ErrorCode, PeerReply, PeerRequest, ServerMessage, WireError, decode, encode_frame,
};
use quorate_quic::{FrameReader, read_message, write_message};
use quorate_rules::{Peer, SessionId};
use rustls::{pki_types::UnixTime, server::danger::ClientCertVerifier};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, watch};

/// Frames that are written at once.
const TOGETHER_MAX: usize = 64;
/// Frames that may wait for a slow session before it is closed.
const SESSION_FRAMES_MAX: usize = 8_192;

/// Messages of a session that may stand in line for the machine.
const SESSION_INPUTS_MAX: usize = 4;
/// Time between two looks at whether the certificate of a connection still holds.
const VALIDITY_CHECK: Duration = Duration::from_secs(3_600);

/// What the server's tasks share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) membership: Arc<Membership>,
    verifier: Arc<dyn ClientCertVerifier>,
    epochs: mpsc::Sender<Question>,
    /// Absent until the first key is there.
    live: watch::Sender<Option<Live>>,
    next_session: AtomicU64,
}

impl Service {
    pub(crate) fn new(
        membership: Arc<Membership>,
        verifier: Arc<dyn ClientCertVerifier>,
        epochs: mpsc::Sender<Question>,
    ) -> Self {
        Self { membership, verifier, epochs, live: watch::Sender::new(None), next_session: AtomicU64::new(1) }
    }

    pub(crate) fn go_live(&self, live: Live) {
        self.membership.open(live.federation.members().to_vec());
        self.live.send_replace(Some(live));
    }

    fn live(&self) -> Option<Live> {
        self.live.borrow().clone()
    }
}

pub(crate) async fn accept(endpoint: quinn::Endpoint, service: Arc<Service>) {
    while let Some(incoming) = endpoint.accept().await {
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(incoming, service).await {
                tracing::debug!(error = format!("{error:#}"), "a connection ended");
            }
        });
    }
}

async fn serve(incoming: quinn::Incoming, service: Arc<Service>) -> Result<()> {
    let connection = incoming.await?;
    let certificate = certificate_of(&connection).context("no client certificate")?;
    let mut changes = service.membership.changes();
    let mut hour = tokio::time::interval(VALIDITY_CHECK);
    loop {
        let stream = tokio::select! {
            stream = connection.accept_bi() => Some(stream?),
            _ = changes.changed() => None,
            _ = hour.tick() => {
                if service.verifier.verify_client_cert(&certificate, &[], UnixTime::now()).is_err() {
                    connection.close(1_u8.into(), b"the certificate does not hold any more");
                    return Ok(());
                }
                None
            }
        };
        // Who was replaced or revoked since it connected has no role any more.
        let Some(role) = service.membership.role(&certificate) else {
            connection.close(1_u8.into(), b"replaced or revoked");
            return Ok(());
        };
        let Some((send, receive)) = stream else { continue };
        let service = service.clone();
        tokio::spawn(async move {
            let ended = match role {
                Role::Node(peer) => serve_peer(peer, send, receive, &service).await,
                Role::Bridge | Role::Client => serve_session(send, receive, &service).await,
            };
            if let Err(error) = ended {
                tracing::debug!(error = format!("{error:#}"), ?role, "a stream ended");
            }
        });
    }
}

async fn serve_peer(
    from: Peer,
    mut send: quinn::SendStream,
    receive: quinn::RecvStream,
    service: &Service,
) -> Result<()> {
    let Some(json) = read_message::<PeerRequest>(receive).await? else { return Ok(()) };
    let reply = match decode::<PeerRequest>(&json) {
        Ok(envelope) => answer(from, envelope.body, service).await,
        Err((_, error)) => error.into(),
    };
    write_message(&mut send, None, &reply).await?;
    Ok(send.finish()?)
}

/// Hands a request to the part of this node that answers such.
async fn answer(peer: Peer, request: PeerRequest, service: &Service) -> PeerReply {
    let request = match request {
        PeerRequest::Keygen(request) => EpochRequest::Keygen(request),
        PeerRequest::Succession(request) => EpochRequest::Succession(request),
        PeerRequest::Repair(request) => EpochRequest::Repair(request),
        PeerRequest::Voting(_) if !service.membership.is_present(&peer) => {
            let message = "a member of the next epoch has no part in this one";
            return WireError::sender(ErrorCode::WrongRole, message).into();
        }
        PeerRequest::Voting(request) => {
            let Some(live) = service.live() else {
                return not_ready("the federation key is being generated").into();
            };
            let input = |reply| Input::Request { from: peer.id, request, reply };
            return ask_voter(live.inputs.as_ref(), input).await;
        }
    };
    ask_epochs(&service.epochs, peer, request).await
}

async fn serve_session(
    mut send: quinn::SendStream,
    receive: quinn::RecvStream,
    service: &Service,
) -> Result<()> {
    let Some(inputs) = service.live().and_then(|live| live.inputs) else {
        let error = not_ready("the federation key is being generated; try again");
        write_message(&mut send, None, &ServerMessage::Error { error }).await?;
        return Ok(send.finish()?);
    };
    let session = SessionId(service.next_session.fetch_add(1, Ordering::Relaxed));
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(SESSION_FRAMES_MAX);
    inputs.send(Input::Opened { session, frames: frames.clone() }).await?;
    // The dispatcher's sender decides how long the session lives; this one only answers frames that cannot be read.
    let local = frames.downgrade();
    drop(frames);
    let writer = tokio::spawn(async move {
        // Those that wait go out together: the connection is woken once for them, and they share packets.
        let mut waiting = Vec::new();
        while outgoing.recv_many(&mut waiting, TOGETHER_MAX).await > 0 {
            let mut frames: Vec<Bytes> = waiting.drain(..).map(Bytes::from).collect();
            if send.write_all_chunks(&mut frames).await.is_err() {
                return;
            }
        }
        // The peer may be gone.
        let _gone = send.finish();
    });
    let ended = tokio::select! {
        ended = read_session(receive, session, &inputs, &local) => ended,
        _ = writer => Ok(()),
    };
    inputs.send(Input::Closed { session }).await?;
    ended
}

async fn read_session(
    receive: quinn::RecvStream,
    session: SessionId,
    inputs: &mpsc::Sender<Input>,
    local: &mpsc::WeakSender<Vec<u8>>,
) -> Result<()> {
    let mut frames = FrameReader::of::<ClientMessage>(receive);
    let turns = Arc::new(Semaphore::new(SESSION_INPUTS_MAX));
    while let Some(json) = frames.next().await? {
        match decode(&json) {
            Ok(envelope) => {
                let turn = turns.clone().acquire_owned().await?;
                let (id, message) = (envelope.id, envelope.body);
                inputs.send(Input::Client { session, id, message, turn }).await?;
            }
            Err((id, error)) => {
                let error = if decode::<PeerRequest>(&json).is_ok() {
                    WireError::sender(ErrorCode::WrongRole, "this message is for nodes only")
                } else {
                    error
                };
                if let Some(frames) = local.upgrade() {
                    let frame = encode_frame(id, &ServerMessage::Error { error });
                    let _session_gone = frames.send(frame).await;
                }
            }
        }
    }
    Ok(())
}
