//! Seeds of the fuzz corpora: real messages and what is inside them, from a few runs with conflicts and cheats.

use anyhow::{Context as _, Result};
use quorate_simulation::{Options, run};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Runs that together see every type of message.
const SEEDS: [u64; 8] = [1, 2, 3, 12, 31, 52, 128, 524];
/// Parts of messages that are verified by themselves.
const PROOFS: [&str; 5] = ["proof", "certificate", "releases", "account", "proposal"];

pub(crate) fn write(directory: &Path) -> Result<()> {
    let mut samples: BTreeMap<String, String> = BTreeMap::new();
    for seed in SEEDS {
        let report = run(Options { seed, samples: true, ..Options::default() });
        for (name, text) in report.samples {
            let kept = samples.entry(name).or_default();
            if text.len() > kept.len() {
                *kept = text;
            }
        }
    }
    for target in ["messages", "frames", "records", "proofs", "operations"] {
        fs::create_dir_all(directory.join(target))?;
    }
    for (name, text) in &samples {
        fs::write(directory.join("messages").join(format!("{name}.json")), text)?;
        let length = u32::try_from(text.len()).context("short")?.to_be_bytes();
        let frame = [&[97][..], &length, text.as_bytes()].concat();
        if text.len() < 4_000 {
            fs::write(directory.join("frames").join(name), frame)?;
        }
        let value: Value = serde_json::from_str(text)?;
        for part in PROOFS {
            let found =
                value.get(part).map(|found| found.as_array().and_then(|all| all.first()).unwrap_or(found));
            if let Some(found) = found.filter(|found| found.is_object()) {
                let path = directory.join("proofs").join(format!("{name}-{part}.json"));
                fs::write(path, serde_json::to_vec(found)?)?;
            }
        }
    }
    let world = quorate::testing::federation(4);
    let document = world.federation.document();
    let records = directory.join("records");
    fs::write(records.join("federation.json"), serde_json::to_vec(document)?)?;
    let next = quorate::testing::succession(&world, &[quorate::NodeId(2)]);
    fs::write(records.join("second-epoch.json"), serde_json::to_vec(next.federation.document())?)?;
    let file = serde_json::json!({ "federation": document, "evidence": [] });
    fs::write(records.join("evidence-file.json"), serde_json::to_vec(&file)?)?;
    let round =
        serde_json::json!({ "outpoint": format!("{}:1", "00".repeat(32)), "round": 2, "release": null });
    fs::write(records.join("round.json"), serde_json::to_vec(&round)?)?;
    let record = serde_json::json!({ "target": { "txid": "00".repeat(32), "inputs": [] }, "spent": [], "locked_at": 1 });
    fs::write(records.join("transaction.json"), serde_json::to_vec(&record)?)?;
    for (name, byte) in [("zeros", 0_u8), ("ones", 1), ("sevens", 7), ("high", 255)] {
        fs::write(directory.join("operations").join(name), vec![byte; 400])?;
    }
    let counting: Vec<u8> = (0..=255).collect();
    Ok(fs::write(directory.join("operations").join("counting"), counting)?)
}
