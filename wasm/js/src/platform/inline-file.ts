// For inline.js, which needs no file at all.
import { QuorateError } from "../errors.js";
import type { WasmSource } from "../wasm.js";

export { defaultStorage, socketFactory } from "./browser.js";

/** Never asked: the engine is inside. */
export function wasmSource(): WasmSource {
  return Promise.reject(new QuorateError("init_failed", "call init() of quorate/inline first"));
}
