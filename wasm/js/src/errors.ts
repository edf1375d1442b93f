import type { Code } from "./codes.js";

export type { Code } from "./codes.js";

/** Facts about an error, by name; satoshis are `bigint`. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/**
 * Everything that this package throws.
 *
 * @example
 * ```ts
 * import { QuorateError } from "quorate";
 * const error = new QuorateError("insufficient_funds", "too little money");
 * console.assert(error instanceof Error && error.code === "insufficient_funds" && !error.retryable);
 * ```
 */
export class QuorateError extends Error {
  override readonly name = "QuorateError";
  /** A stable name in snake_case; names are only added. */
  readonly code: Code;
  /** Whether the same call may succeed later. */
  readonly retryable: boolean;
  /** Facts, by name. */
  readonly details: ErrorDetails;

  constructor(
    code: Code,
    message: string,
    options: { retryable?: boolean; details?: ErrorDetails; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.retryable = options.retryable ?? false;
    this.details = options.details ?? {};
  }

  /** Makes a `QuorateError` of whatever was thrown. */
  static from(thrown: unknown): QuorateError {
    if (thrown instanceof QuorateError) return thrown;
    if (typeof thrown === "object" && thrown !== null && "code" in thrown && "message" in thrown) {
      const { code, message } = thrown;
      // The engine's own, one of a worker, or one of another copy of this package, such as `quorate/inline`.
      const ours = !(thrown instanceof Error) || thrown.name === "QuorateError";
      if (typeof code === "string" && typeof message === "string" && ours) {
        const retryable = "retryable" in thrown && thrown.retryable === true;
        const cause = "cause" in thrown ? thrown.cause : undefined;
        // Another release of this package may have others.
        return new QuorateError(code as Code, message, { retryable, details: detailsOf(thrown), cause });
      }
    }
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    return new QuorateError("internal", message, { cause: thrown });
  }

  /** What can be posted to another thread; the cause comes as its text. */
  toJSON(): { code: Code; message: string; retryable: boolean; details: ErrorDetails; cause?: string } {
    const { code, message, retryable, details } = this;
    return { code, message, retryable, details, ...(this.cause !== undefined && { cause: String(this.cause) }) };
  }
}

function detailsOf(thrown: object): ErrorDetails {
  if (!("details" in thrown) || typeof thrown.details !== "object" || thrown.details === null) return {};
  return thrown.details as ErrorDetails;
}

/** Runs a call into the engine and gives its errors their class. */
export async function call<T>(run: () => T | Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    throw QuorateError.from(error);
  }
}

/** The same for calls that answer at once. */
export function callNow<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw QuorateError.from(error);
  }
}

/** Stops waiting when the signal is aborted; what was asked for goes on. Nothing is asked for if it is aborted already. */
export function abortable<T>(ask: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return ask();
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => reject(signal.reason);
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    ask().then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
