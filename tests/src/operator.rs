//! What an operator does: looks at a node's status, runs commands in its directory.

use crate::PATIENCE;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::time::{interval, timeout};

/// Where a node's API is: by default at the port of its `listen`.
///
/// # Errors
/// Its configuration is not there.
pub fn api(home: &Path) -> Result<String> {
    let text = fs::read_to_string(home.join("node.toml"))?;
    let listen = text.lines().find_map(|line| line.strip_prefix("listen = ")).context("listen")?;
    Ok(format!("http://{}", listen.trim_matches('"')))
}

/// Asks until the node's status is as wanted.
///
/// # Errors
/// It never is.
pub async fn status_where(home: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let url = api(home)?;
    let mut last = Value::Null;
    let asked = async {
        let mut pause = interval(Duration::from_millis(50));
        loop {
            pause.tick().await;
            let Ok(answer) = reqwest::get(format!("{url}/api/v1/status")).await else { continue };
            let Ok(status) = answer.json::<Value>().await else { continue };
            last.clone_from(&status);
            if wanted(&status) {
                return status;
            }
        }
    };
    let found = timeout(PATIENCE, asked).await;
    found.with_context(|| format!("never {what}: {}: {last}", home.display()))
}

/// What a node's metrics say under a name.
///
/// # Errors
/// It does not answer, or has no such metric.
pub async fn metric(home: &Path, name: &str) -> Result<f64> {
    let text = reqwest::get(format!("{}/metrics", api(home)?)).await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
}

/// Asks until the node stands as wanted: `voting`, `lost`, `asking`, `sealed`.
///
/// # Errors
/// It never does.
pub async fn status(home: &Path, standing: &str) -> Result<Value> {
    status_where(home, standing, |status| status.get("standing").is_some_and(|found| found == standing)).await
}

/// Runs a command of `quorate-node`, and gives what it prints.
///
/// # Errors
/// It fails; the error has what it said.
pub fn command(binary: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
    command_with(binary, arguments, &[])
}

/// Runs a command of `quorate-node` with variables, and gives what it prints.
///
/// # Errors
/// It fails; the error has what it said.
pub fn command_with(
    binary: impl AsRef<Path>,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<String> {
    let mut command = Command::new(binary.as_ref());
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}
