// For worker.js, which stands beside the engine and not one directory below.
import type { WasmSource } from "../wasm.js";

export { defaultStorage, socketFactory } from "./browser.js";

/** The engine, beside the file that this ends up in. */
export function wasmSource(): WasmSource {
  return new URL("./quorate.wasm", import.meta.url);
}
