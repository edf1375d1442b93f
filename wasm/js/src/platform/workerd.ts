import type { WasmSource } from "../wasm.js";
// Workers may not compile: their bundler makes a module of the file.
import engine from "../quorate.wasm";
import verifier from "../verify.wasm";

export { defaultStorage, socketFactory } from "./browser.js";

/** The engine, compiled by the bundler. */
export function wasmSource(): WasmSource {
  return engine;
}

/** The verifier, compiled by the bundler. */
export function verifySource(): WasmSource {
  return verifier;
}
