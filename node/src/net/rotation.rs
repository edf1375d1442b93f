//! Certificates and revocations that change while a node runs.

use super::membership::Membership;
use crate::{certificates::read_revoked, files::NodeFiles};
use anyhow::{Context as _, Result};
use quorate_quic::{TlsIdentity, WatchedFiles};
use std::{path::Path, sync::Arc, time::Duration};

/// Time between two looks at the files.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Looks between two at how long the certificate still holds: a day.
const LOOKS_PER_DAY: u32 = 43_200;
/// How long before it expires the operator is told.
const NOTICE: Duration = Duration::from_secs(45 * 86_400);

/// Keeps what a node shows, and whom it takes, in line with its files, as long as it lives.
pub(crate) async fn keep_current(files: NodeFiles, identity: TlsIdentity, membership: Arc<Membership>) {
    let list = files.revoked();
    let mut certificate = WatchedFiles::new(vec![files.directory.join("tls.pem")]);
    let mut revoked = WatchedFiles::new(vec![list.clone()]);
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    for look in 0_u32.. {
        pause.tick().await;
        if certificate.have_changed() {
            match files.tls() {
                Ok(newer) => {
                    identity.renew(&newer);
                    tracing::info!("a new certificate is shown to peers");
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
                }
            }
        }
        if revoked.have_changed()
            && let Err(error) = read_list(&list, &membership)
        {
            tracing::warn!(error = format!("{error:#}"), "those that were revoked before stay so");
        }
        if look.is_multiple_of(LOOKS_PER_DAY) && identity.expires_within(NOTICE) {
            tracing::warn!(
                "this node's certificate expires within {} days: `quorate-node federation renew`",
                NOTICE.as_secs() / 86_400
            );
        }
    }
}

/// Reads who was revoked.
pub(crate) fn read_list(list: &Path, membership: &Membership) -> Result<()> {
    let revoked = read_revoked(list).context("the list of revoked certificates cannot be read")?;
    if !revoked.is_empty() {
        tracing::info!(count = revoked.len(), "certificates of bridges and clients are revoked");
    }
    membership.revoke(revoked);
    Ok(())
}
