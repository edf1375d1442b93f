import { QuorateError } from "./errors.js";
import type { Trap } from "./trap.js";

/** The compiled module, its bytes, or where to get it. */
export type WasmSource =
  | URL
  | string
  | Response
  | BufferSource
  | WebAssembly.Module
  | Promise<URL | string | Response | BufferSource | WebAssembly.Module>;

/** The initialiser that the binding generator makes. */
export type Initialiser = (options: { module_or_path: WasmSource }) => Promise<unknown>;

/**
 * Makes an `init` that runs once: there is one engine per page, so a source is looked at by the first call only. A failed attempt may be made again,
 * and one after the module has trapped gives a new instance.
 */
export function memoisedInit(initialise: Initialiser, source: () => WasmSource, trap: Trap): (from?: WasmSource) => Promise<void> {
  let running: Promise<void> | undefined;
  const failed = (cause: unknown): never => {
    running = undefined;
    const reason = cause instanceof Error ? cause.message : String(cause);
    const message = `the WebAssembly module cannot be loaded: ${reason}; pass its URL, bytes or module to init()`;
    throw new QuorateError("init_failed", message, { retryable: true, cause });
  };
  return async (from) => {
    if (typeof WebAssembly === "undefined") {
      const message = "there is no WebAssembly here: this browser is in Lockdown Mode, or its owner has switched it off; make an exception for this page";
      throw new QuorateError("webassembly_unavailable", message);
    }
    try {
      trap.restart();
    } catch (cause) {
      failed(cause);
    }
    running ??= initialise({ module_or_path: from ?? source() }).then(() => trap.watch(), failed);
    return running;
  };
}
