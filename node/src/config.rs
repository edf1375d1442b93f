//! The node's configuration file.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Network;
use quorate_protocol::{NodeId, relay_policy::min_confirmations};
pub use quorate_quic::NodeAddress;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use std::{
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Inputs and described outputs of a payment that a node checks without handing it to another thread: two inputs and
/// the change, some 200 us.
const SMALL_PROPOSAL: usize = 3;
/// What a chain backend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ChainKind {
    /// JSON-RPC: Bitcoin Core, or `quorate-devnet chain`.
    #[default]
    Bitcoind,
    /// Esplora's HTTP API. It is believed about which coins that nobody indexes are unspent, and what a mempool has.
    Esplora,
}

/// How to reach a chain backend.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// What it speaks; `bitcoind` by default.
    #[serde(default)]
    pub kind: ChainKind,
    /// Its address; an Esplora's with the path of the API.
    pub url: String,
    /// RPC user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
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
        let Self { kind, url, .. } = self;
        f.debug_struct("ChainConfig").field("kind", kind).field("url", url).finish_non_exhaustive()
    }
}

impl ChainConfig {
    /// A backend with JSON-RPC that lets everybody in, such as the embedded chain.
    pub fn open(url: &str) -> Self {
        let (url, user, password) = (url.to_owned(), String::new(), String::new());
        Self { kind: ChainKind::Bitcoind, url, user, password, cookie: None }
    }

    /// An Esplora.
    pub fn esplora(url: &str) -> Self {
        Self { kind: ChainKind::Esplora, ..Self::open(url) }
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
    /// The chain backends, the preferred one first. One table will do in place of a list.
    #[serde(deserialize_with = "one_or_many")]
    pub chain: Vec<ChainConfig>,
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

/// Most backends of a node.
const BACKENDS_MAX: usize = 8;

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChainConfig>, D::Error> {
    struct Tables;

    impl<'de> Visitor<'de> for Tables {
        type Value = Vec<ChainConfig>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table [chain] or tables [[chain]]")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            ChainConfig::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }

    deserializer.deserialize_any(Tables)
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
            config.chain.iter().all(|chain| chain.password.is_empty()) || mode & 0o077 == 0,
            "{} holds a password and others may read it: chmod 600 {0}, or set QUORATE_CHAIN_PASSWORD, or name a cookie file",
            path.display()
        );
        let backends = config.chain.len();
        ensure!(
            (1..=BACKENDS_MAX).contains(&backends),
            "{} names {backends} chain backends: name 1 to {BACKENDS_MAX}",
            path.display()
        );
        for chain in config.chain.iter().filter(|chain| chain.kind == ChainKind::Esplora) {
            ensure!(
                chain.user.is_empty() && chain.password.is_empty() && chain.cookie.is_none(),
                "{}: an Esplora has no user, password or cookie: {}",
                path.display(),
                chain.url
            );
        }
        if let Ok(password) = std::env::var("QUORATE_CHAIN_PASSWORD") {
            let with_password =
                |chain: &&mut ChainConfig| chain.kind == ChainKind::Bitcoind && chain.cookie.is_none();
            config
                .chain
                .iter_mut()
                .filter(with_password)
                .for_each(|chain| chain.password.clone_from(&password));
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
            small_proposal: SMALL_PROPOSAL,
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
        assert_eq!(write("word", 0o600).expect("its owner alone").chain[0].password, "word");
        write("", 0o644).expect("nothing to hide");
    }

    #[test]
    fn backends_are_one_table_or_several() {
        let read = |chain: &str| {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("node.toml");
            fs::write(&path, format!("id = 1\nlisten = \"127.0.0.1:1\"\npeers = []\n{chain}"))
                .expect("writes");
            NodeConfig::read(&path)
        };
        let one = read("[chain]\nurl = \"http://127.0.0.1:2\"\n").expect("a table");
        assert_eq!(one.chain, [ChainConfig::open("http://127.0.0.1:2")]);
        let esplora = "[[chain]]\nkind = \"esplora\"\nurl = \"http://127.0.0.1:3/api\"\n";
        let two = read(&format!("[[chain]]\nurl = \"http://127.0.0.1:2\"\n{esplora}")).expect("tables");
        assert_eq!(two.chain[1], ChainConfig::esplora("http://127.0.0.1:3/api"));
        let written = toml::to_string(&two).expect("tables");
        assert_eq!(toml::from_str::<NodeConfig>(&written).expect("what was written"), two);
        let refused = |chain: &str| format!("{:#}", read(chain).expect_err("refused"));
        assert!(refused(&format!("{esplora}user = \"x\"\n")).contains("an Esplora has no user"));
        assert!(refused("[[chain]]\nurl = \"x\"\ncolour = 3\n").contains("colour"));
        assert!(refused("chain = []\n").contains("name 1 to 8"));
        assert!(refused("chain = 3\n").contains("[[chain]]"));
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
