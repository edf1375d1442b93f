//! `bridge.toml`.

use anyhow::{Context as _, Result};
use quorate_protocol::FederationId;
use quorate_quic::NodeAddress;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Connections at a time, if the process may have so many descriptors.
const CONNECTIONS_MAX: usize = 16_384;
/// Sessions of one address at a time: behind one there may be a whole mobile network.
const SESSIONS_PER_ADDRESS_MAX: usize = 1_024;

/// `bridge.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// TCP address for WebSocket and HTTP; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// The federation that is served.
    pub federation: FederationId,
    /// Web pages that may connect, as browsers name them in `Origin` (`https://shop.example`). With none, all may: a
    /// bridge serves whoever asks, and wallets believe it nothing. What is no browser sends no origin and is not bound
    /// by this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// Proxies in front of the bridge, by address. From them alone `X-Forwarded-For` is believed: its last address
    /// that is no proxy is the wallet's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpAddr>,
    /// Connections at a time, sessions and such that are not yet one. Never more than the process has descriptors for.
    #[serde(default = "connections_max", skip_serializing_if = "is_connections_max")]
    pub connections_max: usize,
    /// Sessions of one IPv4 address or IPv6 network of 64 bits at a time. This machine's own are not counted.
    #[serde(default = "sessions_per_address_max", skip_serializing_if = "is_sessions_per_address_max")]
    pub sessions_per_address_max: usize,
    /// TLS for wallets, if no proxy does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// The nodes.
    pub nodes: Vec<NodeAddress>,
}

/// Where certificate and key are, from the bridge's directory on. When they change they are read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate and those between it and an authority that browsers know, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

impl BridgeConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, is not TOML, or has unknown or malformed keys.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }
}

const fn connections_max() -> usize {
    CONNECTIONS_MAX
}

const fn sessions_per_address_max() -> usize {
    SESSIONS_PER_ADDRESS_MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_connections_max(most: &usize) -> bool {
    *most == CONNECTIONS_MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_sessions_per_address_max(most: &usize) -> bool {
    *most == SESSIONS_PER_ADDRESS_MAX
}
