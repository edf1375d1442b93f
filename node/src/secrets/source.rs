//! Where the key comes from that seals a node's secrets.

use crate::disk::{read_secret, write_durably};
use anyhow::{Context as _, Result, bail, ensure};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fmt, fs,
    io::{IsTerminal as _, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// A key of ChaCha20-Poly1305.
pub(crate) type SealingKey = Zeroizing<[u8; 32]>;

/// Variable with the passphrase, for who starts nodes without a terminal.
pub(crate) const PASSPHRASE: &str = "QUORATE_SEAL_PASSPHRASE";
/// Shortest passphrase, in characters: four words of a word list have more.
const PASSPHRASE_MIN: usize = 12;
/// Argon2id as RFC 9106, section 4 recommends it where memory is scarce: 64 MiB, three passes.
const MEMORY_KIB: u32 = 64 * 1_024;
/// Its passes.
const PASSES: u32 = 3;
/// How long a command may take before it is killed (what it has started itself is not): who starts a node does not
/// wait for ever for a KMS that does not answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes that are read of what a command prints.
const OUTPUT_MAX: u64 = 1_024;
const OUTPUT_BYTES: usize = 1_024;

/// Where the key comes from; `seal.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeySource {
    /// A file with 64 hex digits that its owner alone can read.
    File(PathBuf),
    /// A credential of systemd (`LoadCredentialEncrypted=` in the unit) with 64 hex digits.
    Credential(String),
    /// A program with its arguments that prints 64 hex digits: what asks a KMS.
    Command(Vec<String>),
    /// A passphrase, by Argon2id with this salt of 32 hex digits.
    Passphrase(String),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the key in {}", path.display()),
            Self::Credential(name) => write!(f, "the credential {name}"),
            Self::Command(words) => write!(f, "what {} prints", words.first().map_or("", String::as_str)),
            Self::Passphrase(_) => f.write_str("the passphrase"),
        }
    }
}

impl KeySource {
    /// A passphrase with a new salt.
    pub(crate) fn new_passphrase() -> Result<Self> {
        let mut salt = [0; 16];
        getrandom::getrandom(&mut salt).context("no source of randomness")?;
        Ok(Self::Passphrase(hex::encode(salt)))
    }

    /// The key.
    pub(crate) fn key(&self) -> Result<SealingKey> {
        match self {
            Self::File(path) => {
                let mode = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
                ensure!(
                    mode.permissions().mode() & 0o077 == 0,
                    "{} is a key and others may read it: chmod 600 {0}",
                    path.display()
                );
                read_secret(path)
            }
            Self::Credential(name) => credential(std::env::var_os("CREDENTIALS_DIRECTORY"), name),
            Self::Command(words) => ask(words, COMMAND_TIMEOUT),
            Self::Passphrase(salt) => stretch(&passphrase("passphrase: ")?, salt),
        }
    }

    /// The key for something new: a file is made if it is not there yet, a passphrase typed twice.
    pub(crate) fn new_key(&self) -> Result<SealingKey> {
        match self {
            Self::File(path) if !path.exists() => {
                let mut key = Zeroizing::new([0; 32]);
                getrandom::getrandom(key.as_mut()).context("no source of randomness")?;
                write_durably(path, Zeroizing::new(hex::encode(key.as_slice())).as_bytes())?;
                Ok(key)
            }
            Self::Passphrase(salt) => {
                let typed = passphrase("new passphrase: ")?;
                ensure!(*typed == *passphrase("once more: ")?, "the two passphrases are not the same");
                stretch(&typed, salt)
            }
            Self::File(_) | Self::Credential(_) | Self::Command(_) => self.key(),
        }
    }

    /// Whether the key would lie in a directory, where whoever takes that has it too.
    pub(crate) fn is_in(&self, directory: &Path) -> bool {
        let Self::File(path) = self else { return false };
        let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        path.parent().is_some_and(|parent| whole(parent).starts_with(whole(directory)))
    }
}

/// What systemd hands to the unit, in a directory of its own.
fn credential(directory: Option<OsString>, name: &str) -> Result<SealingKey> {
    let directory = directory.with_context(|| {
        format!("systemd gives no credentials here: the unit needs LoadCredentialEncrypted={name}")
    })?;
    read_secret(&PathBuf::from(directory).join(name))
}

/// What a command prints.
fn ask(words: &[String], patience: Duration) -> Result<SealingKey> {
    let (program, arguments) = words.split_first().context("seal.toml names no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}, which seal.toml names"))?;
    let output = child.stdout.take().context("its output")?;
    let (sender, read) = mpsc::channel();
    let until = Instant::now() + patience;
    thread::spawn(move || {
        // Never moved to a larger place, which would leave it behind.
        let mut printed = Zeroizing::new(String::with_capacity(OUTPUT_BYTES));
        let read = output.take(OUTPUT_MAX).read_to_string(&mut printed);
        sender.send(read.map(|_| printed))
    });
    let printed = read.recv_timeout(patience);
    // It may have closed its output and go on.
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if printed.is_err() || Instant::now() >= until => break None,
            None => thread::sleep(Duration::from_millis(1)),
        }
    };
    let (Some(status), Ok(printed)) = (status, printed) else {
        child.kill()?;
        child.wait()?;
        bail!("{program}, which seal.toml names, has not ended within {patience:?}");
    };
    let printed = printed.with_context(|| format!("cannot read {program}"))?;
    ensure!(status.success(), "{program}, which seal.toml names, has failed: {status}");
    let mut key = Zeroizing::new([0; 32]);
    if hex::decode_to_slice(printed.trim(), key.as_mut()).is_err() {
        bail!("{program}, which seal.toml names, does not print a key of 64 hex digits");
    }
    Ok(key)
}

fn passphrase(prompt: &str) -> Result<Zeroizing<String>> {
    let typed = match std::env::var(PASSPHRASE) {
        Ok(given) => Zeroizing::new(given),
        Err(_) if std::io::stdin().is_terminal() => {
            Zeroizing::new(rpassword::prompt_password(prompt).context("no passphrase")?)
        }
        Err(_) => bail!(
            "a passphrase opens this node's secrets, and there is no terminal to ask for it: set {PASSPHRASE}"
        ),
    };
    ensure!(typed.chars().count() >= PASSPHRASE_MIN, "a passphrase has {PASSPHRASE_MIN} characters or more");
    Ok(typed)
}

fn stretch(passphrase: &str, salt: &str) -> Result<SealingKey> {
    let salt = hex::decode(salt).context("the salt of the passphrase is damaged")?;
    let params = Params::new(MEMORY_KIB, PASSES, 1, None);
    let Ok(params) = params else { bail!("Argon2id does not take these parameters") };
    let mut key = Zeroizing::new([0; 32]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    if let Err(error) = argon2.hash_password_into(passphrase.as_bytes(), &salt, key.as_mut()) {
        bail!("no key can be made of the passphrase: {error}");
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> Result<SealingKey> {
        KeySource::Command(["sh", "-c", script].map(str::to_owned).to_vec()).key()
    }

    #[test]
    fn a_command_prints_the_key_or_its_fault_is_told_without_what_it_printed() {
        let digits = "07".repeat(32);
        assert_eq!(*command(&format!("echo {digits}")).expect("a key"), [7; 32]);
        for (script, fault) in [
            ("echo secret", "64 hex digits"),
            ("echo secret; exit 3", "exit status: 3"),
            ("yes secret", "sh"),
        ] {
            let refused = format!("{:#}", command(script).expect_err("no key"));
            assert!(refused.contains(fault) && !refused.contains("secret"), "{refused}");
        }
        let missing = KeySource::Command(vec!["/nowhere/kms".to_owned()]).key().expect_err("none");
        assert!(missing.to_string().contains("cannot run /nowhere/kms"), "{missing}");
    }

    #[test]
    fn a_command_that_does_not_answer_is_ended() {
        for script in ["exec sleep 600", "echo 07; exec >&-; exec sleep 600"] {
            let words = ["sh", "-c", script].map(str::to_owned);
            let refused = ask(&words, Duration::from_millis(50)).expect_err("no key").to_string();
            assert!(refused.contains("has not ended within 50ms"), "{refused}");
        }
    }

    #[test]
    fn a_credential_is_what_systemd_hands_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let given = || Some(directory.path().as_os_str().to_owned());
        assert!(format!("{:#}", credential(given(), "seal").expect_err("none")).contains("seal"));
        fs::write(directory.path().join("seal"), format!("{}\n", "07".repeat(32))).expect("written");
        assert_eq!(*credential(given(), "seal").expect("a key"), [7; 32]);
        let refused = credential(None, "seal").expect_err("no systemd").to_string();
        assert!(refused.contains("LoadCredentialEncrypted=seal"), "{refused}");
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.seal");
        let source = KeySource::File(path.clone());
        assert!(source.key().is_err());
        let key = source.new_key().expect("made");
        assert_eq!(*source.key().expect("a key"), *key);
        assert_eq!(*source.new_key().expect("there already"), *key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        assert!(source.key().expect_err("others may read it").to_string().contains("chmod 600"));
        assert!(source.is_in(directory.path()) && !source.is_in(Path::new("/nowhere")));
    }

    #[test]
    fn a_passphrase_gives_the_same_key_with_its_salt_alone() {
        let salt = "000102030405060708090a0b0c0d0e0f";
        let key = stretch("correct horse battery staple", salt).expect("a key");
        assert_eq!(*stretch("correct horse battery staple", salt).expect("a key"), *key);
        assert_ne!(*stretch("correct horse battery stable", salt).expect("a key"), *key);
        assert_ne!(*stretch("correct horse battery staple", &"01".repeat(16)).expect("a key"), *key);
        assert!(stretch("correct horse battery staple", "salt").is_err());
    }
}
