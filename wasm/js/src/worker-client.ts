/**
 * The same wallets with their engine in a web worker, so that signing and verification never hold up the page.
 *
 * @example
 * ```ts no-run
 * import { Wallet } from "quorate/worker";
 * const wallet = await Wallet.open({ password: "correct horse" });
 * ```
 *
 * @packageDocumentation
 */
import type { Backend, Methods } from "./backend.js";
import { checkOpening } from "./checks.js";
import { QuorateError } from "./errors.js";
import type { CreateOptions, OpenOptions, Opening, RestoreOptions, WatchOptions } from "./opening.js";
import { erase, isStored, type StorageOptions } from "./stored.js";
import type { AccountInfo, WalletEvent } from "./types.js";
import { OpenWallet } from "./wallet.js";
import type { FromWorker, ToWorker } from "./worker.js";

export { QuorateError, type Code, type ErrorDetails } from "./errors.js";
export type * from "./types.js";
export type { Unlock } from "./vault.js";
export { OpenWallet, type IncomingPayment } from "./wallet.js";

type Unnumbered<T> = T extends unknown ? Omit<T, "id"> : never;

/** How the worker is made, if not from the file of this package. */
export interface WorkerOptions {
  /** A worker that runs `quorate/worker.js`, for bundlers and content policies that want it their way. */
  readonly worker?: () => Worker;
  /** Where the engine's module is, for those that move files. */
  readonly wasm?: string | WebAssembly.Module | ArrayBuffer;
}

/** How long a worker may take to give up an opening: it gives itself less. */
const ABORT_GRACE_MS = 3_000;
/** How long its file may take to be loaded. */
const START_MS = 60_000;

class WorkerBackend implements Backend {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: unknown) => void }>();
  readonly #early: (WalletEvent | undefined)[] = [];
  /** A lock that the worker holds as long as it lives: one that ends says so in no other way. */
  readonly #life = typeof navigator !== "undefined" && navigator.locks ? `quorate/worker/${crypto.randomUUID()}` : undefined;
  #starting: ReturnType<typeof setTimeout> | undefined;
  #listener: ((event: WalletEvent | undefined) => void) | undefined;
  #next = 1;
  #account: AccountInfo | undefined;
  /** Whether it has begun to store a wallet that was not there. */
  #fresh = false;
  #ended: QuorateError | undefined;

  private constructor(worker: Worker) {
    this.#worker = worker;
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.#take(data);
    worker.onerror = ({ message }) =>
      this.#fail(new QuorateError("worker_failed", message ? `the worker failed: ${message}` : "the worker's file cannot be loaded; see WorkerOptions"));
    worker.onmessageerror = () => this.#fail(new QuorateError("worker_failed", "the worker's answer cannot be read"));
    if (this.#life !== undefined) {
      this.#starting = setTimeout(() => this.#fail(new QuorateError("worker_failed", "the worker does not start; see WorkerOptions")), START_MS);
    }
  }

  /** The worker holds its lock: who gets it knows that the worker has ended. */
  #watch(name: string): void {
    clearTimeout(this.#starting);
    const ended = new QuorateError("worker_failed", "the worker has ended; open the wallet again", { retryable: true });
    navigator.locks.request(name, () => this.#fail(ended)).catch(() => undefined);
  }

  static async open(opening: Opening, { worker, wasm }: WorkerOptions): Promise<WorkerBackend> {
    checkOpening(opening);
    // A signal cannot be sent to a worker.
    const { signal, ...options } = opening.options;
    signal?.throwIfAborted();
    if ("storage" in options && typeof options.storage === "object") {
      throw new QuorateError("invalid_argument", "storage: one of your own cannot be used in a worker; use `Wallet` of `quorate`, or IndexedDB");
    }
    if (worker === undefined && typeof Worker === "undefined") {
      throw new QuorateError("worker_failed", "this runtime has no web workers; use `Wallet` of `quorate`");
    }
    const made = worker?.() ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    const backend = new WorkerBackend(made);
    let grace: ReturnType<typeof setTimeout> | undefined;
    const abort = (): void => {
      backend.#ask({ type: "abort" }).catch(() => undefined);
      // A worker that is not there yet, or hangs, does not hold up its page.
      grace = setTimeout(() => backend.#fail(new QuorateError("worker_failed", "the worker does not answer")), ABORT_GRACE_MS);
    };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      const source = wasm ?? new URL("./quorate.wasm", import.meta.url).href;
      const asked = { type: "open", opening: { ...opening, options } as Opening, wasm: source, ...(backend.#life !== undefined && { life: backend.#life }) } as const;
      backend.#account = (await backend.#ask(asked)) as AccountInfo;
    } catch (error) {
      made.terminate();
      // What it had begun to store is nobody's: its words were shown to nobody.
      if (signal?.aborted && backend.#fresh) await erase(opening.options).catch(() => undefined);
      throw signal?.aborted ? signal.reason : error;
    } finally {
      clearTimeout(grace);
      clearTimeout(backend.#starting);
      signal?.removeEventListener("abort", abort);
    }
    return backend;
  }

  get account(): AccountInfo {
    if (this.#account === undefined) throw new QuorateError("closed", "the wallet is not open");
    return this.#account;
  }

  #take(message: FromWorker): void {
    if ("alive" in message) {
      if (this.#life !== undefined) this.#watch(this.#life);
      return;
    }
    if ("fresh" in message) {
      this.#fresh = true;
      return;
    }
    if ("event" in message) {
      const event = message.event as WalletEvent | undefined;
      if (this.#listener) this.#listener(event);
      else this.#early.push(event);
      return;
    }
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if ("error" in message) waiting?.reject(QuorateError.from(message.error));
    else waiting?.resolve(message.value);
  }

  #fail(error: QuorateError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    clearTimeout(this.#starting);
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    this.#listener?.(undefined);
  }

  #ask(message: Unnumbered<ToWorker>): Promise<unknown> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ ...message, id } as ToWorker);
    });
  }

  async request<M extends keyof Methods>(method: M, ...args: Parameters<Methods[M]>): Promise<ReturnType<Methods[M]>> {
    return (await this.#ask({ type: "request", method, args })) as ReturnType<Methods[M]>;
  }

  listen(listener: (event: WalletEvent | undefined) => void): void {
    this.#listener = listener;
    for (const event of this.#early.splice(0)) listener(event);
    if (this.#ended !== undefined) listener(undefined);
  }

  async close(): Promise<void> {
    if (this.#ended !== undefined) return;
    try {
      await this.#ask({ type: "close" });
    } finally {
      this.#fail(new QuorateError("closed", "the wallet has been closed"));
    }
  }
}

/** Wallets whose engine runs in a worker. Storages of your own cannot be used here. */
export class Wallet extends OpenWallet {
  private constructor(backend: Backend) {
    super(backend);
  }

  /** See `Wallet.create` of `quorate`. */
  static async create(options: CreateOptions, worker: WorkerOptions = {}): Promise<Wallet> {
    return new Wallet(await WorkerBackend.open({ mode: "create", options }, worker));
  }

  /** See `Wallet.open` of `quorate`. */
  static async open(options: OpenOptions = {}, worker: WorkerOptions = {}): Promise<Wallet> {
    return new Wallet(await WorkerBackend.open({ mode: "open", options }, worker));
  }

  /** See `Wallet.restore` of `quorate`. */
  static async restore(options: RestoreOptions, worker: WorkerOptions = {}): Promise<Wallet> {
    return new Wallet(await WorkerBackend.open({ mode: "restore", options }, worker));
  }

  /** See `Wallet.watch` of `quorate`. */
  static async watch(options: WatchOptions, worker: WorkerOptions = {}): Promise<Wallet> {
    return new Wallet(await WorkerBackend.open({ mode: "watch", options }, worker));
  }

  /** See `Wallet.exists` of `quorate`. */
  static exists(options: StorageOptions = {}): Promise<boolean> {
    return isStored(options);
  }

  /** See `Wallet.erase` of `quorate`. */
  static erase(options: StorageOptions = {}): Promise<void> {
    return erase(options);
  }
}

export type { CreateOptions, OpenOptions, RestoreOptions, StorageOptions, WatchOptions };
