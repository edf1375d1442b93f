//! The node's configuration file.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Network;
use quorate_protocol::{NodeId, relay_policy::min_confirmations};
pub use quorate_quic::NodeAddress;
use serde::{Deserialize, Serialize};
use std::{fs, net::SocketAddr, path::Path, time::Duration};

/// How to reach the chain backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainConfig {
    /// JSON-RPC address of Bitcoin Core or of `quorate-devnet chain`.
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
    /// It is missing, is not TOML, or has unknown or malformed keys.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
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
