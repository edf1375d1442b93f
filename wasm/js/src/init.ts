import initialise, { __wbg_reset_state, replaceExports } from "./glue/quorate.js";
import { wasmSource } from "#platform";
import { call } from "./errors.js";
import { Trap } from "./trap.js";
import { memoisedInit, type WasmSource } from "./wasm.js";

/** Tells when the engine's module has trapped. */
export const trap: Trap = /* @__PURE__ */ new Trap({ __wbg_reset_state, replaceExports });

/** Asks the engine for what takes a while; a trap meanwhile ends the wait. */
export function untilTrap<T>(ask: () => T | Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const forget = trap.wait(reject);
    call(ask).then(resolve, reject).finally(forget);
  });
}

/**
 * Loads the engine. Calls that are asynchronous do it by themselves; call it yourself before those that are not, or to say where the module
 * is. Loading happens once, however often this is called.
 *
 * @param source - URL, `Response`, bytes or compiled module; the file of this package if absent. Only the first call's counts.
 * @throws {@link QuorateError} `init_failed`, which may be tried again; `webassembly_unavailable`, as in the Lockdown Mode of iOS and macOS.
 *
 * @example
 * ```ts
 * import { generateWords, init } from "quorate";
 * await init();
 * console.assert(generateWords().split(" ").length === 12);
 * ```
 */
export const init: (source?: WasmSource) => Promise<void> = /* @__PURE__ */ memoisedInit(initialise, wasmSource, trap);
