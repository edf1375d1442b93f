#!/usr/bin/env bash
# npm run bench [-- SUITE]: measures and writes bench/results.json.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
cargo build --release --locked -p quorate-tests --bin bench
exec "$CARGO_TARGET_DIR/release/bench" "$@"
