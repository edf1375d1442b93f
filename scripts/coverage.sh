#!/usr/bin/env bash
# npm run coverage: how much of the rules and the protocol their own tests and one run of the simulation reach, by file.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
command -v cargo-llvm-cov >/dev/null || cargo install --locked cargo-llvm-cov
# The tools of rustc's LLVM: a component of rustup where it can be fetched, else Debian's package of the same version.
if ! rustup component add llvm-tools >/dev/null 2>&1; then
  version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
  need_packages "llvm-$version"
  export LLVM_COV=/usr/bin/llvm-cov-$version LLVM_PROFDATA=/usr/bin/llvm-profdata-$version
fi
cargo llvm-cov nextest --locked -p quorate-rules -p quorate-protocol "$@"
