//! The node's configuration file and the files beside it.

use anyhow::{Context as _, Result, bail};
use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
use quorate::{NodeId, digest::IdentityKey, federation::Roster, frost::NodeShare};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// A node and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number in the roster.
    pub id: NodeId,
    /// UDP address of its QUIC endpoint.
    pub address: SocketAddr,
}

/// How to reach the chain backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainConfig {
    /// JSON-RPC address of Bitcoin Core or of `quorate-node chain`.
    pub url: String,
    /// RPC user.
    #[serde(default)]
    pub user: String,
    /// RPC password.
    #[serde(default)]
    pub password: String,
}

/// `node.toml`. Paths are relative to the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's number in the roster.
    pub id: NodeId,
    /// UDP address to listen on.
    pub listen: SocketAddr,
    /// TCP address of the operator's HTTP API; the port of `listen` on the loopback address by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<SocketAddr>,
    /// Where the other nodes listen.
    pub peers: Vec<NodeAddress>,
    /// The chain backend.
    pub chain: ChainConfig,
    /// Confirmations a coin needs before it may be spent; 1 suits regtest, 3 or more a network with reorganisations.
    #[serde(default = "one")]
    pub min_confirmations: u32,
    /// Seconds for the votes on one transaction; the design's default is 30.
    #[serde(default = "thirty")]
    pub voting_timeout_s: u64,
    /// Milliseconds for the shares of one signing attempt; a silent node costs a payment this long once.
    #[serde(default = "two_thousand")]
    pub signing_timeout_ms: u64,
}

fn one() -> u32 {
    1
}

fn thirty() -> u64 {
    30
}

fn two_thousand() -> u64 {
    2_000
}

impl NodeConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, is not TOML, or has unknown or malformed keys.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// Where the operator's API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], self.listen.port())))
    }

    pub(crate) fn rules(&self) -> crate::machine::Rules {
        crate::machine::Rules {
            min_confirmations: self.min_confirmations,
            voting_timeout: Duration::from_secs(self.voting_timeout_s),
            signing_timeout: Duration::from_millis(self.signing_timeout_ms),
            bug: None,
        }
    }
}

/// The files of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles(pub(crate) PathBuf);

impl NodeFiles {
    pub(crate) fn roster(&self) -> Result<Roster> {
        self.read_json("roster.json")
    }

    pub(crate) fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.0.join(name);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    fn secret(&self, name: &str) -> Result<Zeroizing<[u8; 32]>> {
        let path = self.0.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = Zeroizing::new(text);
        let mut bytes = Zeroizing::new([0; 32]);
        if hex::decode_to_slice(text.trim(), bytes.as_mut()).is_err() {
            bail!("{} is not a key of 64 hex digits", path.display());
        }
        Ok(bytes)
    }

    pub(crate) fn identity(&self) -> Result<IdentityKey> {
        IdentityKey::from_bytes(&*self.secret("identity.key")?).context("identity.key is not a valid key")
    }

    /// Seed of the key generation's randomness: a restarted node says the same again.
    pub(crate) fn dkg_seed(&self) -> Result<Zeroizing<[u8; 32]>> {
        self.secret("dkg.seed")
    }

    /// Stores the share, encrypted under `seal.key`, durably.
    pub(crate) fn write_share(&self, node: NodeId, share: &NodeShare) -> Result<()> {
        let mut nonce = [0; 12];
        getrandom::getrandom(&mut nonce).context("no source of randomness")?;
        let label = format!("quorate share of node {node}");
        let bytes = share.to_bytes();
        let payload = Payload { msg: bytes.as_ref(), aad: label.as_bytes() };
        let sealed = self.cipher()?.encrypt(Nonce::from_slice(&nonce), payload);
        let Ok(sealed) = sealed else { bail!("the share cannot be encrypted") };
        self.write_durably("share.sealed", &[nonce.as_slice(), &sealed].concat())
    }

    pub(crate) fn read_share(&self, node: NodeId) -> Result<NodeShare> {
        let path = self.0.join("share.sealed");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (nonce, sealed) = bytes.split_at_checked(12).context("share.sealed is cut short")?;
        let label = format!("quorate share of node {node}");
        let payload = Payload { msg: sealed, aad: label.as_bytes() };
        let Ok(open) = self.cipher()?.decrypt(Nonce::from_slice(nonce), payload) else {
            bail!("share.sealed does not open with seal.key: wrong key, or damaged");
        };
        let open = Zeroizing::new(open);
        let bytes: &[u8; 32] = open.as_slice().try_into().context("share.sealed holds no share")?;
        NodeShare::from_bytes(node, bytes).context("share.sealed holds no share")
    }

    fn cipher(&self) -> Result<ChaCha20Poly1305> {
        Ok(ChaCha20Poly1305::new(Key::from_slice(self.secret("seal.key")?.as_ref())))
    }

    /// Writes a file so that after a crash it is either absent, as before, or complete.
    pub(crate) fn write_durably(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.0.join(name);
        let draft = self.0.join(format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            fs::File::open(&self.0)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
