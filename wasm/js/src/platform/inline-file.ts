// For inline.js, which needs no file at all.
import base64 from "quorate-engine-base64";
import type { WasmSource } from "../wasm.js";

export { defaultStorage, socketFactory } from "./browser.js";

/** The engine, from within the file that this ends up in. */
export function wasmSource(): WasmSource {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
