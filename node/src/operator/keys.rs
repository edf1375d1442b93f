//! `share lock | backup | restore`: where the key is that opens a node's secrets, and a copy of them; certificates:
//! `federation renew | issue | revoke`.

#![expect(clippy::print_stdout, reason = "the commands' output")]

use crate::{
    certificates::{Authority, Subject, revoke},
    config::NodeConfig,
    disk::write_durably,
    files::NodeFiles,
    secrets::{KeySource, open, seal},
};
use anyhow::{Context as _, Result, bail, ensure};
use quorate_protocol::{Federation, FederationId, NodeId, frost::NodeShare};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path};
use zeroize::{Zeroize as _, Zeroizing};

/// Version of the file.
const VERSION: u32 = 1;
/// Most bytes of a backup that are read: those of 100 nodes and as many epochs are fewer.
const BACKUP_MAX: u64 = 64 * 1_024 * 1_024;

/// A backup: who it is of, and the rest, sealed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    version: u32,
    federation: FederationId,
    node: NodeId,
    epoch: u64,
    /// Of the passphrase that opens it, if it is one. What else the key may come from is not for this file to say.
    salt: Option<String>,
    /// In hexadecimal digits.
    sealed: String,
}

impl Backup {
    /// What is sealed holds only together with what stands beside it.
    fn label(&self) -> String {
        let Self { version, federation, node, epoch, .. } = self;
        format!("quorate backup {version} of node {node} of {federation} in epoch {epoch}")
    }
}

/// What is sealed in a backup.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    identity: String,
    tls: String,
    /// In hexadecimal digits; none if the node had lost it.
    share: Option<String>,
    /// Public files by their place in the directory.
    files: BTreeMap<String, String>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.identity.zeroize();
        self.tls.zeroize();
        self.share.zeroize();
    }
}

/// `share lock`.
///
/// # Errors
/// The node runs, the key cannot be had or is beside what it seals, or a file cannot be written.
pub(crate) fn lock(directory: &Path, source: &KeySource) -> Result<()> {
    let files = NodeFiles::new(directory);
    let _held = files.lock()?;
    ensure!(
        !source.is_in(directory),
        "the key would lie in {}, beside what it seals: choose a place that no copy of this directory has",
        directory.display()
    );
    let node = NodeConfig::read(&directory.join("node.toml"))?.id;
    let sealed = files.sealed(node)?;
    files.vault().finish_lock(&sealed)?;
    files.vault().lock(source, &sealed)?;
    println!("locked: identity, certificate key and share of node {node} open with {source} alone");
    println!("to lose that key is to lose this node: keep a backup of it, or of the node (`share backup`)");
    Ok(())
}

/// `share backup`.
///
/// # Errors
/// Something cannot be read, or the file is there already.
pub(crate) fn backup(directory: &Path, to: &Path, key: KeySource) -> Result<()> {
    ensure!(!to.exists(), "{} is there already: choose a new file", to.display());
    let files = NodeFiles::new(directory);
    let config = NodeConfig::read(&directory.join("node.toml"))?;
    let federation = files.federation()?.context("this node has no federation document yet; run it first")?;
    let share = files.epoch(federation.document()).read_share(config.id, &federation);
    if let Err(error) = &share {
        println!("the share is not in the backup, it has to be repaired: {error:#}");
    }
    let contents = Contents {
        identity: files.vault().text("identity")?.to_string(),
        tls: files.vault().text("tls")?.to_string(),
        share: share.ok().map(|share| hex::encode(*share.to_bytes())),
        files: public_files(&files, &federation)?,
    };
    let mut backup = Backup {
        version: VERSION,
        federation: federation.id(),
        node: config.id,
        epoch: federation.epoch().0,
        salt: match &key {
            KeySource::Passphrase(salt) => Some(salt.clone()),
            KeySource::File(_) | KeySource::Credential(_) | KeySource::Command(_) => None,
        },
        sealed: String::new(),
    };
    let bytes = Zeroizing::new(serde_json::to_vec(&contents)?);
    backup.sealed = hex::encode(seal(&key.new_key()?, &backup.label(), &bytes)?);
    write_durably(to, &serde_json::to_vec_pretty(&backup)?)?;
    println!(
        "{}: node {} in epoch {}; it opens with {} alone. Make a new one after each epoch",
        to.display(),
        backup.node,
        backup.epoch,
        key
    );
    Ok(())
}

/// Files that tell nobody a secret, but for a password of a chain backend in `node.toml`.
fn public_files(files: &NodeFiles, federation: &Federation) -> Result<BTreeMap<String, String>> {
    let mut names: Vec<String> =
        ["roster.json", "federation.json", "node.toml", "ca.pem", "tls.pem"].map(str::to_owned).to_vec();
    names.extend(files.revoked().exists().then(|| "revoked.txt".to_owned()));
    for succession in &federation.document().successions {
        let path = files.planned(&succession.plan).path("plan.json");
        let inside = path.strip_prefix(&files.directory).ok().filter(|_| path.exists());
        names.extend(inside.map(|inside| inside.to_string_lossy().into_owned()));
    }
    let read = |name: String| {
        let path = files.directory.join(&name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name, text))
    };
    names.into_iter().map(read).collect()
}

/// `share restore`.
///
/// # Errors
/// The directory is not empty, the file cannot be read, or does not open.
pub(crate) fn restore(directory: &Path, from: &Path, key: KeySource) -> Result<()> {
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty: choose a new directory", directory.display());
    }
    let size = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?.len();
    ensure!(size <= BACKUP_MAX, "{} is too large for a backup", from.display());
    let backup: Backup = serde_json::from_slice(&fs::read(from)?)
        .with_context(|| format!("{} is no backup, or damaged", from.display()))?;
    ensure!(
        backup.version == VERSION,
        "{} is a backup of version {}, this reads {VERSION}",
        from.display(),
        backup.version
    );
    let sealed = hex::decode(&backup.sealed).context("the backup is damaged")?;
    let key = match (key, &backup.salt) {
        (KeySource::Passphrase(_), Some(salt)) => KeySource::Passphrase(salt.clone()),
        (KeySource::Passphrase(_), None) => {
            bail!("{} opens with no passphrase but with a key", from.display())
        }
        (key, _) => key,
    };
    let Some(bytes) = open(&key.key()?, &backup.label(), &sealed) else {
        bail!("{} does not open: wrong key or passphrase, or damaged", from.display());
    };
    let contents: Contents = serde_json::from_slice(&bytes).context("the backup is damaged")?;
    write_contents(directory, backup.node, &contents)?;
    println!("node {} of {} as it was in epoch {}", backup.node, backup.federation, backup.epoch);
    println!(
        "Its store is not in a backup, so it cannot know what it has voted for: it follows and does not vote until the next epoch gives it a new share (`quorate-node epoch plan | approve`)."
    );
    println!(
        "Make sure that the old one never runs again. Move the key away from its secrets: `quorate-node share lock`."
    );
    Ok(())
}

fn write_contents(directory: &Path, node: NodeId, contents: &Contents) -> Result<()> {
    for (name, text) in &contents.files {
        let inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(inside, "the backup names a file outside of its directory: {name}");
        let path = directory.join(name);
        fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        write_durably(&path, text.as_bytes())?;
    }
    let mut key = Zeroizing::new([0; 32]);
    getrandom::getrandom(key.as_mut()).context("no source of randomness")?;
    write_durably(&directory.join("seal.key"), Zeroizing::new(hex::encode(key.as_slice())).as_bytes())?;
    write_durably(&directory.join("identity.key"), contents.identity.as_bytes())?;
    write_durably(&directory.join("tls.key"), contents.tls.as_bytes())?;
    let files = NodeFiles::new(directory);
    let federation = files.federation()?.context("the backup has no federation document")?;
    let Some(share) = &contents.share else { return Ok(()) };
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(share, bytes.as_mut()).context("the backup is damaged")?;
    let share = NodeShare::from_bytes(node, &bytes).context("the backup holds no share")?;
    files.epoch(federation.document()).write_share(&share)
}

/// `federation renew`.
///
/// # Errors
/// The certificate is of no member, or a file cannot be read or written.
pub(crate) fn renew(certificate: &Path, authority: &Path) -> Result<()> {
    let subject = Authority::read(authority)?.renew(certificate)?;
    println!(
        "{}: renewed for {subject}, for two years; who shows it reads it by itself",
        certificate.display()
    );
    Ok(())
}

/// `federation issue`.
///
/// # Errors
/// There is a certificate already, or a file cannot be read or written.
pub(crate) fn issue(directory: &Path, subject: Subject, authority: &Path) -> Result<()> {
    Authority::read(authority)?.issue(directory, subject)?;
    println!("{}: a new key and certificate for a {subject}", directory.display());
    Ok(())
}

/// `federation revoke`.
///
/// # Errors
/// It is no certificate of a bridge or client, or the list cannot be written.
pub(crate) fn revoke_at(directory: &Path, certificate: &Path) -> Result<()> {
    let files = NodeFiles::new(directory);
    files.roster()?;
    if revoke(&files.revoked(), certificate)? {
        println!("revoked at this node, running or not; every operator has to say so to their own");
    } else {
        println!("it was revoked before");
    }
    Ok(())
}
