//! A node's secrets at rest: its share, its identity key, the key of its certificate, the seed of a key generation.
//! What is sealed can be read with the sealing key alone, and that comes from elsewhere.
//!
//! A new node has its sealing key in `seal.key` beside what that seals, and identity and certificate key in the clear:
//! good for a trial. `quorate-node share lock` moves the key away and seals all of them; `seal.toml` says then where
//! the key comes from.

mod source;

use crate::disk::{erase, read_secret, write_durably};
use anyhow::{Context as _, Result, bail};
use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
pub(crate) use source::{KeySource, SealingKey};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use zeroize::Zeroizing;

/// Secrets that are in the clear in `NAME.key` until they are locked, and then in `NAME.sealed`.
const LOCKABLE: [&str; 2] = ["identity", "tls"];
/// Bytes of the nonce that a sealed file begins with.
const NONCE_BYTES: usize = 12;

/// The secrets in a node's directory.
pub(crate) struct Vault {
    directory: PathBuf,
    /// Asked for once in the life of a process: nobody types a passphrase at the change of an epoch.
    key: OnceLock<SealingKey>,
}

impl Vault {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), key: OnceLock::new() }
    }

    fn at(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{name}.{extension}"))
    }

    /// Where the key comes from; `None` if it is beside what it seals.
    pub(crate) fn source(&self) -> Result<Option<KeySource>> {
        let path = self.directory.join("seal.toml");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let source = toml::from_str(&text);
        Ok(Some(source.with_context(|| format!("{} does not say where the key comes from", path.display()))?))
    }

    fn key(&self) -> Result<&SealingKey> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let key = match self.source()? {
            Some(source) => source.key().context("this node's secrets are locked")?,
            None => read_secret(&self.at("seal", "key"))?,
        };
        Ok(self.key.get_or_init(|| key))
    }

    /// Writes a sealed file, durably. The label says what it is, and has to be the same when it is opened.
    pub(crate) fn seal(&self, path: &Path, label: &str, secret: &[u8]) -> Result<()> {
        write_durably(path, &seal(self.key()?, label, secret)?)
    }

    /// What is in a sealed file.
    pub(crate) fn open(&self, path: &Path, label: &str) -> Result<Zeroizing<Vec<u8>>> {
        // A lock that was interrupted.
        let next = relocked(path);
        for path in [path, &next] {
            let Ok(bytes) = fs::read(path) else { continue };
            if let Some(secret) = open(self.key()?, label, &bytes) {
                return Ok(secret);
            }
        }
        fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        bail!(
            "{} does not open with this node's sealing key: wrong key or passphrase, or damaged",
            path.display()
        )
    }

    /// A secret of [`LOCKABLE`], as text.
    pub(crate) fn text(&self, name: &str) -> Result<Zeroizing<String>> {
        let sealed = self.at(name, "sealed");
        if sealed.exists() || relocked(&sealed).exists() {
            let bytes = self.open(&sealed, &label(name))?;
            let text =
                std::str::from_utf8(&bytes).with_context(|| format!("{} is damaged", sealed.display()))?;
            return Ok(Zeroizing::new(text.to_owned()));
        }
        let path = self.at(name, "key");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Zeroizing::new(text))
    }

    /// Has another key seal everything from now on: what is sealed already, as these files with their labels, and what
    /// was in the clear. A crash leaves files that one of the two keys opens, and `seal.toml` says which.
    pub(crate) fn lock(&self, source: &KeySource, sealed: &[(PathBuf, String)]) -> Result<()> {
        let key = source.new_key()?;
        let mut files = Vec::new();
        for (path, label) in sealed {
            files.push((path.clone(), label.clone(), self.open(path, label)?));
        }
        for name in LOCKABLE {
            let text = self.text(name)?;
            files.push((self.at(name, "sealed"), label(name), Zeroizing::new(text.as_bytes().to_vec())));
        }
        for (path, label, secret) in &files {
            write_durably(&relocked(path), &seal(&key, label, secret)?)?;
        }
        let text = toml::to_string(source).context("seal.toml cannot be written")?;
        write_durably(&self.directory.join("seal.toml"), text.as_bytes())?;
        let files: Vec<_> = files.into_iter().map(|(path, label, _)| (path, label)).collect();
        let locked = Self::new(&self.directory);
        let _unset = locked.key.set(key);
        locked.finish_lock(&files)
    }

    /// Ends a lock that was interrupted: of the two versions of a file, the one counts that the present key opens.
    pub(crate) fn finish_lock(&self, sealed: &[(PathBuf, String)]) -> Result<()> {
        if self.source()?.is_none() {
            return Ok(());
        }
        let lockable = LOCKABLE.map(|name| (self.at(name, "sealed"), label(name)));
        for (path, label) in sealed.iter().chain(&lockable) {
            let next = relocked(path);
            let Ok(bytes) = fs::read(&next) else { continue };
            if open(self.key()?, label, &bytes).is_some() {
                fs::rename(&next, path).with_context(|| format!("cannot write {}", path.display()))?;
            } else {
                erase(&next)?;
            }
        }
        fs::File::open(&self.directory)?.sync_all()?;
        for name in LOCKABLE {
            if self.at(name, "sealed").exists() {
                erase(&self.at(name, "key"))?;
            }
        }
        erase(&self.at("seal", "key"))
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The name of a sealed file's next version.
fn relocked(path: &Path) -> PathBuf {
    path.with_extension("relocked")
}

fn label(name: &str) -> String {
    format!("quorate {name} key")
}

/// Seals bytes: a nonce, and what ChaCha20-Poly1305 (RFC 8439) makes of them.
pub(crate) fn seal(key: &SealingKey, label: &str, secret: &[u8]) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::getrandom(&mut nonce).context("no source of randomness")?;
    let payload = Payload { msg: secret, aad: label.as_bytes() };
    let sealed =
        ChaCha20Poly1305::new(Key::from_slice(key.as_ref())).encrypt(Nonce::from_slice(&nonce), payload);
    let Ok(sealed) = sealed else { bail!("nothing can be encrypted") };
    Ok([nonce.as_slice(), &sealed].concat())
}

/// Opens what [`seal`] made; nothing if the key or label is another one, or it is damaged.
pub(crate) fn open(key: &SealingKey, label: &str, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES)?;
    let payload = Payload { msg: sealed, aad: label.as_bytes() };
    let cipher = ChaCha20Poly1305::new(Key::from_slice(key.as_ref()));
    cipher.decrypt(Nonce::from_slice(nonce), payload).ok().map(Zeroizing::new)
}
