//! What an operator decides about the rules.

use crate::Bug;
use std::time::Duration;

/// Settings of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Confirmations that a coin needs before it can be spent.
    pub min_confirmations: u32,
    /// Time for phase 1.
    pub voting_timeout: Duration,
    /// Time for the shares of one signing attempt.
    pub signing_timeout: Duration,
    /// Inputs, and outputs that its wallet describes, of a proposal that is checked on the way; larger ones are checked
    /// aside.
    pub small_proposal: usize,
    /// A rule to break, in the simulation only.
    pub bug: Option<Bug>,
}
