//! The bridge's certificates, for wallets and for nodes, read again when their files change.

use crate::config::TlsFiles;
use anyhow::{Context as _, Result};
use quorate_quic::{LOOK_AGAIN, Renewal, TlsIdentity, WatchedFiles};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Whom the certificate for nodes names.
pub(crate) const NAME: &str = "bridge.quorate";

/// What connections are accepted with.
pub(crate) type Certificates = watch::Receiver<TlsAcceptor>;

/// Reads the files, and again whenever they change, until nobody wants to know.
///
/// # Errors
/// They cannot be read now.
pub(crate) fn watch_files(directory: &Path, files: &TlsFiles) -> Result<Certificates> {
    let files = TlsFiles { certificate: directory.join(&files.certificate), key: directory.join(&files.key) };
    let watched = WatchedFiles::new(vec![files.certificate.clone(), files.key.clone()]);
    let (sender, receiver) = watch::channel(read(&files)?);
    tokio::spawn(look_again(files, watched, sender));
    Ok(receiver)
}

/// Shows nodes the certificate that is in the directory, whenever it changes, until the bridge stops.
pub(crate) async fn keep_identity(
    directory: PathBuf,
    mut renewal: Renewal,
    identity: TlsIdentity,
    mut stopping: watch::Receiver<bool>,
) {
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            _ = stopping.changed() => return,
        }
        match renewal.look(&identity, || TlsIdentity::read(&directory)) {
            None => {}
            Some(Ok(())) => tracing::info!("new certificate for nodes"),
            // One of the two files has changed, and the other one will.
            Some(Err(error)) => tracing::warn!(%error, "the new certificate for nodes cannot be used yet"),
        }
        if let Some(days) = renewal.notice(&identity) {
            tracing::warn!(
                "this bridge's certificate for nodes expires within {days} days: `quorate-node federation renew`"
            );
        }
    }
}

async fn look_again(files: TlsFiles, mut watched: WatchedFiles, certificates: watch::Sender<TlsAcceptor>) {
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            () = certificates.closed() => return,
        }
        match watched.look(|| read(&files)) {
            None => {}
            Some(Ok(acceptor)) => {
                certificates.send_replace(acceptor);
                tracing::info!(certificate = %files.certificate.display(), "new certificate for wallets");
            }
            Some(Err(error)) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn write(path: &Path, pem: &str, age_s: u64) {
        std::fs::write(path, pem).expect("writes");
        let file = std::fs::File::options().write(true).open(path).expect("opens");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age_s)).expect("sets the time");
    }

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_new_certificate_is_used_once_it_fits_and_can_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let [certificate, key] = ["a.pem", "a.key"].map(|name| directory.path().join(name));
        let files = TlsFiles { certificate: certificate.clone(), key: key.clone() };
        assert!(watch_files(directory.path(), &files).is_err(), "there is none");
        let (first, second) = (made(), made());
        write(&certificate, &first.0, 1);
        write(&key, &first.1, 1);
        let mut watched = WatchedFiles::new(vec![certificate.clone(), key.clone()]);
        let mut look = || watched.look(|| read(&files)).map(|read| read.is_ok());
        assert_eq!(look(), None);
        write(&certificate, "no certificate", 2);
        assert_eq!(look(), Some(false));
        assert_eq!(look(), None, "it is said once");
        write(&certificate, &second.0, 3);
        assert_eq!(look(), Some(false), "with the key of before");
        write(&key, &second.1, 4);
        assert_eq!(look(), Some(true));
        assert_eq!(look(), None);
        // Whoever mends it need not change when it changed: rights are no content.
        write(&key, "not yet", 5);
        assert_eq!(look(), Some(false));
        write(&key, &second.1, 5);
        assert_eq!(look(), Some(true));
    }
}
