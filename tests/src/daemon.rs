//! Bitcoin Core beside a test.

use crate::{PATIENCE, free_port};
use anyhow::Result;
use quorate_node::chain::{Bitcoind, Chain as _};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A daemon on regtest, without peers and wallet; it ends with this.
#[derive(Debug)]
pub struct Daemon {
    /// Its RPC.
    pub rpc: Bitcoind,
    url: String,
    child: Child,
    _home: tempfile::TempDir,
}

impl Daemon {
    /// Starts one from its binary, with further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(binary: &Path, arguments: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let port = free_port()?;
        let child = Command::new(binary)
            .arg("-regtest")
            .arg(format!("-datadir={}", home.path().display()))
            .args([
                "-listen=0",
                "-connect=0",
                "-dnsseed=0",
                "-natpmp=0",
                "-rpcuser=test",
                "-rpcpassword=test",
            ])
            .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"])
            .arg(format!("-rpcport={}", port.port()))
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()?;
        let url = format!("http://{port}");
        Ok(Self { rpc: Bitcoind::new(&url, "test", "test"), url, child, _home: home })
    }

    /// The address of its RPC; user and password are `test`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`].
    pub async fn ready(&self) -> Result<()> {
        let started = tokio::time::Instant::now();
        while self.rpc.tip().await.is_err() {
            anyhow::ensure!(started.elapsed() < PATIENCE, "bitcoind does not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
