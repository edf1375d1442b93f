import { type Engine, type Federation, parseDestination } from "./glue/quorate.js";
import { QuorateError } from "./errors.js";
import { trap, untilTrap } from "./init.js";
import type { Sockets } from "./sockets.js";
import type {
  AccountInfo,
  Balance,
  Block,
  Coin,
  Connection,
  Destination,
  HistoryEntry,
  Label,
  PaymentRequest,
  Quote,
  Receipt,
  RefreshQuote,
  WalletEvent,
} from "./types.js";
import { writeBackup } from "./backup.js";
import { Labels } from "./labels.js";
import { Notes } from "./notes.js";
import { Orders } from "./orders.js";
import { storageFailed, within } from "./storage.js";
import type { Unlock, Vault } from "./vault.js";

/** A payment to make, or one that was built before. */
export type Payment = PaymentRequest | { readonly psbt: string; readonly idempotencyKey?: string | undefined };

/** What a wallet can be asked, here or in a worker. */
export interface Methods {
  ready(): void;
  synced(): void;
  balance(): Balance;
  coins(): readonly Coin[];
  history(): readonly HistoryEntry[];
  proof(txid: string): string | undefined;
  tip(): Block;
  feeRate(): number;
  federation(): string;
  connection(): Connection;
  parseDestination(text: string): Destination;
  wake(): void;
  nextAddress(): string;
  addressAt(index: number): string;
  reserve(order: string): string;
  unusedAddress(): string;
  coinsAt(address: string): readonly Coin[];
  createPsbt(payment: PaymentRequest): string;
  quote(payment: PaymentRequest): Quote;
  setFrozen(outpoint: string, frozen: boolean): void;
  labels(): readonly Label[];
  setNote(name: string, text: string | undefined): void;
  notes(beginning: string): ReadonlyMap<string, string>;
  setLabels(labels: readonly Label[]): void;
  send(payment: Payment): string;
  pay(payment: Payment): Receipt;
  outcome(txid: string): Receipt;
  attest(transaction: string): Receipt;
  cancel(txid: string): void;
  refreshQuote(feeRate: number | undefined): RefreshQuote | undefined;
  consolidateQuote(feeRate: number | undefined): Quote | undefined;
  refresh(feeRate: number | undefined): Receipt | undefined;
  bumpQuote(txid: string, feeRate: number): bigint;
  bump(txid: string, feeRate: number): Receipt;
  setAutoRefresh(feeRateMax: number | undefined): void;
  backup(unlock: Unlock | undefined, withWords: boolean): string;
  backupFile(fileUnlock: Unlock, unlock: Unlock | undefined): Uint8Array<ArrayBuffer>;
  revealWords(unlock: Unlock | undefined): string;
  changeUnlock(from: Unlock, to: Unlock): void;
}

/** A running wallet, wherever it runs. */
export interface Backend {
  readonly account: AccountInfo;
  request<M extends keyof Methods>(method: M, ...args: Parameters<Methods[M]>): Promise<ReturnType<Methods[M]>>;
  /** Calls `listener` for every event, and with `undefined` at the end. Once. */
  listen(listener: (event: WalletEvent | undefined) => void): void;
  close(): Promise<void>;
}

/** What a backend is made of besides its engine. */
export interface Parts {
  readonly words?: string;
  /** Whether there is a passphrase beside them. */
  readonly hasPassphrase?: boolean;
  readonly record?: string;
  readonly vault?: Vault;
  readonly state?: ReadonlyMap<string, Uint8Array>;
  readonly labels?: Labels;
  readonly orders?: Orders;
  readonly notes?: Notes;
  /** Whether it is known which addresses were used. */
  readonly known?: boolean;
  readonly sockets?: Sockets;
}

/** Is stored while the state is from a backup file that may be old. */
export const UNSYNCED = "unsynced";

/** Wallets in memory need no lock: nothing is written anywhere. */
export const MEMORY_UNLOCK: Unlock = /* @__PURE__ */ { key: /* @__PURE__ */ new Uint8Array(32) };

/** A wallet whose engine runs in this thread. Whatever ends it, its store is free for the next one before anybody is told. */
export class LocalBackend implements Backend {
  readonly account: AccountInfo;
  readonly #engine: Engine;
  readonly #federation: Federation;
  readonly #vault: Vault | undefined;
  readonly #sockets: Sockets | undefined;
  readonly #labels: Labels;
  readonly #orders: Orders;
  readonly #notes: Notes;
  readonly #forget: () => void;
  #words: string | undefined;
  readonly #hasPassphrase: boolean;
  #known: boolean;
  #closing: Promise<void> | undefined;
  /** Why it ended, if nobody asked for it. */
  #failure: QuorateError | undefined;
  #trapped = false;
  #over = false;
  #listener: ((event: WalletEvent | undefined) => void) | undefined;

  constructor(engine: Engine, federation: Federation, account: AccountInfo, { vault, words, hasPassphrase = false, known = false, sockets, labels = new Labels(), orders = new Orders(), notes = new Notes() }: Parts) {
    this.#engine = engine;
    this.#federation = federation;
    this.account = account;
    this.#vault = vault;
    this.#sockets = sockets;
    this.#labels = labels;
    this.#orders = orders;
    this.#notes = notes;
    this.#words = words;
    this.#hasPassphrase = hasPassphrase;
    this.#known = known;
    engine.listen((event: WalletEvent | undefined) => (event === undefined ? void this.#end() : this.#listener?.(event)));
    this.#forget = trap.wait((error) => this.#trap(error));
  }

  async request<M extends keyof Methods>(method: M, ...args: Parameters<Methods[M]>): Promise<ReturnType<Methods[M]>> {
    if (this.#failure !== undefined) throw this.#failure;
    return (await untilTrap(() => this.#run(method, args))) as ReturnType<Methods[M]>;
  }

  #trap(error: QuorateError): void {
    this.#trapped = true;
    this.#failure ??= error;
    void this.#end();
  }

  /** The engine has ended, by itself or because it was told to. */
  async #end(): Promise<void> {
    if (this.#failure === undefined) {
      await this.request("balance").catch((error: QuorateError) => {
        if (error.code !== "closed") this.#failure ??= error;
      });
    }
    // A place that cannot be closed holds up nobody who waits for the end.
    await this.close().catch(() => undefined);
    if (this.#over) return;
    this.#over = true;
    this.#listener?.(undefined);
  }

  #run(method: keyof Methods, args: unknown[]): unknown {
    const [first, second] = args;
    switch (method) {
      case "ready":
      case "synced":
      case "balance":
      case "coins":
      case "history":
      case "tip":
      case "feeRate":
      case "connection":
      case "wake":
      case "federation":
        return this.#engine[method]();
      case "nextAddress":
      case "unusedAddress":
        return this.#addressesKnown().then(() => this.#engine[method]());
      case "addressAt":
        return this.#engine.addressAt(first as number);
      case "reserve":
        return this.#orders.reserve(
          first as string,
          () => this.#addressesKnown().then(() => this.#engine.nextAddress()),
          (change) => this.#save(change),
        );
      case "proof":
      case "coinsAt":
      case "outcome":
      case "attest":
      case "cancel":
        return this.#engine[method](first as string);
      case "setFrozen":
        return this.#engine.setFrozen(first as string, second as boolean);
      case "labels":
        return this.#labels.all;
      case "setNote":
        return this.#notes.set(first as string, second as string | undefined, (change) => this.#save(change));
      case "notes":
        return this.#notes.of(first as string);
      case "setLabels":
        return this.#labels.set(first as readonly Label[], (change) => this.#save(change));
      case "refreshQuote":
      case "consolidateQuote":
      case "refresh":
      case "setAutoRefresh":
        return this.#engine[method](first as number | undefined);
      case "bumpQuote":
      case "bump":
        return this.#engine[method](first as string, second as number);
      case "backup":
        return this.#backup(first as Unlock | undefined, second as boolean);
      case "parseDestination":
        return parseDestination(first as string, this.account.network);
      case "createPsbt":
      case "quote":
      case "send":
      case "pay":
        return this.#engine[method](paymentOf(first as Payment));
      case "backupFile":
        return this.#backupFile(first as Unlock, second as Unlock | undefined);
      case "revealWords":
        return this.#reveal(first as Unlock | undefined);
      case "changeUnlock":
        return this.#relock(first as Unlock, second as Unlock);
    }
  }

  /** What is nothing to the engine. */
  async #save(change: Map<string, Uint8Array | null>): Promise<void> {
    if (this.#closing !== undefined) throw new QuorateError("closed", "the wallet has been closed");
    await this.#vault?.save(change).catch((cause: unknown) => {
      throw cause instanceof QuorateError ? cause : storageFailed("it cannot be saved", cause);
    });
  }

  /** Which addresses were used is known from the state that was saved, or from the first sync; new words have used none. */
  async #addressesKnown(): Promise<void> {
    if (this.#known) return;
    await this.#engine.synced();
    await this.#save(new Map([[UNSYNCED, null]]));
    this.#known = true;
  }

  async #reveal(unlock: Unlock | undefined): Promise<string> {
    if (this.#closing !== undefined) throw new QuorateError("closed", "the wallet has been closed");
    if (this.#words === undefined) throw new QuorateError("watch_only", "this wallet only watches its account; it has no words");
    await this.#vault?.check(unlock ?? MEMORY_UNLOCK);
    return this.#words;
  }

  async #backup(unlock: Unlock | undefined, withWords: boolean): Promise<unknown> {
    return this.#engine.backup(withWords ? await this.#reveal(unlock) : undefined, this.#hasPassphrase);
  }

  async #backupFile(fileUnlock: Unlock, unlock: Unlock | undefined): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#closing !== undefined) throw new QuorateError("closed", "the wallet has been closed");
    if (this.#vault === undefined) throw new QuorateError("watch_only", "this wallet is not stored");
    await this.#vault.check(unlock ?? MEMORY_UNLOCK);
    return writeBackup(await this.#vault.read(), fileUnlock);
  }

  async #relock(from: Unlock, to: Unlock): Promise<void> {
    if (this.#vault === undefined) throw new QuorateError("watch_only", "this wallet is not stored");
    await this.#vault.check(from);
    await this.#vault.relock(to);
  }

  listen(listener: (event: WalletEvent | undefined) => void): void {
    this.#listener = listener;
    if (this.#over) listener(undefined);
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      // Nothing may be saved after the lock is gone, and nobody else may open the wallet while this engine runs.
      if (!this.#trapped) await untilTrap(() => this.#engine.close() as Promise<unknown>).catch(() => undefined);
      this.#forget();
      if (!this.#trapped) this.#federation.free();
      this.#sockets?.close();
      this.#words = undefined;
      this.#failure ??= new QuorateError("closed", "the wallet has been closed");
      if (this.#vault !== undefined) await within(this.#vault.close());
    })();
    return this.#closing;
  }
}

/** The engine's form of a payment. */
function paymentOf(payment: Payment): unknown {
  if ("psbt" in payment) return payment;
  const { to, amount, data, coins, feeRate, idempotencyKey } = payment;
  const recipients = typeof to === "string" ? [{ to, amount }] : to;
  // Who gets everything that is left comes first.
  const first = Math.max(0, recipients.findIndex((one) => one.amount === "everything"));
  const others = recipients.filter((_, index) => index !== first).map((one) => ({ to: one.to, amount: one.amount }));
  const rest = recipients[first]?.amount === "everything" ? { everything: true } : { amount: recipients[first]?.amount };
  const hex = data && Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { to: recipients[first]?.to, ...rest, others, data: hex, coins, feeRate, idempotencyKey };
}
