//! From one epoch to the next at one node (see [`quorate_protocol::seal`]).

mod opening;
mod sealing;

pub(crate) use sealing::Sealing;
pub use {opening::opening, sealing::seal_page};
