import { QuorateError } from "./errors.js";

type Exports = Record<string, unknown>;

/** What a call of the runtime gives that nobody carries out: the bindings read no error from it. */
const NOTHING: readonly unknown[] = [];

/** What the build adds to the bindings that it makes (`scripts/build-npm.sh`). */
export interface Restartable {
  /** Replaces what the bindings call. */
  replaceExports(replace: (exports: Exports) => Exports): void;
  /** Puts a new instance of the module in the place of the one that there is. */
  __wbg_reset_state(): void;
}

/**
 * Knows when a module has trapped. Its memory may be in the middle of anything then, so nothing of it is called any more: who waits for it is told,
 * and the next one who wants it gets a new instance.
 */
export class Trap {
  readonly #bindings: Restartable;
  readonly #waiting = new Set<(error: QuorateError) => void>();
  #sprung: QuorateError | undefined;

  constructor(bindings: Restartable) {
    this.#bindings = bindings;
  }

  /** Has an instance watched that was just made. */
  watch(): void {
    this.#bindings.replaceExports((exports) => this.#guarded(exports));
  }

  /** Makes a new instance if the one that there is has trapped. */
  restart(): void {
    if (this.#sprung === undefined) return;
    this.#bindings.__wbg_reset_state();
    this.#sprung = undefined;
    this.watch();
  }

  /** Calls `listener` once if the module traps, until the function that it gives is called. */
  wait(listener: (error: QuorateError) => void): () => void {
    this.#waiting.add(listener);
    return () => void this.#waiting.delete(listener);
  }

  #guarded(exports: Exports): Exports {
    let failure: QuorateError | undefined;
    const watched = (name: string, run: (...args: unknown[]) => unknown) => {
      // What the runtime calls by itself: there is nobody who could catch anything.
      const unasked = /invoke|destroy|free/.test(name);
      return (...args: unknown[]): unknown => {
        try {
          if (failure === undefined) return run(...args);
        } catch (cause) {
          // Bindings throw at what cannot be done, as with an object that was freed. The module is whole after that.
          if (!isTrap(cause)) throw cause;
          failure ??= this.#spring(cause);
        }
        if (unasked) return NOTHING;
        throw failure;
      };
    };
    const guarded: Exports = {};
    for (const [name, value] of Object.entries(exports)) {
      guarded[name] = typeof value === "function" ? watched(name, value as (...args: unknown[]) => unknown) : value;
    }
    return guarded;
  }

  #spring(cause: unknown): QuorateError {
    const error = failed(cause);
    this.#sprung = error;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const listener of waiting) listener(error);
    return error;
  }
}

/** A trap, or no room on the stack. */
function isTrap(cause: unknown): boolean {
  const trapped = typeof WebAssembly !== "undefined" && cause instanceof WebAssembly.RuntimeError;
  return trapped || cause instanceof RangeError || (cause instanceof Error && cause.name === "InternalError");
}

function failed(cause: unknown): QuorateError {
  const message = "the module has failed, which is a fault of this package; what was saved is whole: open the wallet again";
  return new QuorateError("internal", message, { retryable: true, cause });
}
