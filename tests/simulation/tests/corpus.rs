//! The corpora of the fuzz targets, run as ordinary tests; and the seeds of them, from real runs.

use anyhow::{Context as _, Result};
use quorate_simulation::fuzz::TARGETS;
use std::{fs, fs::DirEntry, path::PathBuf};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

#[test]
fn every_corpus_runs_clean() -> Result<()> {
    for (name, run) in TARGETS {
        let directory = corpus(name);
        let mut files: Vec<_> = fs::read_dir(&directory)
            .with_context(|| format!("no corpus in {}", directory.display()))?
            .collect::<Result<_, _>>()?;
        files.sort_by_key(DirEntry::path);
        anyhow::ensure!(files.len() >= 4, "the corpus of {name} is too small");
        for file in files {
            run(&fs::read(file.path())?);
        }
    }
    Ok(())
}

/// Bytes cut, turned and doubled: not a fuzzer, but what a first minute of one finds.
#[test]
fn damaged_corpora_do_not_panic() -> Result<()> {
    for (name, run) in TARGETS.into_iter().filter(|(name, _)| *name != "operations") {
        for file in fs::read_dir(corpus(name))? {
            let whole = fs::read(file?.path())?;
            for step in 0..64_usize {
                let at = step * whole.len() / 64;
                let mut cut = whole.clone();
                cut.truncate(at);
                run(&cut);
                let mut turned = whole.clone();
                if let Some(byte) = turned.get_mut(at) {
                    *byte ^= 1 << (step % 8);
                }
                run(&turned);
            }
        }
    }
    Ok(())
}
