//! A bridge as a process of its own.

use crate::{PATIENCE, free_port};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{interval, timeout};

/// Name of its program, which is built with those of the nodes.
const PROGRAM: &str = "test-bridge";

fn program(node: &Path) -> Result<PathBuf> {
    let beside = node.with_file_name(PROGRAM);
    Ok(if beside.exists() { beside } else { std::env::current_exe()?.with_file_name(PROGRAM) })
}

/// A running bridge; it is killed when this is dropped.
#[derive(Debug)]
pub struct Bridge {
    address: SocketAddr,
    child: Child,
}

impl Bridge {
    /// Starts a bridge of this directory. Its program is the one beside a node's, or else beside this one.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(directory: &Path, node: &Path) -> Result<Self> {
        Self::run(Command::new(program(node)?), directory)
    }

    /// The same for a bridge that may have so many files and sockets open.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_with_descriptors(directory: &Path, node: &Path, most: u32) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program(node)?);
        Self::run(command, directory)
    }

    fn run(mut command: Command, directory: &Path) -> Result<Self> {
        let address = free_port()?;
        command.arg(directory).args(["--listen", &address.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()));
        let child = command.spawn().context("cannot start a bridge")?;
        Ok(Self { address, child })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the nodes that it is connected to are as wanted.
    ///
    /// # Errors
    /// They never are.
    pub async fn connected(&self, wanted: impl Fn(u64) -> bool) -> Result<()> {
        let url = format!("http://{}/health", self.address);
        let asked = async {
            let mut pause = interval(Duration::from_millis(5));
            loop {
                pause.tick().await;
                // It may not listen yet.
                let Ok(answer) = reqwest::get(&url).await else { continue };
                let Ok(health) = answer.json::<Value>().await else { continue };
                if health.get("nodes_connected").and_then(Value::as_u64).is_some_and(&wanted) {
                    return;
                }
            }
        };
        timeout(PATIENCE, asked).await.context("the bridge is not connected as it should be")
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}
