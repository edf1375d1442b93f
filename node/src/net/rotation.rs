//! Certificates and revocations that change while a node runs.

use super::membership::Membership;
use crate::{certificates::read_revoked, files::NodeFiles};
use anyhow::{Context as _, Result, ensure};
use quorate_protocol::NodeId;
use quorate_quic::{TlsIdentity, WatchedFiles, server_name};
use std::{sync::Arc, time::Duration};

/// Time between two looks at the files.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Looks between two at how long the certificate still holds: a day.
const LOOKS_PER_DAY: u32 = 43_200;
/// How long before it expires the operator is told.
const NOTICE: Duration = Duration::from_secs(45 * 86_400);

/// What a node shows, and whom it does not take, as its files say.
pub(crate) struct Rotation {
    files: NodeFiles,
    me: NodeId,
    certificate: WatchedFiles,
    revoked: WatchedFiles,
}

impl Rotation {
    /// Before the files are read for the first time: a change in between is not missed.
    pub(crate) fn new(files: &NodeFiles, me: NodeId) -> Self {
        let certificate = WatchedFiles::new(vec![files.directory.join("tls.pem")]);
        let revoked = WatchedFiles::new(vec![files.revoked()]);
        Self { files: files.clone(), me, certificate, revoked }
    }

    /// Reads who was revoked.
    pub(crate) fn read_list(&self, membership: &Membership) -> Result<()> {
        let revoked = read_revoked(&self.files.revoked());
        let revoked = revoked.context("the list of revoked certificates cannot be read")?;
        if !revoked.is_empty() {
            tracing::info!(count = revoked.len(), "certificates of bridges and clients are revoked");
        }
        membership.revoke(revoked);
        Ok(())
    }

    fn read_certificate(&self) -> Result<TlsIdentity> {
        let newer = self.files.tls()?;
        let name = server_name(self.me);
        ensure!(
            newer.is_valid_for(&name),
            "tls.pem is no certificate of this federation for {name} that holds now"
        );
        Ok(newer)
    }

    /// Keeps what is shown, and who is taken, in line with the files, as long as the node lives.
    pub(crate) async fn run(mut self, identity: TlsIdentity, membership: Arc<Membership>) {
        let mut pause = tokio::time::interval(LOOK_AGAIN);
        for look in 0_u32.. {
            pause.tick().await;
            let mut certificate = std::mem::replace(&mut self.certificate, WatchedFiles::new(Vec::new()));
            match certificate.look(|| self.read_certificate()) {
                None => {}
                Some(Ok(newer)) => {
                    identity.renew(&newer);
                    tracing::info!("a new certificate is shown to peers");
                }
                Some(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
                }
            }
            self.certificate = certificate;
            let mut revoked = std::mem::replace(&mut self.revoked, WatchedFiles::new(Vec::new()));
            if let Some(Err(error)) = revoked.look(|| self.look_at_list(&membership)) {
                tracing::warn!(error = format!("{error:#}"), "those that were revoked before stay so");
            }
            self.revoked = revoked;
            if look.is_multiple_of(LOOKS_PER_DAY) && identity.expires_within(NOTICE) {
                tracing::warn!(
                    "this node's certificate expires within {} days: `quorate-node federation renew`",
                    NOTICE.as_secs() / 86_400
                );
            }
        }
    }

    /// A list that was there and is not any more lifts nothing before the next start.
    fn look_at_list(&self, membership: &Membership) -> Result<()> {
        ensure!(self.files.revoked().exists(), "{} is gone", self.files.revoked().display());
        self.read_list(membership)
    }
}
