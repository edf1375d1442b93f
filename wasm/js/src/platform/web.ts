import type { WasmSource } from "../wasm.js";

export { defaultStorage, socketFactory, type SocketFactory } from "./browser.js";

/** Where the engine is, beside this directory. */
export function wasmSource(): WasmSource {
  return new URL("../quorate.wasm", import.meta.url);
}

/** Where the verifier is, beside this directory. */
export function verifySource(): WasmSource {
  return new URL("../verify.wasm", import.meta.url);
}
