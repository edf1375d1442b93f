#!/usr/bin/env bash
# Makes .tools/bin/cargo-wasm, a cargo for wasm32-unknown-unknown: with rustup's compiler where it can fetch target and sources, else with
# Debian's rustc-web. What is shipped has its standard library built from source either way, for size.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
mkdir -p .tools/bin
way=debian
if [ "${CI:-}" != true ] && command -v rustup >/dev/null; then
  if timeout 180 rustup target add wasm32-unknown-unknown >/dev/null 2>&1 && timeout 180 rustup component add rust-src >/dev/null 2>&1; then
    way=rustup
  fi
fi
# libsecp256k1 is C: clang has the wasm32 back end.
need clang clang
# A linker that exports none of the bindings' own symbols: they would keep libsecp256k1, with its tables, in a module that does not use it.
linker() {
  cat > .tools/bin/wasm-ld <<W
#!/usr/bin/env bash
args=()
while [ \$# -gt 0 ]; do
  case "\$1 \$2" in
    "--export rustsecp256k1_"*) shift ;;
    --export=rustsecp256k1_*) ;;
    *) args+=("\$1") ;;
  esac
  shift
done
exec "$1" "\${args[@]}"
W
  chmod +x .tools/bin/wasm-ld
}
if [ $way = rustup ]; then
  linker "$(dirname "$(rustc --print target-libdir)")/bin/rust-lld"
  compiler='cargo=cargo from_source='
else
  need_packages rustc-web cargo-web rust-web-src lld-22
  linker /usr/bin/wasm-ld-22
  compiler='unset RUSTUP_TOOLCHAIN; export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc; cargo=/usr/bin/cargo from_source=yes'
fi
cat > .tools/bin/cargo-wasm <<W
#!/usr/bin/env bash
set -e
sub=\$1; shift
$compiler
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=\$PWD/.tools/bin/wasm-ld
# Nothing on this target shows a panic's message; without them what is shipped is a tenth smaller.
case " \$* " in
  *" --profile wasm "*)
    from_source=yes
    export RUSTFLAGS="-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none \${RUSTFLAGS:-}" ;;
esac
# RUSTC_BOOTSTRAP: -Zbuild-std is a nightly option of a stable compiler.
if [ "\$from_source" ]; then
  export RUSTC_BOOTSTRAP=1 CARGO_UNSTABLE_BUILD_STD=std,panic_abort CARGO_UNSTABLE_BUILD_STD_FEATURES=optimize_for_size
fi
exec \$cargo "\$sub" --target wasm32-unknown-unknown "\$@"
W
chmod +x .tools/bin/cargo-wasm
# The generator of bindings has to be of the same version as the crate.
wanted=$(awk '/^name = "wasm-bindgen"$/ { getline; gsub(/[^0-9.]/, ""); print; exit }' Cargo.lock)
if [ "$(.tools/bin/wasm-bindgen --version 2>/dev/null | awk '{print $2}')" != "$wanted" ]; then
  say "building wasm-bindgen-cli $wanted"
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install wasm-bindgen-cli --version "$wanted" --root .tools -q
fi
say "wasm32: $way"
