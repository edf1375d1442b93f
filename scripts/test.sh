#!/usr/bin/env bash
# npm test: sets up what is missing, then format, lints, docs, unit, property and system tests, simulation, model, and the npm package in Node and in a
# browser.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
say "format"
cargo fmt --check
say "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
say "house"
setup_node
node scripts/check-house.mjs
say "tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked
else
  cargo test --workspace --locked
fi
# The tests' build has made these too; built alone, with fewer features, all libraries would be compiled again.
say "simulation: ${SIM_SEEDS:=1200} seeds"
"$CARGO_TARGET_DIR/debug/sim" --seeds "$SIM_SEEDS"
say "simulation: planted bugs"
"$CARGO_TARGET_DIR/debug/sim" --bugs 1000
say "model"
"$CARGO_TARGET_DIR/debug/model"
say "instructions of a payment's steps"
need valgrind valgrind
node scripts/instructions.mjs
say "examples in the documentation"
cargo test --workspace --locked --doc -q
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps -q
say "the npm package"
bash scripts/build-npm.sh
# Debian's compiler has no clippy.
if grep -q '^cargo=cargo ' .tools/bin/cargo-wasm; then
  say "lints of the bindings"
  .tools/bin/cargo-wasm clippy --locked -p quorate-wasm --all-targets -- -D warnings
fi
need_browser
# For the invoice server's tests.
[ -d /usr/lib/postgresql ] || need initdb postgresql
say "bindings, in Node and in a browser"
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=$PWD/.tools/bin/wasm-bindgen-test-runner CHROMEDRIVER="${CHROMEDRIVER:-/usr/bin/chromedriver}"
.tools/bin/cargo-wasm test --locked -p quorate-wasm
say "the browser wallet"
npx --no-install tsc -p examples/browser
npm run --silent build -w quorate-browser-wallet
say "tests of the npm package, and of the wallet in a browser"
export QUORATE_DEVNET=$CARGO_TARGET_DIR/debug/test-devnet
node --test --test-concurrency=1 tests/npm/*.test.mjs tests/browser/*.test.mjs
say "all passed"
