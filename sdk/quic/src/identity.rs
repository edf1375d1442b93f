//! Certificates and keys of a federation's members, and the transport parameters of its connections.

use quinn::crypto::rustls::QuicClientConfig;
use quorate_protocol::{NodeId, wire::limits};
use rustls::{
    CertificateError, SignatureScheme,
    client::{ResolvesClientCert, WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _,
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Time without any packet after which a connection is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Packets that keep an unused connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Streams that a peer may have open at once; each costs memory.
const STREAMS_MAX: u32 = 1_024;
/// A name that some certificates of a federation have.
const ANY_NAME: &str = "bridge.quorate";
/// A node and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number in the roster.
    pub id: NodeId,
    /// UDP address of its QUIC endpoint.
    pub address: SocketAddr,
}

/// A certificate of the federation's authority with its key.
///
/// Connections that are made with it show the one that its clones were given last ([`Self::renew`]).
#[derive(Debug)]
pub struct TlsIdentity {
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    shown: Arc<Shown>,
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        Self {
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            shown: self.shown.clone(),
        }
    }
}

/// What is shown at the other end of a connection.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Why TLS cannot be set up. The operator's files are at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: String,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("certificate, key and authority do not fit together: {0}")]
    Config(#[from] rustls::Error),
    /// The certificate is of another authority or name, or does not hold now.
    #[error("no certificate of this federation for {name} that holds now")]
    NotValid {
        /// Whom it has to name.
        name: String,
    },
    /// The TLS library has no cipher suite for QUIC; it was built without one.
    #[error("no cipher suite for QUIC: {0}")]
    CipherSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

impl TlsIdentity {
    /// Reads `ca.pem`, `tls.pem` and `tls.key` from a directory, as `quorate-node federation new` writes them.
    ///
    /// # Errors
    /// A file is missing or is not PEM.
    pub fn read(directory: &Path) -> Result<Self, TlsError> {
        let at = |name: &str| directory.join(name);
        let named = |name: &str| {
            let path = at(name).display().to_string();
            move |source| TlsError::Pem { path, source }
        };
        let key = PrivatePkcs8KeyDer::from_pem_file(at("tls.key")).map_err(named("tls.key"))?;
        Self::assemble(directory, key)
    }

    /// Reads `ca.pem` and `tls.pem` from a directory; the key, as PEM, comes from elsewhere.
    ///
    /// # Errors
    /// A file is missing, or something is not PEM.
    pub fn with_key(directory: &Path, key: &[u8]) -> Result<Self, TlsError> {
        let path = directory.join("tls.key").display().to_string();
        let key = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { path, source })?;
        Self::assemble(directory, key)
    }

    fn assemble(directory: &Path, key: PrivatePkcs8KeyDer<'static>) -> Result<Self, TlsError> {
        let certificate = |name: &str| {
            let path = directory.join(name);
            let found = CertificateDer::from_pem_file(&path);
            found.map_err(|source| TlsError::Pem { path: path.display().to_string(), source })
        };
        let (authority, certificate) = (certificate("ca.pem")?, certificate("tls.pem")?);
        let chain = vec![certificate.clone()];
        let whole = PrivateKeyDer::Pkcs8(key.clone_key());
        let shown = CertifiedKey::from_der(chain, whole, &rustls::crypto::ring::default_provider())?;
        Ok(Self { authority, certificate, key, shown: Arc::new(Shown(RwLock::new(Arc::new(shown)))) })
    }

    /// Has all that was made of this identity show another certificate from now on. Connections that are open stay.
    pub fn renew(&self, newer: &Self) {
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = newer.shown.get();
    }

    /// Whether the certificate that is shown does not hold any more after some time from now.
    pub fn expires_within(&self, time: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Which name it has does not matter to when it expires, which is looked at first.
        let verified = self.verify(&self.shown.get().cert, ANY_NAME, UnixTime::since_unix_epoch(now + time));
        matches!(
            verified,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        )
    }

    /// Checks that its certificate is one of its authority for this name, and holds now.
    ///
    /// # Errors
    /// It is not, or does not.
    pub fn check(&self, name: &str) -> Result<(), TlsError> {
        let chain = std::slice::from_ref(&self.certificate);
        let verified = self.verify(chain, name, UnixTime::now());
        verified.map_err(|_| TlsError::NotValid { name: name.to_owned() })
    }

    fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        name: &str,
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        let other = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
        let roots = self.roots().map_err(|error| other(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let verifier = verifier.map_err(|error| other(&error))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|error| other(&error))?;
        let certificate = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_server_cert(certificate, &[], &name, &[], at).map(|_| ())
    }

    /// What a server shows.
    pub fn server_resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.shown.clone()
    }

    /// The authority's root store.
    ///
    /// # Errors
    /// The authority's certificate is not usable.
    pub fn roots(&self) -> Result<Arc<rustls::RootCertStore>, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone())?;
        Ok(Arc::new(roots))
    }

    /// Certificate and key for a rustls configuration.
    pub fn certificate(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(self.key.clone_key()))
    }

    /// A QUIC client configuration: this identity, the stock server verifier, ALPN `quorate.2`.
    ///
    /// # Errors
    /// Certificate and key do not fit.
    pub fn client_config(&self) -> Result<quinn::ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(self.shown.clone());
        tls.alpn_protocols = vec![limits::PROTOCOL.into()];
        // A session that is resumed shows no certificate: a renewed one would not be seen.
        tls.resumption = rustls::client::Resumption::disabled();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(transport_config());
        Ok(config)
    }
}

/// Packets that are not acknowledged at once (draft-ietf-quic-ack-frequency): an acknowledgement goes with the answer,
/// which comes within some milliseconds. Less than half of the packets that may be under way at first, so that nobody
/// waits for one.
const ACKNOWLEDGED_AT_ONCE: u8 = 4;

/// Bytes of all streams of a connection that have arrived and are not read yet. (Of one stream quinn has 1.25 MB wait.)
const UNREAD_BYTES_MAX: u32 = 8 << 20;

/// Transport parameters of every connection in a federation.
pub fn transport_config() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("ten seconds fit a QUIC varint");
    transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(KEEP_ALIVE));
    transport.max_concurrent_bidi_streams(STREAMS_MAX.into()).max_concurrent_uni_streams(0_u8.into());
    transport.receive_window(UNREAD_BYTES_MAX.into());
    let mut acknowledged = quinn::AckFrequencyConfig::default();
    acknowledged.ack_eliciting_threshold(ACKNOWLEDGED_AT_ONCE.into());
    transport.ack_frequency_config(Some(acknowledged));
    Arc::new(transport)
}

/// The server name of a node.
pub fn server_name(node: NodeId) -> String {
    format!("node-{node}.quorate")
}
