//! Certificates and revocations that change while a node runs.

use super::membership::Membership;
use crate::{certificates::read_revoked, files::NodeFiles};
use anyhow::{Context as _, Result, ensure};
use quorate_protocol::NodeId;
use quorate_quic::{LOOK_AGAIN, Renewal, TlsIdentity, WatchedFiles, server_name};
use std::sync::Arc;

/// What a node shows, and whom it does not take, as its files say.
pub(crate) struct Rotation {
    files: NodeFiles,
    certificate: Renewal,
    revoked: WatchedFiles,
}

impl Rotation {
    /// Before the files are read for the first time: a change in between is not missed.
    pub(crate) fn new(files: &NodeFiles, me: NodeId) -> Self {
        let certificate = Renewal::new(vec![files.directory.join("tls.pem")], server_name(me));
        Self { files: files.clone(), certificate, revoked: WatchedFiles::new(vec![files.revoked()]) }
    }

    /// Keeps what is shown, and who is taken, in line with the files, as long as the node lives.
    pub(crate) async fn run(self, identity: TlsIdentity, membership: Arc<Membership>) {
        let Self { files, mut certificate, mut revoked } = self;
        let mut pause = tokio::time::interval(LOOK_AGAIN);
        loop {
            pause.tick().await;
            match certificate.look(&identity, || files.tls()) {
                None => {}
                Some(Ok(())) => tracing::info!("a new certificate is shown to peers"),
                Some(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
                }
            }
            if let Some(days) = certificate.notice(&identity) {
                tracing::warn!(
                    "this node's certificate expires within {days} days: `quorate-node federation renew`"
                );
            }
            // A list that was there and is not any more lifts nothing before the next start.
            let read = || {
                ensure!(files.revoked().exists(), "{} is gone", files.revoked().display());
                read_list(&files, &membership)
            };
            if let Some(Err(error)) = revoked.look(read) {
                tracing::warn!(error = format!("{error:#}"), "those that were revoked before stay so");
            }
        }
    }
}

/// Reads who was revoked.
pub(crate) fn read_list(files: &NodeFiles, membership: &Membership) -> Result<()> {
    let revoked =
        read_revoked(&files.revoked()).context("the list of revoked certificates cannot be read")?;
    if !revoked.is_empty() {
        tracing::info!(count = revoked.len(), "certificates of bridges and clients are revoked");
    }
    membership.revoke(revoked);
    Ok(())
}
