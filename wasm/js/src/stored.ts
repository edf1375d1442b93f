import { defaultStorage } from "#platform";
import { MemoryStorage, type WalletStorage } from "./storage.js";

/** Where a wallet is kept, and under which lock. */
export interface StorageOptions {
  /** Name of the wallet in its storage. @defaultValue `"default"` */
  readonly name?: string;
  /**
   * Where it is kept: IndexedDB in browsers and files in Node if absent, `"memory"` for a wallet that is gone with the page, or a storage of your own
   * (not in a worker).
   */
  readonly storage?: "memory" | WalletStorage;
  /** Directory of the files, in Node. @defaultValue `~/.quorate` */
  readonly directory?: string;
  /** Unlocks the wallet. Either this or `key`, unless the wallet is in memory. */
  readonly password?: string;
  /** Unlocks the wallet: 32 or more secret bytes, from a passkey or a keystore. */
  readonly key?: Uint8Array;
}

const memory = /* @__PURE__ */ new MemoryStorage();

/** The storage that options ask for. */
export function storageOf(options: StorageOptions): WalletStorage {
  if (options.storage === "memory") return memory;
  return options.storage ?? defaultStorage(options.directory);
}

/** The name that options ask for. */
export function nameOf(options: StorageOptions): string {
  return options.name ?? "default";
}

/** Whether a wallet is stored. */
export function isStored(options: StorageOptions): Promise<boolean> {
  return storageOf(options).has(nameOf(options));
}

/** Erases a stored wallet. */
export async function erase(options: StorageOptions): Promise<void> {
  await storageOf(options).erase(nameOf(options));
}
