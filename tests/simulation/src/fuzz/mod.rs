//! What the fuzz targets in `tests/fuzz` do, and the test that replays their corpora.
//!
//! Each takes any bytes and must not panic, and what decodes must survive being written out and read again.

mod bridge;
mod honest;

pub use bridge::bridge;

use quorate::{
    FederationDocument,
    account::AccountCertificate,
    evidence::Evidence,
    finality::FinalityProof,
    proposal::Proposal,
    release::ReleaseCertificate,
    testing,
    vote::ApprovalCertificate,
    wire::{
        ClientMessage, FrameBuffer, KeygenReply, Message, PeerRequest, Refusal, RepairReply, ServerMessage,
        SuccessionReply, VotingReply, decode, encode_text,
    },
};
use quorate_rules::{
    EvidenceFile,
    records::{RoundRecord, TxRecord},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, sync::OnceLock};

/// A fuzz target: its name, which is that of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("messages", messages),
    ("frames", frames),
    ("records", records),
    ("proofs", proofs),
    ("operations", operations),
    ("bridge", bridge),
];

fn same_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("what was written can be read"), value);
    Some(value)
}

fn message<T: Message + PartialEq + Debug>(data: &[u8]) {
    if let Ok(envelope) = decode::<T>(data) {
        let text = encode_text(envelope.id, &envelope.body);
        let again =
            decode::<T>(text.as_bytes()).map_err(|(_, error)| error).expect("what was written can be read");
        assert_eq!(again.body, envelope.body);
    }
}

/// Every message of every link.
pub fn messages(data: &[u8]) {
    message::<ClientMessage>(data);
    message::<ServerMessage>(data);
    message::<PeerRequest>(data);
    // `PeerReply` is read by sort: `Done` is an answer of two.
    message::<VotingReply>(data);
    message::<KeygenReply>(data);
    message::<SuccessionReply>(data);
    message::<RepairReply>(data);
    message::<Refusal>(data);
}

/// Frames, cut where the first byte says.
pub fn frames(data: &[u8]) {
    let Some((cut, rest)) = data.split_first() else { return };
    let mut buffer = FrameBuffer::of::<PeerRequest>();
    for part in rest.chunks(usize::from(*cut).max(1)) {
        buffer.extend(part);
        while let Ok(Some(frame)) = buffer.next_frame() {
            messages(frame);
        }
    }
    // Ending in the middle of a frame is an error, not a panic.
    let _truncated = buffer.finish();
}

/// What is read from files and stores.
pub fn records(data: &[u8]) {
    // These have no equality; reading must not panic.
    let _record = serde_json::from_slice::<TxRecord>(data);
    let _round = serde_json::from_slice::<RoundRecord>(data);
    let _file = serde_json::from_slice::<EvidenceFile>(data);
    if let Some(document) = same_again::<FederationDocument>(data) {
        let id = document.roster.id();
        // Any document is either refused or a federation.
        let _refused = document.verify(id);
    }
}

/// What has to be verified: any proof, certificate or evidence is refused or holds, and none panics.
pub fn proofs(data: &[u8]) {
    static WORLD: OnceLock<testing::World> = OnceLock::new();
    let world = WORLD.get_or_init(|| testing::federation(4));
    let federation = &world.federation;
    let refused = [
        same_again::<FinalityProof>(data).is_some_and(|one| one.verify(federation).is_ok()),
        same_again::<ApprovalCertificate>(data).is_some_and(|one| one.verify(federation).is_ok()),
        same_again::<ReleaseCertificate>(data).is_some_and(|one| one.verify(federation).is_ok()),
        same_again::<AccountCertificate>(data).is_some_and(|one| one.verify(federation).is_ok()),
        same_again::<Evidence>(data).is_some_and(|one| one.verify(federation).is_ok()),
    ];
    assert!(refused.iter().filter(|held| **held).count() <= 1, "one text is one thing at most");
    if let Some(Proposal::Joint(joint)) = same_again::<Proposal>(data) {
        // A stranger's proposal is refused, whatever is in it.
        let _refused = joint.check(federation, &world.account);
    }
}

/// Drives the whole simulation: each byte is one choice.
pub fn operations(data: &[u8]) {
    let report = crate::run_script(data);
    assert_eq!(report.violation, None, "replay it with this script");
}
