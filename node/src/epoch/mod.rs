//! From one epoch to the next: ceremonies of keys, the plan that is carried out, repair of shares.

pub(crate) mod ceremony;
pub(crate) mod news;
pub(crate) mod repair;
pub(crate) mod succession;
