//! Incoming connections: peers' requests and wallets' sessions, by the role of their certificate.

use crate::{
    machine::SessionId,
    peers::{Role, read_frame, role_of, write_message},
    run::Input,
    setup::Setup,
};
use anyhow::{Context as _, Result};
use quorate::{
    NodeId,
    wire::{
        ErrorCode, Fault, FrameBuffer, PeerReply, PeerRequest, ServerMessage, WireError, decode, encode_frame,
    },
};
use rustls::pki_types::CertificateDer;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Frames that may wait for a slow session before it is closed.
const SESSION_FRAMES_MAX: usize = 8_192;

/// What the server's tasks share.
#[derive(Debug)]
pub(crate) struct Service {
    nodes: u16,
    phase: watch::Sender<Phase>,
    next_session: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Phase {
    setup: Option<Arc<Setup>>,
    live: Option<mpsc::Sender<Input>>,
}

impl Service {
    pub(crate) fn new(nodes: u16) -> Self {
        Self { nodes, phase: watch::Sender::new(Phase::default()), next_session: AtomicU64::new(1) }
    }

    pub(crate) fn set_up(&self, setup: Arc<Setup>) {
        self.phase.send_modify(|phase| phase.setup = Some(setup));
    }

    pub(crate) fn go_live(&self, inputs: mpsc::Sender<Input>) {
        self.phase.send_modify(|phase| phase.live = Some(inputs));
    }

    fn live(&self) -> Option<mpsc::Sender<Input>> {
        self.phase.borrow().live.clone()
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
    let identity = connection.peer_identity().context("no client certificate")?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok().context("no client certificate")?;
    let role = chain.first().and_then(|certificate| role_of(certificate, service.nodes));
    let role = role.context("a certificate without a role")?;
    loop {
        let (send, receive) = connection.accept_bi().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let ended = match role {
                Role::Node(from) => serve_peer(from, send, receive, &service).await,
                Role::Bridge | Role::Client => serve_session(send, receive, &service).await,
            };
            if let Err(error) = ended {
                tracing::debug!(error = format!("{error:#}"), ?role, "a stream ended");
            }
        });
    }
}

async fn serve_peer(
    from: NodeId,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
    service: &Service,
) -> Result<()> {
    let mut buffer = FrameBuffer::default();
    let Some(json) = read_frame(&mut receive, &mut buffer).await? else { return Ok(()) };
    let reply = match decode::<PeerRequest>(&json) {
        Ok(envelope) => answer(from, envelope.body, service).await,
        Err((_, error)) => PeerReply::Error { error },
    };
    write_message(&mut send, None, &reply).await?;
    Ok(send.finish()?)
}

async fn answer(from: NodeId, request: PeerRequest, service: &Service) -> PeerReply {
    let setting_up =
        matches!(request, PeerRequest::DkgPull | PeerRequest::TrialCommit | PeerRequest::TrialSign { .. });
    let phase = service.phase.borrow().clone();
    match (setting_up, phase.setup, phase.live) {
        (true, Some(setup), _) => setup.answer(from, request),
        (false, _, Some(inputs)) => {
            let (reply, answer) = oneshot::channel();
            let sent = inputs.send(Input::Request { from, request, reply }).await;
            match (sent, answer.await) {
                (Ok(()), Ok(reply)) => reply,
                (Err(_), _) | (_, Err(_)) => PeerReply::Error { error: not_ready("this node is stopping") },
            }
        }
        (true, None, _) | (false, _, None) => {
            PeerReply::Error { error: not_ready("this node is not ready yet; try again") }
        }
    }
}

fn not_ready(message: &str) -> WireError {
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}

async fn serve_session(
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
    service: &Service,
) -> Result<()> {
    let Some(inputs) = service.live() else {
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
        while let Some(frame) = outgoing.recv().await {
            if send.write_all(&frame).await.is_err() {
                return;
            }
        }
        // The peer may be gone.
        let _gone = send.finish();
    });
    let ended = tokio::select! {
        ended = read_session(&mut receive, session, &inputs, &local) => ended,
        _ = writer => Ok(()),
    };
    inputs.send(Input::Closed { session }).await?;
    ended
}

async fn read_session(
    receive: &mut quinn::RecvStream,
    session: SessionId,
    inputs: &mpsc::Sender<Input>,
    local: &mpsc::WeakSender<Vec<u8>>,
) -> Result<()> {
    let mut buffer = FrameBuffer::default();
    while let Some(json) = read_frame(receive, &mut buffer).await? {
        match decode(&json) {
            Ok(envelope) => {
                inputs.send(Input::Client { session, id: envelope.id, message: envelope.body }).await?;
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
