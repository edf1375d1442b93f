import { type Engine, type Federation, parseDestination } from "./glue/quorate.js";
import { QuorateError, call } from "./errors.js";
import type {
  AccountInfo,
  Balance,
  Block,
  Coin,
  Connection,
  Destination,
  HistoryEntry,
  PaymentRequest,
  Receipt,
  RefreshQuote,
  WalletEvent,
} from "./types.js";
import type { Unlock, Vault } from "./vault.js";

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
  unusedAddress(): string;
  coinsAt(address: string): readonly Coin[];
  createPsbt(payment: PaymentRequest): string;
  send(payment: PaymentRequest): string;
  pay(payment: PaymentRequest): Receipt;
  outcome(txid: string): Receipt;
  payPsbt(psbt: string): Receipt;
  attest(transaction: string): Receipt;
  cancel(txid: string): void;
  refreshQuote(feeRate: number | undefined): RefreshQuote | undefined;
  refresh(feeRate: number | undefined): Receipt | undefined;
  bumpQuote(txid: string, feeRate: number): bigint;
  bump(txid: string, feeRate: number): Receipt;
  setAutoRefresh(feeRateMax: number | undefined): void;
  backup(unlock: Unlock | undefined, withWords: boolean): string;
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
  readonly record?: string;
  readonly vault?: Vault;
  readonly state?: ReadonlyMap<string, Uint8Array>;
  /** Whether it is known which addresses were used. */
  readonly known?: boolean;
}

/** Wallets in memory need no lock: nothing is written anywhere. */
export const MEMORY_UNLOCK: Unlock = /* @__PURE__ */ { key: /* @__PURE__ */ new Uint8Array(32) };

/** A wallet whose engine runs in this thread. */
export class LocalBackend implements Backend {
  readonly account: AccountInfo;
  readonly #engine: Engine;
  readonly #federation: Federation;
  readonly #vault: Vault | undefined;
  #words: string | undefined;
  #known: boolean;
  #closing: Promise<void> | undefined;

  constructor(engine: Engine, federation: Federation, account: AccountInfo, { vault, words, known = false }: Parts) {
    this.#engine = engine;
    this.#federation = federation;
    this.account = account;
    this.#vault = vault;
    this.#words = words;
    this.#known = known;
  }

  async request<M extends keyof Methods>(method: M, ...args: Parameters<Methods[M]>): Promise<ReturnType<Methods[M]>> {
    return (await call(() => this.#run(method, args))) as ReturnType<Methods[M]>;
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
      case "proof":
      case "coinsAt":
      case "outcome":
      case "payPsbt":
      case "attest":
      case "cancel":
        return this.#engine[method](first as string);
      case "refreshQuote":
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
      case "send":
      case "pay":
        return this.#engine[method](paymentOf(first as PaymentRequest));
      case "revealWords":
        return this.#reveal(first as Unlock | undefined);
      case "changeUnlock":
        return this.#relock(first as Unlock, second as Unlock);
    }
  }

  /** Which addresses were used is known from the state that was saved, or from the first sync; new words have used none. */
  async #addressesKnown(): Promise<void> {
    if (this.#known) return;
    await this.#engine.synced();
    this.#known = true;
  }

  async #reveal(unlock: Unlock | undefined): Promise<string> {
    if (this.#closing !== undefined) throw new QuorateError("closed", "the wallet has been closed");
    if (this.#words === undefined) throw new QuorateError("watch_only", "this wallet only watches its account; it has no words");
    await this.#vault?.check(unlock ?? MEMORY_UNLOCK);
    return this.#words;
  }

  async #backup(unlock: Unlock | undefined, withWords: boolean): Promise<unknown> {
    return this.#engine.backup(withWords ? await this.#reveal(unlock) : undefined);
  }

  async #relock(from: Unlock, to: Unlock): Promise<void> {
    if (this.#vault === undefined) throw new QuorateError("watch_only", "this wallet is not stored");
    await this.#vault.check(from);
    await this.#vault.relock(to);
  }

  listen(listener: (event: WalletEvent | undefined) => void): void {
    this.#engine.listen(listener as Function);
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      // Nothing may be saved after the lock is gone, and nobody else may open the wallet while this engine runs.
      await this.#engine.close();
      this.#federation.free();
      this.#words = undefined;
      await this.#vault?.close();
    })();
    return this.#closing;
  }
}

/** The engine's form of a payment. */
function paymentOf({ to, amount, feeRate }: PaymentRequest): unknown {
  return amount === "everything" ? { to, everything: true, feeRate } : { to, amount, feeRate };
}
