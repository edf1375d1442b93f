//! Tests of the rules through the machine: what each refuses, what it emits, and in which order.

mod bounds;
mod cancelling;
mod conflicts;
mod coordinating;
mod deadlines;
mod epochs;
mod releasing;
mod settling;
mod signing;
mod standing;
mod subscribing;
mod voting;
