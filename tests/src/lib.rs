//! Whole-system tests: a federation of real processes that can be killed, and helpers for plain clients.

mod bridge;
pub mod daemon;
pub mod distance;
pub mod drill;
pub mod esplora;
pub mod operator;
pub mod process;
pub mod wallets;

pub use bridge::Bridge;

use crate::daemon::Daemon;
use anyhow::{Context as _, Result};
use bitcoin::Network;
use quorate::{FederationId, headers::Checkpoint};
use quorate_devnet::DevnetChain;
use quorate_node::{
    config::ChainConfig,
    provision::{self, NewFederation, Provisioned},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;

/// Longest wait for anything in a test; conditions end waits much earlier.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A federation whose nodes and bridge are processes. The chain is the embedded one, which lives in the test, or a
/// [`Daemon`].
#[derive(Debug)]
pub struct Cluster<C = Arc<DevnetChain>> {
    /// The chain.
    pub chain: C,
    /// The federation's files.
    pub files: Provisioned,
    /// The bridge.
    pub bridge: Bridge,
    /// Variables of the nodes that are started from now on.
    pub variables: Vec<(String, String)>,
    nodes: Vec<Option<Child>>,
    binary: PathBuf,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// On an embedded chain: starts `nodes` nodes from the given `test-node` binary; returns when the bridge is
    /// connected to all of them.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(binary: impl AsRef<Path>, nodes: u16) -> Result<Self> {
        Self::start_apart(binary, nodes, Duration::ZERO).await
    }

    /// The same with nodes that are so far apart that what one sends reaches the others after `one_way`. The bridge is
    /// near all of them.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start_apart(binary: impl AsRef<Path>, nodes: u16, one_way: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let chain = Arc::new(DevnetChain::new());
        tokio::spawn(quorate_devnet::serve_rpc(listener, chain.clone()));
        let backend = ChainConfig::open(&url);
        Self::start_with(chain, backend, binary.as_ref(), nodes, one_way).await
    }
}

impl Cluster<Daemon> {
    /// On Bitcoin Core: starts `nodes` nodes from the given `test-node` binary; returns when the bridge is connected to
    /// all of them.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn on(daemon: Daemon, binary: impl AsRef<Path>, nodes: u16) -> Result<Self> {
        let backend = daemon.config();
        Self::start_with(daemon, backend, binary.as_ref(), nodes, Duration::ZERO).await
    }
}

impl<C> Cluster<C> {
    async fn start_with(
        chain: C,
        backend: ChainConfig,
        binary: &Path,
        nodes: u16,
        one_way: Duration,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (network, birthday) = (Network::Regtest, Checkpoint::genesis(Network::Regtest));
        let plan = NewFederation { nodes, network, birthday, first_port: None, chain: vec![backend] };
        let files = provision::federation(&directory.path().join("federation"), &plan)?;
        if !one_way.is_zero() {
            move_apart(&files, one_way).await?;
        }
        let bridge = Bridge::start(&files.bridge, binary)?;
        let mut cluster = Self {
            chain,
            bridge,
            variables: Vec::new(),
            nodes: (0..nodes).map(|_| None).collect(),
            binary: binary.to_owned(),
            files,
            _directory: directory,
        };
        for number in 1..=usize::from(nodes) {
            cluster.start_node(number, None)?;
        }
        cluster.connected(usize::from(nodes)).await?;
        Ok(cluster)
    }

    /// The federation's id.
    pub fn id(&self) -> FederationId {
        self.files.id
    }

    /// The bridge's WebSocket address.
    pub fn url(&self) -> String {
        format!("ws://{}", self.bridge.address())
    }

    /// Starts a node, with a place at which it is to die.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_node(&mut self, number: usize, crash_at: Option<&str>) -> Result<()> {
        let home = self.files.nodes.get(number - 1).context("no such node")?;
        let mut command = Command::new(&self.binary);
        command.arg("run").arg(home).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()));
        command.envs(self.variables.iter().cloned());
        if let Some(place) = crash_at {
            command.env("QUORATE_CRASH_AT", place);
        }
        let child = command.spawn().context("cannot start a node")?;
        *self.nodes.get_mut(number - 1).context("no such node")? = Some(child);
        Ok(())
    }

    /// A node's process.
    pub fn pid(&self, number: usize) -> Option<u32> {
        self.nodes.get(number.checked_sub(1)?)?.as_ref().map(Child::id)
    }

    /// Kills a node as by `kill -9`.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let child = self.nodes.get_mut(number - 1).and_then(Option::take);
        let mut child = child.context("the node is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a node's process a signal, such as `STOP` and `CONT`.
    ///
    /// # Errors
    /// It is not running.
    pub fn signal(&self, number: usize, signal: &str) -> Result<()> {
        let pid = self.pid(number).context("the node is not running")?;
        let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status()?;
        anyhow::ensure!(sent.success(), "the signal was not sent");
        Ok(())
    }

    /// Whether a node has died by itself.
    ///
    /// # Errors
    /// It was not started.
    pub fn has_died(&mut self, number: usize) -> Result<bool> {
        let child = self.nodes.get_mut(number - 1).and_then(Option::as_mut).context("not started")?;
        Ok(child.try_wait()?.is_some())
    }

    /// Waits until the bridge is connected to at least `count` nodes.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn connected(&self, count: usize) -> Result<()> {
        let count = u64::try_from(count)?;
        self.bridge.connected(|nodes| nodes >= count).await
    }
}

impl<C> Drop for Cluster<C> {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _already_dead = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Has each node reach the others by relays.
async fn move_apart(files: &Provisioned, one_way: Duration) -> Result<()> {
    let mut relays = Vec::new();
    for node in &files.addresses {
        relays.push((node.address, distance::datagrams(node.address, one_way).await?));
    }
    for (home, node) in files.nodes.iter().zip(&files.addresses) {
        let path = home.join("node.toml");
        let mut config = std::fs::read_to_string(&path)?;
        for (address, relay) in relays.iter().filter(|(address, _)| *address != node.address) {
            config = config.replace(&format!("\"{address}\""), &format!("\"{relay}\""));
        }
        std::fs::write(&path, config)?;
    }
    Ok(())
}

/// Waits until a condition holds, looking every few milliseconds.
///
/// # Errors
/// It does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let started = tokio::time::Instant::now();
    while !condition() {
        anyhow::ensure!(started.elapsed() < PATIENCE, "did not happen in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The Bitcoin Core daemon to test against: `BITCOIND_EXE`, then `PATH`. In CI it has to be there.
pub fn bitcoind() -> Option<PathBuf> {
    let named = std::env::var_os("BITCOIND_EXE").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("bitcoind")).find(|file| file.exists())
    };
    let found = named.or_else(on_path);
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI has to name a bitcoind in BITCOIND_EXE");
    found
}

/// A free TCP port, at this moment.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
