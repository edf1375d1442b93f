//! The node's configuration file.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Network;
use quorate_protocol::{NodeId, relay_policy::min_confirmations};
pub use quorate_quic::NodeAddress;
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// How to reach the chain backend.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// JSON-RPC address of Bitcoin Core or of `quorate-devnet chain`.
    pub url: String,
    /// RPC user.
    #[serde(default)]
    pub user: String,
    /// RPC password; `QUORATE_CHAIN_PASSWORD` if that is set. A file with a password may be read by its owner alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Bitcoin Core's cookie file, in place of user and password. It is read again when the daemon has started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<PathBuf>,
}

impl fmt::Debug for ChainConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainConfig").field("url", &self.url).finish_non_exhaustive()
    }
}

impl ChainConfig {
    /// A backend that lets everybody in, such as the embedded chain.
    pub fn open(url: &str) -> Self {
        Self { url: url.to_owned(), user: String::new(), password: String::new(), cookie: None }
    }
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
    /// Confirmations a coin needs before it may be spent; the network's default if absent (1 on regtest, 2 on signet
    /// and testnet, 3 on mainnet), and never less than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_confirmations: Option<u32>,
    /// Seconds for the votes on one transaction; the design's default is 30.
    #[serde(default = "thirty")]
    pub voting_timeout_s: u64,
    /// Milliseconds for the shares of one signing attempt; a silent node costs a payment this long once.
    #[serde(default = "two_thousand")]
    pub signing_timeout_ms: u64,
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
    /// It is missing, is not TOML, has unknown or malformed keys, or holds a password that others may read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut config: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a valid configuration", path.display()))?;
        let mode = fs::metadata(path)?.permissions().mode();
        ensure!(
            config.chain.password.is_empty() || mode & 0o077 == 0,
            "{} holds a password and others may read it: chmod 600 {0}, or set QUORATE_CHAIN_PASSWORD, or name a cookie file",
            path.display()
        );
        if let Ok(password) = std::env::var("QUORATE_CHAIN_PASSWORD") {
            config.chain.password = password;
        }
        Ok(config)
    }

    /// Where the operator's API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], self.listen.port())))
    }

    /// The rules' settings on a network.
    ///
    /// # Errors
    /// Fewer confirmations than the network needs: a payment could rest on a coin that a reorganisation takes away.
    pub(crate) fn settings(&self, network: Network) -> Result<quorate_rules::Settings> {
        let least = min_confirmations(network);
        let confirmations = self.min_confirmations.unwrap_or(least);
        ensure!(
            confirmations >= least,
            "min_confirmations = {confirmations} in node.toml is too few for {network}: set {least} or more, or leave it out"
        );
        Ok(quorate_rules::Settings {
            min_confirmations: confirmations,
            voting_timeout: Duration::from_secs(self.voting_timeout_s),
            signing_timeout: Duration::from_millis(self.signing_timeout_ms),
            bug: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(confirmations: &str) -> NodeConfig {
        let text = format!(
            "id = 1\nlisten = \"127.0.0.1:1\"\npeers = []\n{confirmations}\n[chain]\nurl = \"http://127.0.0.1:2\"\n"
        );
        toml::from_str(&text).expect("a configuration")
    }

    #[test]
    fn a_file_with_a_password_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.toml");
        let write = |password: &str, mode: u32| {
            let text = format!(
                "id = 1\nlisten = \"127.0.0.1:1\"\npeers = []\n[chain]\nurl = \"http://127.0.0.1:2\"\npassword = \"{password}\"\n"
            );
            fs::write(&path, text).expect("writes");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changes");
            NodeConfig::read(&path)
        };
        let refused = write("word", 0o640).expect_err("its group may read it").to_string();
        assert!(refused.contains("chmod 600") && !refused.contains("word = "), "{refused}");
        assert_eq!(write("word", 0o600).expect("its owner alone").chain.password, "word");
        write("", 0o644).expect("nothing to hide");
    }

    #[test]
    fn fewer_confirmations_than_the_network_needs_are_refused() {
        let confirmations = |text: &str, network| {
            config(text).settings(network).map(|settings| settings.min_confirmations).ok()
        };
        for (network, least) in [(Network::Regtest, 1), (Network::Signet, 2), (Network::Bitcoin, 3)] {
            assert_eq!(confirmations("", network), Some(least), "the default on {network}");
            assert_eq!(confirmations("min_confirmations = 6", network), Some(6));
            assert_eq!(confirmations(&format!("min_confirmations = {}", least - 1), network), None);
        }
        let refused = config("min_confirmations = 0").settings(Network::Regtest).expect_err("none");
        assert!(refused.to_string().contains("set 1 or more"), "{refused}");
    }
}
