//! The bridge's certificate for wallets, read again when its files change.

use crate::config::TlsFiles;
use anyhow::{Context as _, Result};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Time between two looks at the files.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What connections are accepted with.
pub(crate) type Certificates = watch::Receiver<TlsAcceptor>;

/// Reads the files, and again whenever they change, until nobody wants to know.
///
/// # Errors
/// They cannot be read now.
pub(crate) fn watch_files(directory: &Path, files: &TlsFiles) -> Result<Certificates> {
    let files = TlsFiles { certificate: directory.join(&files.certificate), key: directory.join(&files.key) };
    let seen = changed_at(&files);
    let (sender, receiver) = watch::channel(read(&files)?);
    tokio::spawn(look_again(files, seen, sender));
    Ok(receiver)
}

async fn look_again(files: TlsFiles, mut seen: Changed, certificates: watch::Sender<TlsAcceptor>) {
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    let mut warned = None;
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            () = certificates.closed() => return,
        }
        let now = changed_at(&files);
        if now == seen {
            continue;
        }
        match read(&files) {
            Ok(acceptor) => {
                (seen, warned) = (now, None);
                certificates.send_replace(acceptor);
                tracing::info!(certificate = %files.certificate.display(), "new certificate for wallets");
            }
            // Certificate and key change one after the other, and their rights after that: it is tried again.
            Err(_) if warned == Some(now) => {}
            Err(error) => {
                warned = Some(now);
                let error = format!("{error:#}");
                tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
            }
        }
    }
}

type Changed = [Option<SystemTime>; 2];

fn changed_at(files: &TlsFiles) -> Changed {
    let changed = |path: &PathBuf| std::fs::metadata(path).ok()?.modified().ok();
    [changed(&files.certificate), changed(&files.key)]
}

fn read(files: &TlsFiles) -> Result<TlsAcceptor> {
    let cannot_read = |path: &Path| format!("cannot read {}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .with_context(|| cannot_read(&files.certificate))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| cannot_read(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| cannot_read(&files.key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and key do not fit together")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
