import { QuorateError } from "./errors.js";

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
 * Makes an `init` that runs once: there is one engine per page, so a source is looked at by the first call only. A failed attempt may be made again.
 */
export function memoisedInit(initialise: Initialiser, source: () => WasmSource): (from?: WasmSource) => Promise<void> {
  let running: Promise<void> | undefined;
  return (from) => {
    running ??= initialise({ module_or_path: from ?? source() }).then(
      () => undefined,
      (cause: unknown) => {
        running = undefined;
        const reason = cause instanceof Error ? cause.message : String(cause);
        const message = `the WebAssembly module cannot be loaded: ${reason}; pass its URL, bytes or module to init()`;
        throw new QuorateError("init_failed", message, { retryable: true, cause });
      },
    );
    return running;
  };
}
