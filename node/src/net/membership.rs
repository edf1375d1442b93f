//! Whose certificates count at a node: the members of the epoch in force and of the one that is being prepared,
//! bridges and clients.
//!
//! A node's certificate names its number and holds the key that the federation's document names for it, so the
//! certificate of a node that was replaced does not get past the handshake. Those of bridges and clients count until
//! they are revoked.

use bitcoin::hashes::{Hash as _, sha256};
use quorate_protocol::federation::Member;
use quorate_quic::server_name;
use quorate_rules::Peer;
use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};
use std::{
    collections::BTreeSet,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};
use tokio::sync::watch;

/// What a certificate allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Node(Peer),
    Bridge,
    Client,
}

/// The hash of a certificate's public key, as members are named with it.
pub(crate) fn tls_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(sha256::Hash::hash(&parsed.subject_public_key_info()).to_byte_array())
}

#[derive(Debug, Default)]
struct Known {
    present: Vec<Member>,
    next: Vec<Member>,
    /// Hashes of keys of bridges and clients that do not count any more.
    revoked: BTreeSet<[u8; 32]>,
}

/// Who may talk to this node.
#[derive(Debug)]
pub(crate) struct Membership {
    known: RwLock<Known>,
    /// Told whenever somebody may have lost their role.
    changes: watch::Sender<()>,
}

impl Membership {
    pub(crate) fn new(present: Vec<Member>) -> Self {
        let known = Known { present, ..Known::default() };
        Self { known: RwLock::new(known), changes: watch::Sender::new(()) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_replace(());
    }

    /// An epoch begins.
    pub(crate) fn open(&self, present: Vec<Member>) {
        self.change(|known| (known.present, known.next) = (present, Vec::new()));
    }

    /// The operator has approved a plan: its newcomers may take part in the preparation.
    pub(crate) fn prepare(&self, next: Vec<Member>) {
        self.change(|known| known.next = next);
    }

    /// The operator has said which bridges and clients do not count any more.
    pub(crate) fn revoke(&self, revoked: BTreeSet<[u8; 32]>) {
        self.change(|known| known.revoked = revoked);
    }

    /// Tells whenever somebody may have lost their role.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether it is a member of the epoch in force.
    pub(crate) fn is_present(&self, peer: &Peer) -> bool {
        peer.is_among(&self.read().present)
    }

    /// The role that a certificate has, if it has one at this moment.
    pub(crate) fn role(&self, certificate: &CertificateDer<'_>) -> Option<Role> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let named = |name: String| {
            ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        };
        let tls_key = tls_key(certificate)?;
        let known = self.read();
        let member = known.present.iter().chain(&known.next).find(|member| member.tls_key == tls_key);
        if let Some(member) = member.filter(|member| named(server_name(member.id))) {
            return Some(Role::Node(Peer { id: member.id, tls_key }));
        }
        if known.revoked.contains(&tls_key) {
            return None;
        }
        if named("bridge.quorate".to_owned()) {
            return Some(Role::Bridge);
        }
        named("client.quorate".to_owned()).then_some(Role::Client)
    }
}
