/**
 * Instant finality for Bitcoin wallets that keep their keys.
 *
 * @example
 * ```ts no-run
 * import { Wallet } from "quorate";
 * const wallet = await Wallet.create({ bridge: "wss://bridge.example", federation: "…", password: "…" });
 * await wallet.ready();
 * const receipt = await wallet.pay({ to: "bitcoin:bc1p…?amount=0.001" });
 * console.log(receipt.txid, "is final");
 * ```
 *
 * @packageDocumentation
 */
import type { Backend } from "./backend.js";
import { openLocal, type CreateOptions, type OpenOptions, type RestoreOptions, type WatchOptions } from "./opening.js";
import { erase, isStored, type StorageOptions } from "./stored.js";
import { OpenWallet } from "./wallet.js";

export type { LogLine } from "./diagnostics.js";
export { federationDocument, type ConnectionOptions, type CreateOptions, type OpenOptions, type RestoreOptions, type Till, type WatchOptions } from "./opening.js";
export type { StorageOptions } from "./stored.js";
export { QuorateError, type Code, type ErrorDetails } from "./errors.js";
export { FrostGroup, FrostParty, frostAggregate, type FrostCommitments, type FrostRound } from "./frost.js";
export { exportHistory } from "./history.js";
export { init } from "./init.js";
export { createPasskey, passkeyKey } from "./passkey.js";
export { MemoryStorage, type StateChange, type StateStore, type WalletStorage } from "./storage.js";
export { checkWords, generateWords, parseDestination, verifyEvidence } from "./tools.js";
export type * from "./types.js";
export type { Unlock } from "./vault.js";
export { OpenWallet, type IncomingPayment } from "./wallet.js";
export type { WasmSource } from "./wasm.js";

/** Wallets of this page or process. */
export class Wallet extends OpenWallet {
  private constructor(backend: Backend) {
    super(backend);
  }

  /**
   * Makes a new wallet, or restores one from its words, and connects it.
   *
   * @throws {@link QuorateError} `wallet_exists`, `wallet_in_use`, `invalid_words`, `invalid_federation` (the bridge serves another one than the id says),
   * `bridge_unreachable`, `password_required`.
   *
   * @example
   * ```ts no-run
   * import { Wallet } from "quorate";
   * const wallet = await Wallet.create({ bridge: "ws://127.0.0.1:9000", federation: "…", password: "correct horse" });
   * console.log("write these down:", await wallet.revealWords({ password: "correct horse" }));
   * ```
   */
  static async create(options: CreateOptions): Promise<Wallet> {
    return new Wallet(await openLocal({ mode: "create", options }));
  }

  /**
   * Opens a wallet that is stored here. It shows at once what it knew, and goes on with payments that were under way.
   *
   * @throws {@link QuorateError} `wallet_missing`, `wallet_in_use`, `wrong_password`, `storage_damaged`.
   */
  static async open(options: OpenOptions = {}): Promise<Wallet> {
    return new Wallet(await openLocal({ mode: "open", options }));
  }

  /**
   * Stores a wallet from a file that {@link OpenWallet.backupFile} gave, under a password or key of this device, and goes on where it stopped. What happened since
   * then it learns from the federation.
   *
   * @throws {@link QuorateError} `invalid_backup`, `wrong_password` (the file's), `wallet_exists`, `wallet_in_use`.
   *
   * @example
   * ```ts no-run
   * import { Wallet } from "quorate";
   * async function restore(chosen: File) {
   *   const file = new Uint8Array(await chosen.arrayBuffer());
   *   return Wallet.restore({ file, fileUnlock: { password: "another horse" }, password: "correct horse" });
   * }
   * ```
   */
  static async restore(options: RestoreOptions): Promise<Wallet> {
    return new Wallet(await openLocal({ mode: "restore", options }));
  }

  /** Watches an account without its words: it sees everything and cannot pay. With a password or key it is kept, and goes on where it stopped. */
  static async watch(options: WatchOptions): Promise<Wallet> {
    return new Wallet(await openLocal({ mode: "watch", options }));
  }

  /** Whether a wallet of this name is stored here. */
  static async exists(options: StorageOptions = {}): Promise<boolean> {
    return isStored(options);
  }

  /** Erases a stored wallet. Without its words the money is gone. */
  static async erase(options: StorageOptions = {}): Promise<void> {
    await erase(options);
  }
}
