//! Files that are there as a whole or not at all, and what is read from them.

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
};
use zeroize::Zeroizing;

/// A key in a file, as 64 hex digits.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    key_of(&Zeroizing::new(text)).with_context(|| format!("{} is not a key of 64 hex digits", path.display()))
}

pub(crate) fn key_of(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), bytes.as_mut()).ok().map(|()| bytes)
}

pub(crate) fn erase(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot erase {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Writes a file so that after a crash it is either absent, as before, or complete.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("new");
    let directory = path.parent().context("a file in a directory")?;
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        // A node that runs as another user than who runs a command has to be able to read it.
        let before = fs::metadata(path);
        let (owner, mode) = match &before {
            Ok(before) => (before, before.mode() & 0o777),
            Err(_) => (&fs::metadata(directory)?, 0o600),
        };
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (owner.uid(), owner.gid()) {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a secret into a new file for its owner alone.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
