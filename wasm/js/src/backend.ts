import { Engine, Federation, fetchFederation, parseDestination } from "./glue/quorate.js";
import { QuorateError, abortable, call } from "./errors.js";
import { init } from "./init.js";
import { socketFactory } from "#platform";
import type { StateChange, StateStore } from "./storage.js";
import { erase, nameOf, storageOf, type StorageOptions } from "./stored.js";
import type {
  AccountInfo,
  Balance,
  Block,
  Checkpoint,
  Coin,
  Connection,
  Destination,
  HistoryEntry,
  PaymentRequest,
  Receipt,
  WaitOptions,
  WalletEvent,
} from "./types.js";
import { Vault, type Unlock } from "./vault.js";

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

/** How to reach the federation. */
export interface ConnectionOptions extends WaitOptions {
  /** Address of a bridge, `wss://` or `ws://`; several are tried in turn. */
  readonly bridge: string | readonly string[];
}

/** How to make a wallet. */
export interface CreateOptions extends ConnectionOptions, StorageOptions {
  /** Id of the federation, 64 hex digits, from a source that you trust: everything else is verified against it. */
  readonly federation: string;
  /** The secret words of a wallet to restore; new ones if absent. */
  readonly words?: string;
  /** Account number of the words. @defaultValue 0 */
  readonly account?: number;
  /**
   * How many addresses after the last used one are watched, 1 to 1000. Restore with a higher one where many addresses were given out that nobody
   * paid to, as a shop does. @defaultValue 20
   */
  readonly gapLimit?: number;
  /** Most that one payment may be, in satoshis; the nodes enforce it. It is part of the account: restore with the same. */
  readonly paymentMax?: bigint;
  /** Where header verification starts. @defaultValue the genesis block */
  readonly checkpoint?: Checkpoint;
}

/** How to open a wallet that exists. */
export interface OpenOptions extends StorageOptions, WaitOptions {
  /** Other bridges than the ones that it was made with. */
  readonly bridge?: string | readonly string[];
}

/** How to watch an account without its words. */
export interface WatchOptions extends ConnectionOptions {
  /** Id of the federation, 64 hex digits. */
  readonly federation: string;
  /** The account record, as {@link AccountInfo.record} has it. */
  readonly record: string;
  /** As {@link CreateOptions.gapLimit}. */
  readonly gapLimit?: number;
  /** Where header verification starts. @defaultValue the genesis block */
  readonly checkpoint?: Checkpoint;
}

/** A request to open a backend, as it is sent to a worker. */
export type Opening =
  | { readonly mode: "create"; readonly options: CreateOptions }
  | { readonly mode: "open"; readonly options: OpenOptions }
  | { readonly mode: "watch"; readonly options: WatchOptions };

/** What is stored of a wallet besides its state. */
interface Config {
  readonly federation: string;
  readonly document: string;
  readonly urls: readonly string[];
  readonly words: string;
  readonly account: number;
  readonly paymentMax?: string;
  readonly gapLimit?: number;
  readonly checkpoint?: Checkpoint;
}

const CONFIG = "config";

/** Asks a bridge which federation it serves. The answer is only as good as the bridge: compare the id with one from a source that you trust. */
export async function federationDocument(bridge: string | readonly string[], { signal }: WaitOptions = {}): Promise<string> {
  await abortable(init, signal);
  const factory = await socketFactory();
  return abortable(() => call(() => fetchFederation(urlsOf(bridge), factory as unknown as Function | undefined) as Promise<string>), signal);
}

/**
 * Opens a wallet in this thread. One whose opening is aborted is closed again, and one that was being made is not there: its words were shown to
 * nobody.
 */
export async function openLocal(opening: Opening): Promise<Backend> {
  const { signal } = opening.options;
  signal?.throwIfAborted();
  const backend = await openHere(opening);
  if (!signal?.aborted) return backend;
  await backend.close();
  if (opening.mode === "create") await erase(opening.options);
  throw signal.reason;
}

async function openHere(opening: Opening): Promise<Backend> {
  await abortable(init, opening.options.signal);
  switch (opening.mode) {
    case "create":
      return create(opening.options);
    case "open":
      return open(opening.options);
    case "watch": {
      const { bridge, federation, record, gapLimit, checkpoint } = opening.options;
      const document = await federationDocument(bridge, opening.options);
      const config = { federation, document, urls: urlsOf(bridge), account: 0, ...(gapLimit !== undefined && { gapLimit }), ...(checkpoint && { checkpoint }) };
      return start(config, { record });
    }
  }
}

async function create(options: CreateOptions): Promise<Backend> {
  const { generateWords, checkWords } = await import("./glue/quorate.js");
  const words = await call(() => (options.words === undefined ? generateWords() : checkWords(options.words)));
  const unlock = unlockOf(options);
  const document = await federationDocument(options.bridge, options);
  // Refused here, before anything is stored.
  (await call(() => new Federation(document, options.federation))).free();
  const config: Config = {
    federation: options.federation,
    document,
    urls: urlsOf(options.bridge),
    words,
    account: options.account ?? 0,
    ...(options.paymentMax !== undefined && { paymentMax: String(options.paymentMax) }),
    ...(options.gapLimit !== undefined && { gapLimit: options.gapLimit }),
    ...(options.checkpoint !== undefined && { checkpoint: options.checkpoint }),
  };
  return withStore(options, async (store) => {
    options.signal?.throwIfAborted();
    const vault = await Vault.create(store, unlock, new Map([[CONFIG, new TextEncoder().encode(JSON.stringify(config))]]));
    try {
      return await start(config, { words, vault, known: options.words === undefined });
    } catch (error) {
      // Its words were never shown: what cannot be opened must not be left behind.
      await store.apply(new Map([...(await store.load()).keys()].map((key) => [key, null])));
      throw error;
    }
  });
}

async function open(options: OpenOptions): Promise<Backend> {
  const unlock = unlockOf(options);
  return withStore(options, async (store) => {
    const { vault, values } = await Vault.open(store, unlock);
    const stored = values.get(CONFIG);
    if (stored === undefined) throw new QuorateError("storage_damaged", "the stored wallet has no configuration");
    values.delete(CONFIG);
    let config = JSON.parse(new TextDecoder().decode(stored)) as Config;
    if (options.bridge !== undefined) config = { ...config, urls: urlsOf(options.bridge) };
    return start(config, { words: config.words, vault, state: values, known: values.has("keychains") });
  });
}

async function withStore(options: StorageOptions, run: (store: StateStore) => Promise<Backend>): Promise<Backend> {
  const store = await storageOf(options).open(nameOf(options));
  try {
    return await run(store);
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** Wallets in memory need no lock: nothing is written anywhere. */
const MEMORY_UNLOCK: Unlock = /* @__PURE__ */ { key: /* @__PURE__ */ new Uint8Array(32) };

function unlockOf(options: StorageOptions): Unlock {
  if (options.password !== undefined && options.key !== undefined) {
    throw new QuorateError("invalid_argument", "either password or key, not both");
  }
  if (options.key !== undefined) return { key: options.key };
  if (options.password !== undefined) return { password: options.password };
  if (options.storage === "memory") return MEMORY_UNLOCK;
  throw new QuorateError("password_required", "a wallet that is stored needs a password or key to encrypt its words with");
}

interface Parts {
  readonly words?: string;
  readonly record?: string;
  readonly vault?: Vault;
  readonly state?: ReadonlyMap<string, Uint8Array>;
  /** Whether it is known which addresses were used. */
  readonly known?: boolean;
}

async function start(config: Omit<Config, "words">, parts: Parts): Promise<Backend> {
  const factory = await socketFactory();
  const federation = await call(() => new Federation(config.document, config.federation));
  const options = {
    words: parts.words,
    record: parts.record,
    account: config.account,
    paymentMax: config.paymentMax === undefined ? undefined : BigInt(config.paymentMax),
    gapLimit: config.gapLimit,
    checkpoint: config.checkpoint,
    urls: config.urls,
  };
  const { vault } = parts;
  const save = vault === undefined ? undefined : (change: StateChange) => vault.save(change);
  const state = new Map(parts.state);
  const engine = await call(() => Engine.open(federation, options, state, save as Function | undefined, factory as unknown as Function | undefined));
  const account = (await call(() => engine.account())) as AccountInfo;
  return new LocalBackend(engine, federation, account, parts);
}

class LocalBackend implements Backend {
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

function urlsOf(bridge: string | readonly string[]): string[] {
  return typeof bridge === "string" ? [bridge] : [...bridge];
}
