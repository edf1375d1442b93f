#!/usr/bin/env bash
# npm test: sets up what is missing, then format, lints, docs, unit, property and system tests, simulation, model,
# and the wasm32 check.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
say "format"
cargo fmt --check
say "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
say "tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked
else
  cargo test --workspace --locked
fi
say "simulation: ${SIM_SEEDS:=1200} seeds"
cargo run -q --locked -p quorate-simulation --bin sim -- --seeds "$SIM_SEEDS"
say "simulation: planted bugs"
cargo run -q --locked -p quorate-simulation --bin sim -- --bugs 400
say "model"
cargo run -q --locked -p quorate-model --bin model
say "examples in the documentation"
cargo test --workspace --locked --doc -q
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps -q
say "the SDK on wasm32"
bash scripts/setup-wasm.sh
.tools/bin/cargo-wasm check --locked -p quorate
say "all passed"
