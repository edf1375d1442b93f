//! The bridge's certificates, for wallets and for nodes, read again when their files change.

use crate::config::TlsFiles;
use anyhow::{Context as _, Result, ensure};
use quorate_quic::{TlsIdentity, WatchedFiles};
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

/// Looks between two at how long the certificate for nodes still holds: a day.
const LOOKS_PER_DAY: u32 = 43_200;
/// How long before it expires the operator is told.
const NOTICE: Duration = Duration::from_secs(45 * 86_400);
/// Whom that certificate names.
const NAME: &str = "bridge.quorate";

/// What connections are accepted with.
pub(crate) type Certificates = watch::Receiver<TlsAcceptor>;

/// Reads the files, and again whenever they change, until nobody wants to know.
///
/// # Errors
/// They cannot be read now.
pub(crate) fn watch_files(directory: &Path, files: &TlsFiles) -> Result<Certificates> {
    let files = TlsFiles { certificate: directory.join(&files.certificate), key: directory.join(&files.key) };
    let (files, acceptor) = Watched::open(files)?;
    let (sender, receiver) = watch::channel(acceptor);
    tokio::spawn(look_again(files, sender));
    Ok(receiver)
}

/// Shows nodes the certificate that is in the directory, whenever it changes, until the bridge stops.
pub(crate) async fn keep_identity(
    directory: PathBuf,
    mut files: WatchedFiles,
    identity: TlsIdentity,
    mut stopping: watch::Receiver<bool>,
) {
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    for look in 0_u32.. {
        tokio::select! {
            _ = pause.tick() => {}
            _ = stopping.changed() => return,
        }
        let read = || {
            let newer = TlsIdentity::read(&directory)?;
            ensure!(
                newer.is_valid_for(NAME),
                "it is no certificate of this federation for {NAME} that holds now"
            );
            Ok(newer)
        };
        match files.look(read) {
            None => {}
            Some(Ok(newer)) => {
                identity.renew(&newer);
                tracing::info!("new certificate for nodes");
            }
            // One of the two files has changed, and the other one will.
            Some(Err(error)) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the new certificate for nodes cannot be used yet");
            }
        }
        if look.is_multiple_of(LOOKS_PER_DAY) && identity.expires_within(NOTICE) {
            tracing::warn!(
                "this bridge's certificate for nodes expires within {} days: `quorate-node federation renew`",
                NOTICE.as_secs() / 86_400
            );
        }
    }
}

async fn look_again(mut files: Watched, certificates: watch::Sender<TlsAcceptor>) {
    let mut pause = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            () = certificates.closed() => return,
        }
        match files.look() {
            Look::Same => {}
            Look::New(acceptor) => {
                certificates.send_replace(acceptor);
                tracing::info!(certificate = %files.files.certificate.display(), "new certificate for wallets");
            }
            Look::Unusable(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the new certificate cannot be used; the one of before stays");
            }
        }
    }
}

/// What a look at the files shows.
enum Look {
    Same,
    New(TlsAcceptor),
    /// Said once for each change.
    Unusable(anyhow::Error),
}

/// The files, with when they had changed last.
struct Watched {
    files: TlsFiles,
    /// As they were read.
    seen: Changed,
    /// As they could not be read.
    unusable: Option<Changed>,
}

impl Watched {
    fn open(files: TlsFiles) -> Result<(Self, TlsAcceptor)> {
        let seen = changed_at(&files);
        let acceptor = read(&files)?;
        Ok((Self { files, seen, unusable: None }, acceptor))
    }

    /// Reads them if they are others than those that were read. Certificate and key change one after the other, and
    /// their rights after that: what cannot be used is tried at each look.
    fn look(&mut self) -> Look {
        let now = changed_at(&self.files);
        if now == self.seen {
            return Look::Same;
        }
        match read(&self.files) {
            Ok(acceptor) => {
                (self.seen, self.unusable) = (now, None);
                Look::New(acceptor)
            }
            Err(error) => match self.unusable.replace(now) {
                Some(before) if before == now => Look::Same,
                Some(_) | None => Look::Unusable(error),
            },
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(Watched::open(files.clone()).is_err(), "there is none");
        let (first, second) = (made(), made());
        write(&certificate, &first.0, 1);
        write(&key, &first.1, 1);
        let (mut watched, _) = Watched::open(files).expect("opens");
        assert!(matches!(watched.look(), Look::Same));
        write(&certificate, "no certificate", 2);
        assert!(matches!(watched.look(), Look::Unusable(_)));
        assert!(matches!(watched.look(), Look::Same), "it is said once");
        write(&certificate, &second.0, 3);
        assert!(matches!(watched.look(), Look::Unusable(_)), "with the key of before");
        write(&key, &second.1, 4);
        assert!(matches!(watched.look(), Look::New(_)));
        assert!(matches!(watched.look(), Look::Same));
        // Whoever mends it need not change when it changed: rights are no content.
        write(&key, "not yet", 5);
        assert!(matches!(watched.look(), Look::Unusable(_)));
        write(&key, &second.1, 5);
        assert!(matches!(watched.look(), Look::New(_)));
    }
}
