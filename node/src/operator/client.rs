//! What the operator's commands do: ask a running node over its API, and check evidence offline.

#![expect(clippy::print_stdout, reason = "the commands' output")]

use crate::config::NodeConfig;
use anyhow::{Context as _, Result, bail, ensure};
use quorate_protocol::FederationId;
use quorate_rules::EvidenceFile;
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// Asks the node whose files are in `directory`.
pub(crate) async fn get<T: DeserializeOwned>(directory: &Path, what: &str) -> Result<T> {
    let address = NodeConfig::read(&directory.join("node.toml"))?.api_address();
    let url = format!("http://{address}/api/v1/{what}");
    let answer =
        reqwest::get(&url).await.with_context(|| format!("no node answers at {url}; is it running?"))?;
    if !answer.status().is_success() {
        bail!("{url}: {}", answer.text().await?);
    }
    Ok(answer.json().await?)
}

pub(crate) fn print(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Checks every piece of evidence in a file against the federation document in it.
pub(crate) fn verify(path: &Path, pinned: Option<FederationId>) -> Result<()> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: EvidenceFile = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a file of evidence", path.display()))?;
    let id = file.federation.roster.id();
    let federation = file.federation.verify(pinned.unwrap_or(id))?;
    println!("federation {id}, epoch {}", federation.epoch().0);
    if pinned.is_none() {
        println!("compare the federation's id with the one you know, or give it with --federation");
    }
    let mut failed = 0;
    for (number, evidence) in (1..).zip(&file.evidence) {
        match evidence.verify(&federation) {
            Ok(node) => println!("{number}: node {node} cheated: {}", evidence.kind()),
            Err(error) => {
                failed += 1;
                println!("{number}: proves nothing against node {}: {error}", evidence.accused());
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} pieces prove nothing", file.evidence.len());
    println!("{} pieces of evidence, all of them convict", file.evidence.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{OutPoint, Txid, hashes::Hash as _};
    use quorate_protocol::{
        NodeId, Round,
        evidence::Evidence,
        testing,
        vote::{SignedVote, Verdict, VoteTarget},
    };

    fn file(guilty: bool) -> (tempfile::NamedTempFile, FederationId) {
        let world = testing::federation(4);
        let approve = |txid: u8, round| {
            let target = VoteTarget::new(
                Txid::from_byte_array([txid; 32]),
                testing::custody(),
                [(OutPoint::null(), Round(round))],
            );
            let (context, key) = (world.federation.context(), &world.keys[1]);
            SignedVote::sign(context, NodeId(2), key, target, Verdict::Approve)
        };
        let evidence =
            Evidence::TwoApprovals { first: approve(1, 0), second: approve(2, u32::from(!guilty)) };
        let federation = world.federation.document().clone();
        let content = EvidenceFile { federation, evidence: vec![evidence] };
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), serde_json::to_vec(&content).expect("serialises")).expect("writes");
        (file, world.federation.id())
    }

    #[test]
    fn evidence_is_verified_offline_and_what_proves_nothing_fails() {
        let (guilty, id) = file(true);
        verify(guilty.path(), Some(id)).expect("it convicts");
        verify(guilty.path(), Some(FederationId([0; 32]))).expect_err("of another federation");
        let (honest, _) = file(false);
        let error = verify(honest.path(), None).expect_err("two rounds are no cheat");
        assert!(error.to_string().contains("1 of 1"), "{error}");
    }
}
