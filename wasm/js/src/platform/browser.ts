import { QuorateError } from "../errors.js";
import type { WalletStorage } from "../storage.js";
import { IndexedDbStorage } from "./indexeddb.js";

/** Opens a socket to an address with a subprotocol. */
export type SocketFactory = (url: string, protocol: string) => WebSocket;

/** Where wallets are kept unless their user says otherwise. */
export function defaultStorage(directory?: string): WalletStorage {
  if (directory !== undefined) throw new QuorateError("invalid_argument", "directory: a browser has no files");
  if (typeof indexedDB === "undefined" || typeof navigator === "undefined" || !("locks" in navigator)) {
    const message = "this runtime keeps nothing (it has no IndexedDB or Web Locks); use `storage: \"memory\"`, or a storage of your own";
    throw new QuorateError("storage_unavailable", message);
  }
  return new IndexedDbStorage();
}

/** The runtime's own sockets. */
export async function socketFactory(): Promise<SocketFactory | undefined> {
  return undefined;
}
