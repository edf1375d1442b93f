#!/usr/bin/env bash
# Builds the npm package in wasm/js/dist: the engine and the verifier as WebAssembly, their bindings, and the TypeScript face.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_node
bash scripts/setup-wasm.sh
out=wasm/js/dist
glue=wasm/js/src/glue
mkdir -p "$out/glue" "$glue" .tools/wasm

# bindings NAME: as they were made, with what it takes to notice a trap and go on with a new instance (wasm/js/src/trap.ts). What an old instance
# left to the runtime, such as timers, comes back to nobody then.
bindings() {
  local made=.tools/wasm/$1/$1
  local stale="throw new Error('Cannot invoke closure from previous WASM instance');"
  if ! grep -q "export function __wbg_reset_state" "$made.js" || { grep -q "function makeMutClosure" "$made.js" && ! grep -qF "$stale" "$made.js"; }; then
    echo "wasm-bindgen makes other bindings than this script knows" >&2
    exit 1
  fi
  sed "s/$stale/return;/" "$made.js" > "$glue/$1.js"
  printf '\nexport function replaceExports(replace) {\n  wasm = replace(wasm);\n}\n' >> "$glue/$1.js"
  cp "$made.d.ts" "$glue/"
  printf '\nexport function replaceExports(replace: (exports: Record<string, unknown>) => Record<string, unknown>): void;\n' >> "$glue/$1.d.ts"
}

# wasm NAME CARGO-FLAG… : one module with its bindings, optimised for size.
wasm() {
  local name=$1; shift
  say "wasm: $name"
  .tools/bin/cargo-wasm build --locked -q -p quorate-wasm --profile wasm "$@"
  local built=$CARGO_TARGET_DIR/wasm32-unknown-unknown/wasm/quorate_wasm.wasm hash
  hash=$(cat "$built" scripts/build-npm.sh package-lock.json | sha256sum)
  if [ "$hash" != "$(cat ".tools/wasm/$name.hash" 2>/dev/null)" ] || [ ! -e "$out/$name.wasm" ] || [ ! -e "$glue/$name.js" ]; then
    .tools/bin/wasm-bindgen --target web --omit-default-module-path --experimental-reset-state-function --out-dir ".tools/wasm/$name" --out-name "$name" "$built"
    # Little inlining: what stays apart repeats itself, and brotli likes that. With binaryen's own measure the module is 36 KB larger on the wire.
    node_modules/.bin/wasm-opt --enable-bulk-memory --enable-nontrapping-float-to-int --enable-sign-ext --enable-mutable-globals --enable-reference-types --enable-multivalue \
      --one-caller-inline-max-function-size=20 --always-inline-max-function-size=2 --flexible-inline-max-function-size=2 -Oz --converge --strip-debug --strip-producers \
      ".tools/wasm/$name/${name}_bg.wasm" -o "$out/$name.wasm"
    bindings "$name"
    printf '%s\n' "$hash" > ".tools/wasm/$name.hash"
  fi
}
wasm verify --no-default-features --features verify
wasm quorate

say "TypeScript"
npx --no-install tsc -p wasm/js
cp "$glue"/*.js "$glue"/*.d.ts "$out/glue/"
node scripts/bundle-npm.mjs
