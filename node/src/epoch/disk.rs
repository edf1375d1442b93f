//! What a node's way through the epochs leaves on disk.

use crate::{
    files::{EpochFiles, NodeFiles},
    store,
};
use anyhow::{Context as _, Result};
use quorate_protocol::{Federation, NodeId, federation::Succession};
use quorate_rules::{Kept, Opening, Save};
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes something durable in the files of the epoch that is prepared. `present` is absent while the first key is made.
pub(super) fn save(
    save: &Save,
    prepared: &EpochFiles,
    me: NodeId,
    present: Option<&Federation>,
) -> Result<()> {
    match save {
        Save::Share(share) => prepared.write_share(share),
        Save::Succession(succession) => {
            let present = present.context("there is no epoch to follow on")?;
            save_succession(succession, prepared, me, present)
        }
    }
}

fn save_succession(
    succession: &Succession,
    prepared: &EpochFiles,
    me: NodeId,
    present: &Federation,
) -> Result<()> {
    prepared.write_json("succession.json", succession)?;
    let next = present.clone().succeed(succession.clone())?;
    prepared.read_share(me, &next).context(
        "the new key is complete, but this node has lost its share of it: it has to be replaced in a later epoch",
    )?;
    Ok(())
}

/// Makes the next epoch the one in force. Whatever a crash in the middle left of its store is made again: nothing has
/// been done in the epoch before its document is in force.
pub(super) fn open(opening: &Opening, kept: &Kept, prepared: &EpochFiles, files: &NodeFiles) -> Result<()> {
    prepared.write_json("seals.json", &opening.seals)?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    let begin = quorate_rules::opening(&opening.handover, opening.succession, kept, wall_ms);
    store::begin(&*prepared.store(), &begin)?;
    files.write_federation(opening.federation.document())
}
