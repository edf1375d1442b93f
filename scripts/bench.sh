#!/usr/bin/env bash
# npm run bench [-- SUITE]: measures and writes bench/results.json.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
suite=${1:-all}
case $suite in
  faults | npm) ;;
  # Instructions of a payment's steps, compared with the recorded ones; --write records them. Built as for the tests: with other features crates are cut otherwise.
  instructions)
    need valgrind valgrind
    cargo test --workspace --locked --no-run -q
    node scripts/instructions.mjs "${@:2}"
    ;;
  # What a node holds after 100, 1,000 and 10,000 payments; what a payment takes. Some minutes each.
  growth | load)
    cargo build --release --locked -p quorate-tests --bin "$suite" --bin test-node --bin test-bridge
    shift
    "$CARGO_TARGET_DIR/release/$suite" "$@"
    ;;
  # Two programs `test-node` in turn, the older one first.
  compare)
    [ $# -ge 3 ] || { echo "npm run bench -- compare OLD NEW [OPTIONS]" >&2; exit 2; }
    cargo build --release --locked -p quorate-tests --bin load --bin test-bridge
    old=$2 new=$3
    shift 3
    "$CARGO_TARGET_DIR/release/load" --against "$old" --node "$new" "$@"
    ;;
  *)
    cargo build --release --locked -p quorate-tests --bin bench
    "$CARGO_TARGET_DIR/release/bench" "$@"
    ;;
esac
# The npm package against its peers, and payments in a browser.
if [ "$suite" = all ] || [ "$suite" = npm ]; then
  bash scripts/build-npm.sh
  need_browser
  cargo build --release --locked -p quorate-tests --bin test-devnet
  QUORATE_DEVNET=$CARGO_TARGET_DIR/release/test-devnet node scripts/bench-npm.mjs
fi
# The checkers' figures: simulation, planted bugs and model.
if [ "$suite" = all ] || [ "$suite" = faults ]; then
  figures=$(mktemp -d)
  trap 'rm -rf "$figures"' EXIT
  cargo build --locked -q -p quorate-simulation --bin sim -p quorate-model --bin model
  "$CARGO_TARGET_DIR/debug/sim" --seeds "${SIM_SEEDS:-1000}" --json "$figures/sim.json"
  "$CARGO_TARGET_DIR/debug/sim" --bugs 400 --json "$figures/bugs.json"
  "$CARGO_TARGET_DIR/debug/model" --json "$figures/model.json"
  node scripts/bench-faults.mjs "$figures"
fi
