//! Incoming connections: peers' requests and wallets' sessions, by the role of their certificate.

use super::{
    guests::{Guest, Guests},
    handshakes::{Arrival, Handshakes},
    membership::{Membership, Role, tls_key},
    not_ready,
    peers::certificate_of,
    session::serve_session,
};
use crate::{
    epoch::driver::{EpochRequest, Question, ask_epochs},
    run::{
        input::Input,
        live::{Live, ask_voter},
        queue::Speaker,
    },
};
use anyhow::{Context as _, Result};
use quorate_protocol::wire::{ErrorCode, PeerReply, PeerRequest, WireError, decode};
use quorate_quic::{FrameReader, write_message};
use quorate_rules::{Peer, SessionId};
use rustls::{pki_types::UnixTime, server::danger::ClientCertVerifier};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// For a connection to be made.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
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
    guests: Guests,
}

impl Service {
    pub(crate) fn new(
        membership: Arc<Membership>,
        verifier: Arc<dyn ClientCertVerifier>,
        epochs: mpsc::Sender<Question>,
    ) -> Self {
        let (live, next_session) = (watch::Sender::new(None), AtomicU64::new(1));
        Self { membership, verifier, epochs, live, next_session, guests: Guests::default() }
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
    let handshakes = Arc::new(Handshakes::default());
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address().ip().to_canonical();
        let handshake = match handshakes.arrive(from, incoming.may_retry()) {
            Arrival::Welcome(handshake) => handshake,
            Arrival::Retry => {
                // It can be asked to.
                let _comes_again = incoming.retry();
                continue;
            }
            Arrival::Refused => {
                incoming.refuse();
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let served = async {
                let connection = timeout(HANDSHAKE_PATIENCE, async { incoming.await }).await??;
                drop(handshake);
                serve(connection, service).await
            };
            if let Err(error) = served.await {
                tracing::debug!(error = format!("{error:#}"), "a connection ended");
            }
        });
    }
}

async fn serve(connection: quinn::Connection, service: Arc<Service>) -> Result<()> {
    let certificate = certificate_of(&connection).context("no client certificate")?;
    let guest = service.guests.of(tls_key(&certificate).context("a certificate without a key")?);
    let Some(_room) = guest.connection() else {
        connection.close(1_u8.into(), b"too many connections with this certificate");
        return Ok(());
    };
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
        let (service, guest) = (service.clone(), guest.clone());
        tokio::spawn(async move {
            let ended = match role {
                Role::Node(peer) => serve_peer(peer, &guest, send, receive, &service).await,
                Role::Bridge | Role::Client => {
                    let number = service.next_session.fetch_add(1, Ordering::Relaxed);
                    let session = SessionId { certificate: guest.number, number };
                    let inputs = service.live().and_then(|live| live.inputs);
                    serve_session(send, receive, session, &guest, inputs).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = format!("{error:#}"), ?role, "a stream ended");
            }
        });
    }
}

async fn serve_peer(
    from: Peer,
    guest: &Guest,
    mut send: quinn::SendStream,
    receive: quinn::RecvStream,
    service: &Service,
) -> Result<()> {
    let _request = guest.request().await;
    let mut frames = FrameReader::of::<PeerRequest>(receive);
    // Its room is kept until it is answered.
    let Some((json, _room)) = guest.heard().next(&mut frames).await? else { return Ok(()) };
    frames.end().await;
    let reply = match decode::<PeerRequest>(&json) {
        Ok(envelope) => answer(from, guest, envelope.body, service).await,
        Err((_, error)) => error.into(),
    };
    write_message(&mut send, None, &reply).await?;
    Ok(send.finish()?)
}

/// Hands a request to the part of this node that answers such.
async fn answer(peer: Peer, guest: &Guest, request: PeerRequest, service: &Service) -> PeerReply {
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
            let by = Speaker { guest: guest.number, session: 0 };
            return ask_voter(live.inputs.as_ref(), Some(by), input).await;
        }
    };
    let place = guest.question().await;
    ask_epochs(&service.epochs, peer, request, place).await
}
