//! What the system says of a process and its files, for benchmarks.

use anyhow::{Context as _, Result};
use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// Room that a file takes on disk. The store's files grow in large steps, with holes.
///
/// # Errors
/// There is no such file.
pub fn on_disk(file: &Path) -> Result<u64> {
    let unit = 512;
    Ok(fs::metadata(file)?.blocks() * unit)
}

/// Resident memory.
///
/// # Errors
/// There is no such process.
pub fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("its memory")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kilobytes * 1_024)
}

/// CPU time.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let ticks_per_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may have spaces: state, then eleven others, then user and system time.
    let fields: Vec<&str> = stat.rsplit(')').next().context("fields")?.split_whitespace().collect();
    let mut ticks = 0;
    for field in [11, 12] {
        ticks += fields.get(field).context("a field")?.parse::<u32>()?;
    }
    Ok(Duration::from_secs_f64(f64::from(ticks) / f64::from(ticks_per_second)))
}

/// Bytes that a process has written into files so far.
///
/// # Errors
/// There is no such process.
pub fn written(pid: u32) -> Result<f64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(bytes.context("write_bytes")?.parse()?)
}
