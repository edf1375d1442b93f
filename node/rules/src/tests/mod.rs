//! Tests of the rules through the machine: what each refuses, what it emits, and in which order.

mod coordinating;
mod releasing;
mod voting;
