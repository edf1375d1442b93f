//! Whose certificates count at a node: the members of the epoch in force and of the one that is being prepared,
//! bridges and clients.
//!
//! A node's certificate names its number and holds the key that the federation's document names for it, so the
//! certificate of a node that was replaced does not get past the handshake.

use bitcoin::hashes::{Hash as _, sha256};
use quorate_protocol::federation::Member;
use quorate_quic::server_name;
use quorate_rules::Peer;
use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};
use std::sync::{PoisonError, RwLock};

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
}

/// The members that this node talks to.
#[derive(Debug)]
pub(crate) struct Membership(RwLock<Known>);

impl Membership {
    pub(crate) fn new(present: Vec<Member>) -> Self {
        Self(RwLock::new(Known { present, next: Vec::new() }))
    }

    /// An epoch begins.
    pub(crate) fn open(&self, present: Vec<Member>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Known { present, next: Vec::new() };
    }

    /// The operator has approved a plan: its newcomers may take part in the preparation.
    pub(crate) fn prepare(&self, next: Vec<Member>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).next = next;
    }

    /// Whether it is a member of the epoch in force.
    pub(crate) fn is_present(&self, peer: &Peer) -> bool {
        peer.is_among(&self.0.read().unwrap_or_else(PoisonError::into_inner).present)
    }

    /// The role that a certificate has, if it has one at this moment.
    pub(crate) fn role(&self, certificate: &CertificateDer<'_>) -> Option<Role> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let named = |name: String| {
            ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        };
        let tls_key = tls_key(certificate)?;
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let member = known.present.iter().chain(&known.next).find(|member| member.tls_key == tls_key);
        if let Some(member) = member.filter(|member| named(server_name(member.id))) {
            return Some(Role::Node(Peer { id: member.id, tls_key }));
        }
        if named("bridge.quorate".to_owned()) {
            return Some(Role::Bridge);
        }
        named("client.quorate".to_owned()).then_some(Role::Client)
    }
}
