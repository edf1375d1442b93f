//! The rules of one node as a sans-IO machine: voter, signer, coordinator and subscriptions over one state.
//!
//! A driver feeds it inputs and carries out its outputs *in order*. A [`Output::Persist`] must be durable before any
//! later output leaves; that one rule is what V2, V4 and the nonce rule need of the world outside.
//!
//! Safety, in the words of the design's section 5: `vote` keeps V1, V2 and V4, [`quorate_protocol::vote`] V3,
//! `release` V5 and V6, `coordination` counts each node once and only what verifies, `watch` V7, the driver's mTLS
//! gives V8, `standing` V9.

mod accounts;
mod announcements;
pub mod archive;
mod bugs;
mod cancellations;
mod checks;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it is about")]
mod cluster;
mod context;
mod conviction;
mod coordination;
mod effects;
mod examining;
mod finality;
mod followed;
pub mod index;
mod ledger;
mod lookups;
mod machine;
mod notices;
mod output;
mod policy;
mod recalling;
mod recent;
pub mod records;
mod registrations;
mod release;
mod router;
pub mod scripts;
mod searching;
mod settings;
mod shares;
mod standing;
mod status;
mod stored;
mod subscriptions;
mod succession;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it is about")]
mod testkit;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it is about")]
mod tests;
mod vote;
mod watch;

pub use bugs::Bug;
pub use checks::{Check, Checked};
pub use ledger::ChainCoin;
pub use machine::Machine;
pub use output::{Output, Party, ReplyTo, SessionId, Source, Tag};
pub use searching::Search;
pub use settings::Settings;
pub use standing::Standing;
pub use status::{EvidenceFile, Hold, Sizes, Status};
pub use stored::Stored;
pub use succession::{
    DkgSeed, FoundingError, Kept, Opening, Peer, Planned, Progress, Save, Saved, Side, Transition,
    TransitionOutput, WholeSeal, opening, seal_page,
};
