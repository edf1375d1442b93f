import { QuorateError } from "./errors.js";

/** A change to a wallet's state: a new value, or `null` to erase the key. */
export type StateChange = ReadonlyMap<string, Uint8Array | null>;

/** The place of one wallet. Its values are encrypted already; its keys tell nothing. */
export interface StateStore {
  /** Everything that is stored. */
  load(): Promise<Map<string, Uint8Array>>;
  /** Makes a change durable, as a whole or not at all. */
  apply(change: StateChange): Promise<void>;
  /** Lets another tab or process open the wallet. */
  close(): Promise<void>;
}

/** Where wallets are kept. */
export interface WalletStorage {
  /** Opens the place of a wallet for one writer; fails with the code `wallet_in_use` while another has it open. */
  open(name: string): Promise<StateStore>;
  /** Whether a wallet is there, open elsewhere or not. Changes nothing. */
  has(name: string): Promise<boolean>;
  /** Erases a wallet and everything about it. */
  erase(name: string): Promise<void>;
}

/** Wallets in the memory of this page or process. They are gone with it. */
export class MemoryStorage implements WalletStorage {
  readonly #wallets = new Map<string, Map<string, Uint8Array>>();
  readonly #open = new Set<string>();

  async open(name: string): Promise<StateStore> {
    if (this.#open.has(name)) throw inUse(name);
    this.#open.add(name);
    const state = this.#wallets.get(name) ?? new Map<string, Uint8Array>();
    this.#wallets.set(name, state);
    let closed = false;
    return {
      load: async () => new Map(state),
      apply: async (change) => {
        if (closed) throw new QuorateError("closed", "the wallet has been closed");
        for (const [key, value] of change) value === null ? state.delete(key) : state.set(key, value);
      },
      close: async () => {
        closed = true;
        this.#open.delete(name);
      },
    };
  }

  async has(name: string): Promise<boolean> {
    return (this.#wallets.get(name)?.size ?? 0) > 0;
  }

  async erase(name: string): Promise<void> {
    if (this.#open.has(name)) throw inUse(name);
    this.#wallets.delete(name);
  }
}

/** How long a place may take for one step. Some browsers never answer. */
const STEP_MS = 20_000;

/** And then, for what is on its way. */
const WAKING_MS = 1_000;

/** Ends the wait for what may never answer. */
export function within<T>(answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const late = (): void => reject(new Error(`no answer in ${STEP_MS / 1_000} seconds`));
    // On a device that slept meanwhile the timer may come before an answer that is there.
    let timer = setTimeout(() => (timer = setTimeout(late, WAKING_MS)), STEP_MS);
    answer.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** The error of a second writer. */
export function inUse(name: string): QuorateError {
  const message = `the wallet ${JSON.stringify(name)} is open in another tab or process; close it there, then try again`;
  return new QuorateError("wallet_in_use", message, { retryable: true });
}

/** The error of a store that does not work. */
export function storageFailed(what: string, cause: unknown): QuorateError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new QuorateError("storage_failed", `${what}: ${reason}`, { cause });
}
