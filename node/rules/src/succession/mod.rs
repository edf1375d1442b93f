//! From one epoch to the next at one node.
//!
//! Two machines share the work. The voter seals its epoch and begins the next with what was handed over (`sealing`,
//! `opening`; see [`quorate_protocol::seal`]). [`Transition`] does everything else: keys, approvals, repair, and the
//! seals of others.

mod desk;
mod keygen;
mod news;
mod opening;
mod repair;
mod sealing;
mod seals;
mod transition;

pub(crate) use sealing::Sealing;
pub use {
    desk::{DkgSeed, Opening, Peer, Save, Saved, Side, TransitionOutput, WholeSeal},
    news::Progress,
    opening::{Kept, opening},
    sealing::seal_page,
    transition::{FoundingError, Planned, Transition},
};
