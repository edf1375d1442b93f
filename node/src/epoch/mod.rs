//! From one epoch to the next: the driver of [`quorate_rules::Transition`], and what of it is on disk.

mod disk;
pub(crate) mod driver;
