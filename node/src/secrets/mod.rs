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
        // Without a source it was never locked: what an interrupted lock left counts for nothing.
        if self.source()?.is_some() && (sealed.exists() || relocked(&sealed).exists()) {
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
        let locked = Self::new(&self.directory);
        let _unset = locked.key.set(key);
        locked.finish_lock(sealed)
    }

    /// Ends a lock that was interrupted, or takes it back: of the two versions of a file, the one counts that the
    /// present key opens. Nothing is changed unless that is known of all of them.
    pub(crate) fn finish_lock(&self, sealed: &[(PathBuf, String)]) -> Result<()> {
        let lockable = LOCKABLE.map(|name| (self.at(name, "sealed"), label(name)));
        let locked = self.source()?.is_some();
        let mut newer = Vec::new();
        for (path, label) in sealed.iter().chain(&lockable) {
            let next = relocked(path);
            if !next.exists() {
                continue;
            }
            let opens = |path: &Path| -> Result<bool> {
                let Ok(bytes) = fs::read(path) else { return Ok(false) };
                Ok(open(self.key()?, label, &bytes).is_some())
            };
            let counts = locked && opens(&next)?;
            if locked && !counts && !opens(path)? {
                bail!(
                    "{} does not open with this node's sealing key: wrong key or passphrase",
                    next.display()
                );
            }
            newer.push((path, next, counts));
        }
        for (path, next, counts) in newer {
            if counts {
                fs::rename(&next, path).with_context(|| format!("cannot write {}", path.display()))?;
            } else {
                erase(&next)?;
            }
        }
        if !locked {
            return Ok(());
        }
        fs::File::open(&self.directory)?.sync_all()?;
        // What is in the clear goes when what is sealed can be read.
        for (path, label) in &lockable {
            self.open(path, label)?;
        }
        for name in LOCKABLE {
            erase(&self.at(name, "key"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: &str = "quorate share of node 1 in epoch 1";

    fn sealed(directory: &Path) -> Vec<(PathBuf, String)> {
        vec![(directory.join("share.sealed"), SHARE.to_owned())]
    }

    /// A new node's directory, and where its key is to go.
    fn node() -> (tempfile::TempDir, PathBuf, KeySource) {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("node");
        fs::create_dir(&directory).expect("made");
        for (name, text) in
            [("seal", "07".repeat(32)), ("identity", "me".to_owned()), ("tls", "PEM".to_owned())]
        {
            fs::write(directory.join(format!("{name}.key")), text).expect("written");
        }
        let vault = Vault::new(&directory);
        vault.seal(&directory.join("share.sealed"), SHARE, b"share").expect("sealed");
        let source = KeySource::File(place.path().join("elsewhere"));
        (place, directory, source)
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("made");
        for entry in fs::read_dir(from).expect("a directory") {
            let path = entry.expect("a file").path();
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    }

    fn is_whole(directory: &Path) {
        let vault = Vault::new(directory);
        vault.finish_lock(&sealed(directory)).expect("it can go on");
        assert_eq!(*vault.text("identity").expect("there"), "me");
        assert_eq!(*vault.text("tls").expect("there"), "PEM");
        let share = vault.open(&directory.join("share.sealed"), SHARE).expect("opens");
        assert_eq!(share.as_slice(), b"share");
        assert!(!directory.join("share.relocked").exists() && !directory.join("identity.relocked").exists());
    }

    /// The states that a crash leaves: so many files of the new version, the source or not, so many of them in place.
    fn interrupted(before: &Path, after: &Path, at: &Path, written: usize, switched: bool, renamed: usize) {
        copy(before, at);
        for (number, name) in ["share", "identity", "tls"].iter().enumerate() {
            let new = after.join(format!("{name}.sealed"));
            let extension = if number < renamed { "sealed" } else { "relocked" };
            if number < written {
                fs::copy(&new, at.join(format!("{name}.{extension}"))).expect("copied");
            }
        }
        if switched {
            fs::copy(after.join("seal.toml"), at.join("seal.toml")).expect("copied");
        }
    }

    #[test]
    fn a_lock_that_is_interrupted_anywhere_loses_nothing() {
        let (place, before, source) = node();
        let after = place.path().join("after");
        copy(&before, &after);
        Vault::new(&after).lock(&source, &sealed(&after)).expect("locked");
        is_whole(&after);
        assert!(!after.join("seal.key").exists() && !after.join("identity.key").exists());
        let mut states: Vec<(usize, bool, usize)> = (0..=3).map(|written| (written, false, 0)).collect();
        states.extend((0..=3).map(|renamed| (3, true, renamed)));
        for (number, (written, switched, renamed)) in states.into_iter().enumerate() {
            let at = place.path().join(format!("state-{number}"));
            interrupted(&before, &after, &at, written, switched, renamed);
            if switched {
                // With another key nothing is changed.
                let key = place.path().join("elsewhere");
                let right = fs::read(&key).expect("a key");
                fs::write(&key, "09".repeat(32)).expect("written");
                let vault = Vault::new(&at);
                assert!(vault.finish_lock(&sealed(&at)).is_err(), "state {number}");
                fs::write(&key, right).expect("written");
            }
            is_whole(&at);
            let again = Vault::new(&at).lock(&KeySource::File(place.path().join("another")), &sealed(&at));
            again.expect("it can be locked again");
            is_whole(&at);
        }
    }
}
