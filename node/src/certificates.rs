//! Certificates of a federation: its authority, what that signs, and what counts no more.
//!
//! Roles are DNS names: `node-N.quorate`, `bridge.quorate`, `client.quorate`. A node is known by the key in its
//! certificate, so a renewed one has the same key; a new key comes with the next epoch. Bridges and clients can be
//! given new keys, and old ones be revoked, at any time.

use crate::{
    disk::{write_durably, write_secret},
    net::membership::tls_key,
};
use anyhow::{Context as _, Result, bail, ensure};
use quorate_protocol::NodeId;
use quorate_quic::server_name;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    server::ParsedCertificate,
};
use std::{
    collections::BTreeSet,
    fmt, fs,
    path::Path,
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

/// How long a certificate holds: operators renew it while the federation runs.
const VALIDITY: Duration = Duration::from_secs(730 * 86_400);
/// How long the authority's holds. A federation's authority cannot be changed.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(50 * 365 * 86_400);
/// By how much the clocks of machines may differ.
const SKEW: Duration = Duration::from_secs(86_400);
/// Numbers that nodes can have.
const NODES_MAX: u16 = 100;
/// Bytes of an uncompressed point on P-256.
const POINT_BYTES: usize = 65;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Node(NodeId),
    Bridge,
    Client,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Bridge => f.write_str("bridge"),
            Self::Client => f.write_str("client"),
        }
    }
}

impl Subject {
    fn name(self) -> String {
        match self {
            Self::Node(id) => server_name(id),
            Self::Bridge => "bridge.quorate".to_owned(),
            Self::Client => "client.quorate".to_owned(),
        }
    }

    /// The subject that a certificate names.
    fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let parsed = ParsedCertificate::try_from(certificate).context("not a certificate")?;
        let nodes = (1..=NODES_MAX).map(|id| Self::Node(NodeId(id)));
        let mut roles = nodes.chain([Self::Bridge, Self::Client]);
        let named = |subject: &Self| {
            let name = ServerName::try_from(subject.name());
            name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        };
        roles.find(named).context("the certificate is of no member of a federation")
    }
}

/// A public key of which only the certificate is known.
struct Known([u8; POINT_BYTES]);

impl PublicKeyData for Known {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Known {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let parsed = ParsedCertificate::try_from(certificate).context("not a certificate")?;
        let info = parsed.subject_public_key_info();
        let known = Self(*info.last_chunk().context("not a key of this federation's kind")?);
        // What is before the point says which curve it is on.
        ensure!(known.subject_public_key_info() == info.as_ref(), "not a key of this federation's kind");
        Ok(known)
    }
}

/// Who signs a federation's certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn generate() -> Result<Self> {
        Self::of(KeyPair::generate()?)
    }

    /// Reads `ca.key`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = KeyPair::from_pem(&Zeroizing::new(text));
        Self::of(key.with_context(|| format!("{} is not the authority's key", path.display()))?)
    }

    fn of(key: KeyPair) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Quorate federation authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_VALIDITY);
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    pub(crate) fn write_key(&self, path: &Path) -> Result<()> {
        write_secret(path, &Zeroizing::new(self.0.key().serialize_pem()))
    }

    fn sign(&self, subject: Subject, key: &impl PublicKeyData) -> Result<rcgen::Certificate> {
        let name = subject.name();
        let mut params = CertificateParams::new(vec![name.clone()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, VALIDITY);
        Ok(params.signed_by(key, &*self.0)?)
    }

    /// Makes a new key and its certificate in a directory. Gives the hash of the key.
    pub(crate) fn issue(&self, home: &Path, subject: Subject) -> Result<[u8; 32]> {
        fs::create_dir_all(home).with_context(|| format!("cannot create {}", home.display()))?;
        let key = KeyPair::generate()?;
        let certificate = self.sign(subject, &key)?;
        write_secret(&home.join("tls.key"), &Zeroizing::new(key.serialize_pem()))?;
        fs::write(home.join("ca.pem"), self.0.pem())?;
        fs::write(home.join("tls.pem"), certificate.pem())?;
        tls_key(certificate.der()).context("a certificate with a key")
    }

    /// A new certificate in the place of another one, for the same subject and key.
    pub(crate) fn renew(&self, path: &Path) -> Result<Subject> {
        let old = read(path)?;
        let subject = Subject::of(&old).with_context(|| format!("{} cannot be renewed", path.display()))?;
        let own = path.parent().context("a file in a directory")?.join("ca.pem");
        ensure!(
            tls_key(&read(&own)?) == tls_key(self.0.der()),
            "{} is of another authority than the one whose key this is",
            own.display()
        );
        let certificate = self.sign(subject, &Known::of(&old)?)?;
        ensure!(tls_key(certificate.der()) == tls_key(&old), "the certificate would have another key");
        write_durably(path, certificate.pem().as_bytes())?;
        Ok(subject)
    }
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + validity).into();
}

fn read(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path)
        .with_context(|| format!("cannot read a certificate from {}", path.display()))
}

/// Adds a bridge's or client's certificate to those that a node does not take any more. `false` if it is there already.
pub(crate) fn revoke(list: &Path, certificate: &Path) -> Result<bool> {
    let revoked = read(certificate)?;
    if let Subject::Node(id) = Subject::of(&revoked)? {
        bail!("{} is of node {id}: a node is replaced by a plan for the next epoch", certificate.display());
    }
    let mut all = read_revoked(list)?;
    if !all.insert(tls_key(&revoked).context("a certificate with a key")?) {
        return Ok(false);
    }
    let lines: Vec<String> = all.iter().map(|key| format!("{}\n", hex::encode(key))).collect();
    write_durably(list, lines.concat().as_bytes())?;
    Ok(true)
}

/// Hashes of keys that do not count any more: one per line, in hexadecimal digits. None without the file.
pub(crate) fn read_revoked(list: &Path) -> Result<BTreeSet<[u8; 32]>> {
    let text = match fs::read_to_string(list) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        read => read.with_context(|| format!("cannot read {}", list.display()))?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let key = |line: &str| {
        let mut key = [0; 32];
        let read = hex::decode_to_slice(line, &mut key);
        read.with_context(|| format!("{}: \"{line}\" is not a hash of 64 hex digits", list.display()))?;
        Ok(key)
    };
    lines.map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_certificate_has_the_same_role_and_key_and_a_node_is_not_revoked() {
        let home = tempfile::tempdir().expect("a directory");
        let authority = Authority::generate().expect("made");
        let key = home.path().join("ca.key");
        authority.write_key(&key).expect("written");
        for subject in [Subject::Node(NodeId(7)), Subject::Bridge, Subject::Client] {
            let directory = home.path().join(subject.name());
            let hash = authority.issue(&directory, subject).expect("issued");
            let path = directory.join("tls.pem");
            let before = fs::read(&path).expect("there");
            assert_eq!(Authority::read(&key).expect("read").renew(&path).expect("renewed"), subject);
            assert_ne!(fs::read(&path).expect("there"), before);
            let renewed = read(&path).expect("a certificate");
            assert_eq!((Subject::of(&renewed).ok(), tls_key(&renewed)), (Some(subject), Some(hash)));
            let list = home.path().join("revoked.txt");
            let revoked = revoke(&list, &path);
            if let Subject::Node(_) = subject {
                assert!(revoked.expect_err("a node").to_string().contains("next epoch"));
                assert!(!list.exists());
            } else {
                assert!(revoked.expect("revoked") && !revoke(&list, &path).expect("known"));
                assert!(read_revoked(&list).expect("a list").contains(&hash));
            }
        }
        let garbage = home.path().join("garbage.txt");
        fs::write(&garbage, "# a remark\n\nnot a hash\n").expect("written");
        assert!(read_revoked(&garbage).expect_err("damaged").to_string().contains("not a hash"));
    }
}
