//! QUIC between nodes: who may connect, and asking a peer.

use super::membership::{Membership, tls_key};
use anyhow::Result;
use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn_proto::HashedConnectionIdGenerator;
use quorate_protocol::{
    NodeId,
    federation::Member,
    wire::{Request, decode_answer, encode_frame, limits},
};
use quorate_quic::{FrameReader, Meter, TlsIdentity, server_name, transport_config};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// Time for one answer of a peer; also bounds how long a dead connection is kept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of one peer's answers that are being read: four times what one may have.
const HEARD_BYTES_MAX: usize = 4 * limits::PEER_FRAME_BYTES_MAX;

/// The stock verifier, and then the role: a certificate without one does not get past the handshake.
#[derive(Debug)]
struct RoleVerifier {
    stock: Arc<dyn ClientCertVerifier>,
    membership: Arc<Membership>,
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.stock.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.stock.verify_client_cert(certificate, intermediates, now)?;
        match self.membership.role(certificate) {
            Some(_) => Ok(verified),
            None => Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.stock.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.stock.supported_verify_schemes()
    }
}

/// The endpoint of a node: accepts certified peers, bridges and clients, with what decides about their certificates.
pub(crate) fn endpoint(
    identity: &TlsIdentity,
    listen: SocketAddr,
    membership: Arc<Membership>,
) -> Result<(quinn::Endpoint, Arc<dyn ClientCertVerifier>)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let stock = WebPkiClientVerifier::builder_with_provider(identity.roots()?, provider.clone()).build()?;
    let verifier: Arc<dyn ClientCertVerifier> = Arc::new(RoleVerifier { stock, membership });
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(identity.server_resolver());
    tls.alpn_protocols = vec![limits::PROTOCOL.into()];
    tls.max_early_data_size = 0;
    // Whoever resumes a session is not asked for a certificate: it may have expired, or been revoked, since.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport_config());
    let socket = std::net::UdpSocket::bind(listen)?;
    let runtime = quinn::default_runtime().ok_or_else(|| anyhow::anyhow!("no runtime"))?;
    let mut endpoint = quinn::Endpoint::new(endpoint_config(identity), Some(config), socket, runtime)?;
    endpoint.set_default_client_config(identity.client_config()?);
    Ok((endpoint, verifier))
}

/// Stateless resets under a key that outlives the process: peers notice at once that a node has started again,
/// instead of waiting for their connections to time out (RFC 9000, section 10.3). The connection ids have to be
/// recognised for that by the new process.
fn endpoint_config(identity: &TlsIdentity) -> quinn::EndpointConfig {
    let reset = endpoint_key(identity, b"quorate stateless reset");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset.as_byte_array());
    let mut config = quinn::EndpointConfig::new(Arc::new(key));
    let [a, b, c, d, e, f, g, h, ..] = endpoint_key(identity, b"quorate connection ids").to_byte_array();
    let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn endpoint_key(identity: &TlsIdentity, purpose: &[u8]) -> sha256::Hash {
    let (_, key) = identity.certificate();
    let mut engine = sha256::Hash::engine();
    engine.input(purpose);
    engine.input(key.secret_der());
    sha256::Hash::from_engine(engine)
}

/// The certificate at the other end.
pub(crate) fn certificate_of(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// A request as it is sent, to one peer or to many.
#[derive(Debug)]
pub(crate) struct Call<R> {
    frame: Bytes,
    request: PhantomData<fn() -> R>,
}

impl<R> Clone for Call<R> {
    fn clone(&self) -> Self {
        Self { frame: self.frame.clone(), request: PhantomData }
    }
}

impl<R: Request> Call<R> {
    pub(crate) fn new(request: &R) -> Self {
        Self { frame: encode_frame(None, request).into(), request: PhantomData }
    }
}

/// Connections to the other nodes: one long-lived per pair and direction, opened when first needed.
#[derive(Debug)]
pub(crate) struct Peers {
    endpoint: quinn::Endpoint,
    links: HashMap<NodeId, Link>,
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    tls_key: [u8; 32],
    /// What is read of its answers.
    heard: Meter,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    connection: Option<quinn::Connection>,
    /// When the last attempt to connect failed.
    failed_at: Option<Instant>,
}

impl Peers {
    /// All of these members but `me` that have an address.
    pub(crate) fn new(
        endpoint: quinn::Endpoint,
        me: NodeId,
        members: &[Member],
        addresses: &BTreeMap<NodeId, SocketAddr>,
    ) -> Self {
        let link = |member: &Member| {
            let address = *addresses.get(&member.id)?;
            let heard = Meter::new(HEARD_BYTES_MAX);
            let link = Link { address, tls_key: member.tls_key, heard, state: Mutex::default() };
            Some((member.id, link))
        };
        let others = members.iter().filter(|member| member.id != me);
        Self { endpoint, links: others.filter_map(link).collect() }
    }

    pub(crate) fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.links.keys().copied()
    }

    /// Asks a peer on a stream of its own. A peer that does not answer in time is connected anew the next time; one
    /// that has started again since it was last asked is connected anew at once.
    pub(crate) async fn ask<R: Request>(&self, to: NodeId, call: &Call<R>) -> Result<R::Reply> {
        let link = self.links.get(&to).ok_or_else(|| anyhow::anyhow!("node {to} is not configured"))?;
        let (connection, fresh) = self.connection(to, link).await?;
        match self.ask_on(to, link, &connection, call).await {
            Err(_) if !fresh && connection.close_reason().is_some() => {
                let (connection, _) = self.connection(to, link).await?;
                self.ask_on(to, link, &connection, call).await
            }
            answered => answered,
        }
    }

    async fn ask_on<R: Request>(
        &self,
        to: NodeId,
        link: &Link,
        connection: &quinn::Connection,
        call: &Call<R>,
    ) -> Result<R::Reply> {
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, exchange(connection, &link.heard, call)).await;
        if answered.is_err() {
            let mut state = link.state.lock().await;
            if state.connection.as_ref().is_some_and(|cached| cached.stable_id() == connection.stable_id()) {
                state.connection = None;
            }
        }
        answered.unwrap_or_else(|_| Err(anyhow::anyhow!("node {to} did not answer in {REQUEST_TIMEOUT:?}")))
    }

    /// A connection, and whether it was made just now.
    async fn connection(&self, to: NodeId, link: &Link) -> Result<(quinn::Connection, bool)> {
        let asked_at = Instant::now();
        let mut state = link.state.lock().await;
        if let Some(open) = state.connection.as_ref().filter(|open| open.close_reason().is_none()) {
            return Ok((open.clone(), false));
        }
        // Who waited while another attempt failed need not make the same one: requests to a dead node would queue up.
        if state.failed_at.is_some_and(|failed_at| failed_at >= asked_at) {
            anyhow::bail!("node {to} cannot be reached at {}", link.address);
        }
        let connecting = self.endpoint.connect(link.address, &server_name(to))?;
        let connected = tokio::time::timeout(REQUEST_TIMEOUT, connecting).await;
        state.failed_at = (!matches!(connected, Ok(Ok(_)))).then(Instant::now);
        let connection = connected??;
        let shown = certificate_of(&connection).as_ref().and_then(tls_key);
        if shown != Some(link.tls_key) {
            connection.close(1_u8.into(), b"not the member that was called");
            anyhow::bail!("what answers as node {to} at {} is not the member that was called", link.address);
        }
        state.connection = Some(connection.clone());
        Ok((connection, true))
    }
}

async fn exchange<R: Request>(
    connection: &quinn::Connection,
    heard: &Meter,
    call: &Call<R>,
) -> Result<R::Reply> {
    let (mut send, receive) = connection.open_bi().await?;
    send.write_chunk(call.frame.clone()).await?;
    send.finish()?;
    let mut frames = FrameReader::of::<R::Reply>(receive);
    let read = heard.next(&mut frames).await?;
    let (json, _room) = read.ok_or_else(|| anyhow::anyhow!("the stream ended without an answer"))?;
    frames.end().await;
    Ok(decode_answer::<R::Reply>(&json)?)
}
