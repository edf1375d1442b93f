//! Deterministic simulation: the real machines of wallet, bridge and nodes and the real store, on a simulated disk,
//! network, clock and chain, in one process and from one seed.
//!
//! A seed draws a plan (which faults, how often), a workload (payments, conflicting spends, circles of them,
//! cancellations) and every single delay. The [`oracle`] checks the protocol's invariants on each statement that
//! leaves an honest node; [`judge`] checks after faults have stopped that everything ended. The same seed gives the
//! same run, byte for byte of its trace.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the simulated parties act on few of the messages they see"
)]

pub mod base;
pub mod bridge;
pub mod byzantine;
pub mod clients;
pub mod disk;
pub mod epochs;
pub mod event;
pub mod faults;
pub mod fuzz;
pub mod judge;
pub mod machines;
pub mod node;
pub mod oracle;
pub mod parties;
pub mod storm;
pub mod suite;
pub mod thieves;
pub mod world;

pub use faults::{Counters, Fault, Weather};
pub use world::{Options, Report, run, run_script};
