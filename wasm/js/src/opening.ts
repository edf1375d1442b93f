// How wallets are made, opened and watched.
import { Engine, Federation, fetchFederation } from "./glue/quorate.js";
import { readBackup } from "./backup.js";
import { LocalBackend, MEMORY_UNLOCK, UNSYNCED, type Backend, type Parts } from "./backend.js";
import { checkOpening } from "./checks.js";
import { QuorateError, abortable, call } from "./errors.js";
import { init, untilTrap } from "./init.js";
import { Labels } from "./labels.js";
import { Notes } from "./notes.js";
import { Orders } from "./orders.js";
import { Sockets } from "./sockets.js";
import { socketFactory } from "#platform";
import type { StateChange, StateStore } from "./storage.js";
import { erase, nameOf, storageOf, type StorageOptions } from "./stored.js";
import type { AccountInfo, Checkpoint, WaitOptions } from "./types.js";
import { Vault, type Unlock } from "./vault.js";

/** How to reach the federation. */
export interface ConnectionOptions extends WaitOptions {
  /** Address of a bridge, `wss://` or `ws://`; several are tried in turn. */
  readonly bridge: string | readonly string[];
}

/**
 * One of several wallets of the same account that give out addresses without asking each other, such as the tills of a shop: of each row of `of` addresses, each
 * gives out the one with its number. All wallets of the account that give out addresses need one, its owner's too; how many there are stays as it is. At most 16.
 */
export interface Till {
  /** Counted from 0. */
  readonly number: number;
  /** How many there are, the same for all of them. */
  readonly of: number;
}

/** How to make a wallet. */
export interface CreateOptions extends ConnectionOptions, StorageOptions {
  /** Id of the federation, 64 hex digits, from a source that you trust: everything else is verified against it. */
  readonly federation: string;
  /** The secret words of a wallet to restore; new ones if absent. */
  readonly words?: string;
  /**
   * A passphrase beside the words (BIP39): each one makes another wallet of the same words. None can be told to be wrong, and it is on no backup sheet.
   * @defaultValue none
   */
  readonly passphrase?: string;
  /** Account number of the words. @defaultValue 0 */
  readonly account?: number;
  /**
   * How many addresses after the last used one are watched, 1 to 1000. Restore with a higher one where many addresses were given out that nobody
   * paid to, as a shop does. @defaultValue 20
   */
  readonly gapLimit?: number;
  /** Which of several wallets of the account this is. @defaultValue the only one */
  readonly till?: Till;
  /**
   * Blocks after which the owner can move a coin without the federation, 4,320 (30 days) to 52,560 (a year). A coin has to be moved once in that time
   * to stay payable, so a short delay costs fees, and a long one makes leaving slow. It is part of the account: restore with the same; the backup has
   * it. @defaultValue the federation's, 90 days
   */
  readonly recoveryDelay?: number;
  /** Most that one payment may be, in satoshis; the nodes enforce it. It is part of the account: restore with the same. */
  readonly paymentMax?: bigint;
  /** Where header verification starts. @defaultValue the federation's birthday, as if it is before that */
  readonly checkpoint?: Checkpoint;
}

/** How to open a wallet that exists. */
export interface OpenOptions extends StorageOptions, WaitOptions {
  /** Other bridges than the ones that it was made with. */
  readonly bridge?: string | readonly string[];
}

/** How to go on with a wallet from a file of {@link OpenWallet.backupFile}. */
export interface RestoreOptions extends OpenOptions {
  /** The file. */
  readonly file: Uint8Array;
  /** Password or key of the file. */
  readonly fileUnlock: Unlock;
}

/**
 * How to watch an account without its words. With a password or key it is kept, so that it goes on where it stopped: a till gives no address to two
 * customers, whatever happens to its page. Without, nothing is stored.
 */
export interface WatchOptions extends ConnectionOptions, StorageOptions {
  /** Id of the federation, 64 hex digits. */
  readonly federation: string;
  /** The account record, as {@link AccountInfo.record} has it. */
  readonly record: string;
  /** As {@link CreateOptions.gapLimit}. */
  readonly gapLimit?: number;
  /** As {@link CreateOptions.till}. */
  readonly till?: Till;
  /** Where header verification starts. @defaultValue the genesis block */
  readonly checkpoint?: Checkpoint;
}

/** A request to open a backend, as it is sent to a worker. */
export type Opening =
  | { readonly mode: "create"; readonly options: CreateOptions }
  | { readonly mode: "open"; readonly options: OpenOptions }
  | { readonly mode: "restore"; readonly options: RestoreOptions }
  | { readonly mode: "watch"; readonly options: WatchOptions };

/** What is stored of a wallet besides its state. */
interface Config {
  readonly federation: string;
  readonly document: string;
  readonly urls: readonly string[];
  readonly words?: string;
  /** Normalised. */
  readonly passphrase?: string;
  /** Of an account that is only watched. */
  readonly record?: string;
  readonly account: number;
  readonly recoveryDelay?: number;
  readonly paymentMax?: string;
  readonly gapLimit?: number;
  readonly till?: Till;
  readonly checkpoint?: Checkpoint;
}

const CONFIG = "config";

/** Asks a bridge which federation it serves. The answer is only as good as the bridge: compare the id with one from a source that you trust. */
export async function federationDocument(bridge: string | readonly string[], { signal }: WaitOptions = {}): Promise<string> {
  await abortable(init, signal);
  const sockets = new Sockets(await socketFactory());
  try {
    return await abortable(() => untilTrap(() => fetchFederation(urlsOf(bridge), sockets.open as Function) as Promise<string>), signal);
  } finally {
    // Of a question that was given up, or whose module has trapped.
    sockets.close();
  }
}

/**
 * Opens a wallet in this thread. One whose opening is aborted is closed again, and one that was being made is not there: its words were shown to
 * nobody.
 *
 * @param fresh - called before anything of a new wallet is stored, once it is known that there was none of its name.
 */
export async function openLocal(opening: Opening, fresh?: () => void): Promise<Backend> {
  checkOpening(opening);
  const { signal } = opening.options;
  signal?.throwIfAborted();
  const opened = openHere(opening, fresh).then(async (backend) => {
    if (!signal?.aborted) return backend;
    await backend.close();
    if (opening.mode === "create" || opening.mode === "restore") await erase(opening.options);
    throw signal.reason;
  });
  return signal === undefined ? opened : afterGrace(opened, signal);
}

/** How long an opening that was aborted may take to clean up; one that never ends holds up nobody. */
export const ABORT_GRACE_MS = 2_000;

function afterGrace<T>(opened: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    let grace: ReturnType<typeof setTimeout> | undefined;
    const abort = (): void => void (grace = setTimeout(() => reject(signal.reason), ABORT_GRACE_MS));
    signal.addEventListener("abort", abort, { once: true });
    opened.then(resolve, reject).finally(() => {
      clearTimeout(grace);
      signal.removeEventListener("abort", abort);
    });
  });
}

async function openHere(opening: Opening, fresh?: () => void): Promise<Backend> {
  await abortable(init, opening.options.signal);
  switch (opening.mode) {
    case "create":
      return create(opening.options, fresh);
    case "open":
      return open(opening.options);
    case "restore":
      return restore(opening.options, fresh);
    case "watch":
      return watch(opening.options);
  }
}

async function create(options: CreateOptions, fresh?: () => void): Promise<Backend> {
  const { generateWords, checkWords } = await import("./glue/quorate.js");
  const words = await call(() => (options.words === undefined ? generateWords() : checkWords(options.words)));
  const passphrase = (options.passphrase ?? "").normalize("NFKD");
  const unlock = unlockOf(options);
  const document = await federationDocument(options.bridge, options);
  // Refused here, before anything is stored.
  (await call(() => new Federation(document, options.federation))).free();
  const config: Config = {
    federation: options.federation,
    document,
    urls: urlsOf(options.bridge),
    words,
    ...(passphrase !== "" && { passphrase }),
    account: options.account ?? 0,
    ...(options.recoveryDelay !== undefined && { recoveryDelay: options.recoveryDelay }),
    ...(options.paymentMax !== undefined && { paymentMax: String(options.paymentMax) }),
    ...(options.gapLimit !== undefined && { gapLimit: options.gapLimit }),
    ...(options.till !== undefined && { till: { number: options.till.number, of: options.till.of } }),
    ...(options.checkpoint !== undefined && { checkpoint: options.checkpoint }),
  };
  return withStore(options, (store) => make(store, unlock, options.signal, config, { words, known: options.words === undefined }, fresh));
}

/** Stores a wallet and starts it; what cannot be started is not left behind. */
async function make(
  store: StateStore,
  unlock: Unlock,
  signal: AbortSignal | undefined,
  config: Config,
  parts: Parts,
  fresh?: () => void,
): Promise<Backend> {
  signal?.throwIfAborted();
  const values = new Map([[CONFIG, new TextEncoder().encode(JSON.stringify(config))]]);
  const vault = await Vault.create(store, unlock, values, fresh);
  try {
    return await start(config, { ...parts, vault });
  } catch (error) {
    await empty(store);
    throw error;
  }
}

async function empty(store: StateStore): Promise<void> {
  await store.apply(new Map([...(await store.load()).keys()].map((key) => [key, null])));
}

async function watch(options: WatchOptions): Promise<Backend> {
  const { bridge, federation, gapLimit, till, checkpoint } = options;
  const record = options.record.trim();
  const fresh = async (): Promise<Config> => ({
    federation,
    document: await federationDocument(bridge, options),
    urls: urlsOf(bridge),
    record,
    account: 0,
    ...(gapLimit !== undefined && { gapLimit }),
    ...(till !== undefined && { till: { number: till.number, of: till.of } }),
    ...(checkpoint !== undefined && { checkpoint }),
  });
  const kept = [options.password, options.key, options.name, options.storage, options.directory].some((one) => one !== undefined);
  if (!kept) return start(await fresh(), { record });
  const unlock = unlockOf(options);
  return withStore(options, async (store) => {
    if (!(await Vault.exists(store))) return make(store, unlock, options.signal, await fresh(), { record });
    return resume(store, unlock, (config) => {
      if (config.record !== record || config.federation !== federation) {
        throw new QuorateError("wallet_exists", "a wallet of this name exists, of another account; choose another name");
      }
      if (config.till?.number !== till?.number || config.till?.of !== till?.of) {
        throw new QuorateError("invalid_argument", "till: this wallet is kept as another one; which it is, and of how many, stays as it is");
      }
      return { ...config, urls: urlsOf(bridge) };
    });
  });
}

async function open({ bridge, ...options }: OpenOptions): Promise<Backend> {
  const unlock = unlockOf(options);
  return withStore(options, (store) => resume(store, unlock, (config) => (bridge === undefined ? config : { ...config, urls: urlsOf(bridge) })));
}

async function restore({ file, fileUnlock, bridge, ...options }: RestoreOptions, fresh?: () => void): Promise<Backend> {
  const unlock = unlockOf(options);
  const values = await readBackup(file, fileUnlock);
  if (!values.has(CONFIG)) throw new QuorateError("invalid_backup", "the file has no wallet in it");
  // The file may be old: which addresses were used since is known after the next sync.
  values.set(UNSYNCED, new Uint8Array([1]));
  return withStore(options, async (store) => {
    options.signal?.throwIfAborted();
    const vault = await Vault.create(store, unlock, values, fresh);
    try {
      return await go(vault, values, (config) => (bridge === undefined ? config : { ...config, urls: urlsOf(bridge) }));
    } catch (error) {
      await empty(store);
      throw error;
    }
  });
}

/** Starts what is stored where it stopped. */
async function resume(store: StateStore, unlock: Unlock, adjust: (config: Config) => Config): Promise<Backend> {
  const { vault, values } = await Vault.open(store, unlock);
  return go(vault, values, adjust);
}

async function go(vault: Vault, values: Map<string, Uint8Array>, adjust: (config: Config) => Config): Promise<Backend> {
  const stored = values.get(CONFIG);
  if (stored === undefined) throw new QuorateError("storage_damaged", "the stored wallet has no configuration");
  values.delete(CONFIG);
  const labels = Labels.take(values);
  const orders = Orders.take(values);
  const notes = Notes.take(values);
  const unsynced = values.delete(UNSYNCED);
  const config = adjust(JSON.parse(new TextDecoder().decode(stored)) as Config);
  const { words, record } = config;
  return start(config, { ...(words && { words }), ...(record && { record }), vault, state: values, labels, orders, notes, known: values.has("keychains") && !unsynced });
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

function unlockOf(options: StorageOptions): Unlock {
  if (options.password !== undefined && options.key !== undefined) {
    throw new QuorateError("invalid_argument", "either password or key, not both");
  }
  if (options.key !== undefined) return { key: options.key };
  if (options.password !== undefined) return { password: options.password };
  if (options.storage === "memory") return MEMORY_UNLOCK;
  throw new QuorateError("password_required", "a wallet that is stored needs a password or key to encrypt its words with");
}

async function start(config: Config, parts: Parts): Promise<Backend> {
  const sockets = new Sockets(await socketFactory());
  const federation = await call(() => new Federation(config.document, config.federation));
  const options = {
    words: parts.words,
    passphrase: config.passphrase,
    record: parts.record,
    account: config.account,
    recoveryDelay: config.recoveryDelay,
    paymentMax: config.paymentMax === undefined ? undefined : BigInt(config.paymentMax),
    gapLimit: config.gapLimit,
    till: config.till,
    checkpoint: config.checkpoint,
    urls: config.urls,
  };
  const { vault } = parts;
  const save = vault === undefined ? undefined : (change: StateChange) => vault.save(change);
  const state = new Map(parts.state);
  let engine: Engine | undefined;
  try {
    engine = await call(() => Engine.open(federation, options, state, save as Function | undefined, sockets.open as Function));
    const account = (await untilTrap(() => engine?.account())) as AccountInfo;
    return new LocalBackend(engine, federation, account, { ...parts, sockets, hasPassphrase: config.passphrase !== undefined });
  } catch (error) {
    // Nothing runs on whose store is closed.
    await untilTrap(() => engine?.close()).catch(() => undefined);
    sockets.close();
    throw error;
  }
}

function urlsOf(bridge: string | readonly string[]): string[] {
  return typeof bridge === "string" ? [bridge] : [...bridge];
}
