import { argon2id } from "./glue/quorate.js";
import { QuorateError, call } from "./errors.js";
import { init } from "./init.js";
import type { StateChange, StateStore } from "./storage.js";

/**
 * How a wallet is unlocked: a password, or 32 or more secret bytes from elsewhere, such as a passkey (see {@link passkeyKey}) or the keystore
 * of the operating system.
 */
export type Unlock = { readonly password: string } | { readonly key: Uint8Array };

/** Argon2id (RFC 9106), one lane: 64 MiB, three passes. */
const MEMORY_KIB = 65_536;
const PASSES = 3;
/** What a stored wallet may ask for at most. */
const MEMORY_KIB_MAX = 1 << 18;
const PASSES_MAX = 16;
const SALT_BYTES = 16;
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
/** The one value that is stored in the clear: how the key is derived, and the key under that. */
const LOCK = "vault";

type Derivation =
  | { readonly name: "argon2id"; readonly memoryKib: number; readonly passes: number; readonly salt: string }
  | { readonly name: "key"; readonly salt: string };

interface LockRecord {
  readonly version: 1;
  readonly derivation: Derivation;
  readonly wrapped: string;
}

/**
 * A wallet's store, encrypted. Every value is AES-256-GCM under a random key, with its own name bound to it, so that values can be neither read
 * nor swapped; names are stored as HMACs. The random key is stored under the key that password or passkey give.
 */
export class Vault {
  readonly #store: StateStore;
  readonly #encryption: CryptoKey;
  readonly #naming: CryptoKey;
  readonly #key: Uint8Array<ArrayBuffer>;

  private constructor(store: StateStore, key: Uint8Array<ArrayBuffer>, encryption: CryptoKey, naming: CryptoKey) {
    this.#store = store;
    this.#key = key;
    this.#encryption = encryption;
    this.#naming = naming;
  }

  /** Whether a store holds a wallet. */
  static async exists(store: StateStore): Promise<boolean> {
    return (await store.load()).size > 0;
  }

  /** Makes a vault with its first values. `fresh` is called before they are stored. */
  static async create(store: StateStore, unlock: Unlock, values: ReadonlyMap<string, Uint8Array>, fresh?: () => void): Promise<Vault> {
    if (await Vault.exists(store)) {
      throw new QuorateError("wallet_exists", "a wallet of this name exists; open it, or choose another name");
    }
    const key = random(KEY_BYTES);
    const vault = await Vault.#with(store, key);
    const change = await vault.#seal(values);
    change.set(LOCK, await lockRecord(key, unlock));
    fresh?.();
    await store.apply(change);
    return vault;
  }

  /** Opens a vault and reads what is in it. */
  static async open(store: StateStore, unlock: Unlock): Promise<{ vault: Vault; values: Map<string, Uint8Array> }> {
    const stored = await store.load();
    if (stored.size === 0) throw new QuorateError("wallet_missing", "there is no wallet of this name; create or restore it");
    const vault = await Vault.#with(store, await unwrap(stored.get(LOCK), unlock));
    return { vault, values: await vault.#openAll(stored) };
  }

  /** All that is in it now. */
  async read(): Promise<Map<string, Uint8Array>> {
    return this.#openAll(await this.#store.load());
  }

  async #openAll(stored: ReadonlyMap<string, Uint8Array>): Promise<Map<string, Uint8Array>> {
    const values = new Map<string, Uint8Array>();
    for (const [name, sealed] of stored) {
      if (name === LOCK) continue;
      const { key, value } = await this.#open(name, sealed);
      values.set(key, value);
    }
    return values;
  }

  static async #with(store: StateStore, key: Uint8Array<ArrayBuffer>): Promise<Vault> {
    const encryption = await hkdf(key, "quorate vault values", { name: "AES-GCM", length: 256 }, ["encrypt", "decrypt"]);
    const naming = await hkdf(key, "quorate vault names", { name: "HMAC", hash: "SHA-256", length: 256 }, ["sign"]);
    return new Vault(store, key, encryption, naming);
  }

  /** Makes a change durable. */
  async save(change: StateChange): Promise<void> {
    await this.#store.apply(await this.#seal(change));
  }

  /** Replaces password or key. */
  async relock(unlock: Unlock): Promise<void> {
    await this.#store.apply(new Map([[LOCK, await lockRecord(this.#key, unlock)]]));
  }

  /** Checks a password or key. */
  async check(unlock: Unlock): Promise<void> {
    (await unwrap((await this.#store.load()).get(LOCK), unlock)).fill(0);
  }

  async close(): Promise<void> {
    this.#key.fill(0);
    await this.#store.close();
  }

  async #seal(change: StateChange): Promise<Map<string, Uint8Array | null>> {
    const entries = [...change].map(async ([key, value]): Promise<[string, Uint8Array | null]> => {
      const name = await this.#name(key);
      return [name, value === null ? null : await encrypt(this.#encryption, frame(key, value), name)];
    });
    return new Map(await Promise.all(entries));
  }

  async #open(name: string, sealed: Uint8Array): Promise<{ key: string; value: Uint8Array }> {
    try {
      return unframe(await decrypt(this.#encryption, sealed, name));
    } catch (cause) {
      throw damaged("a stored value does not decrypt", cause);
    }
  }

  async #name(key: string): Promise<string> {
    return base64url(new Uint8Array(await crypto.subtle.sign("HMAC", this.#naming, utf8(key))));
  }
}

/** A key under a password or another key. */
export async function lockRecord(key: Uint8Array<ArrayBuffer>, unlock: Unlock): Promise<Uint8Array<ArrayBuffer>> {
  const salt = base64url(random(SALT_BYTES));
  const derivation: Derivation =
    "password" in unlock ? { name: "argon2id", memoryKib: MEMORY_KIB, passes: PASSES, salt } : { name: "key", salt };
  const wrapped = await encrypt(await derive(derivation, unlock), key, JSON.stringify(derivation));
  const record: LockRecord = { version: 1, derivation, wrapped: base64url(wrapped) };
  return utf8(JSON.stringify(record));
}

/** Whether a lock makes sense, and asks for no more than this device can give: it may be somebody else's. */
function checkLock({ version, derivation, wrapped }: LockRecord): void {
  const within = (value: number, least: number, most: number): boolean => Number.isInteger(value) && value >= least && value <= most;
  const sound =
    version === 1 &&
    fromBase64url(derivation.salt).length === SALT_BYTES &&
    fromBase64url(wrapped).length > NONCE_BYTES &&
    (derivation.name === "key" || (derivation.name === "argon2id" && within(derivation.memoryKib, 8, MEMORY_KIB_MAX) && within(derivation.passes, 1, PASSES_MAX)));
  if (!sound) throw new Error("it makes no sense, or asks for too much");
}

/** The key of a {@link lockRecord}. */
export async function unwrap(stored: Uint8Array | undefined, unlock: Unlock): Promise<Uint8Array<ArrayBuffer>> {
  let record: LockRecord;
  try {
    record = JSON.parse(new TextDecoder().decode(stored)) as LockRecord;
    if (Number.isInteger(record.version) && record.version > 1) throw new QuorateError("state_too_new", "the wallet was written by a later release; use that");
    checkLock(record);
  } catch (cause) {
    throw cause instanceof QuorateError ? cause : damaged("the vault's lock cannot be read", cause);
  }
  if (("password" in unlock) !== (record.derivation.name === "argon2id")) {
    const how = record.derivation.name === "argon2id" ? "a password" : "a key";
    throw new QuorateError("wrong_unlock", `this wallet is unlocked by ${how}`);
  }
  const key = await derive(record.derivation, unlock);
  try {
    return await decrypt(key, fromBase64url(record.wrapped), JSON.stringify(record.derivation));
  } catch (cause) {
    const what = "password" in unlock ? "the password is wrong" : "the key is wrong";
    throw new QuorateError("wrong_password", `${what}, or the stored wallet is damaged`, { cause });
  }
}

async function derive(derivation: Derivation, unlock: Unlock): Promise<CryptoKey> {
  const salt = fromBase64url(derivation.salt);
  if ("password" in unlock && derivation.name === "argon2id") {
    if (unlock.password === "") throw new QuorateError("invalid_argument", "password: must not be empty");
    await init();
    // Compatibility composition: the same password on every keyboard (RFC 8265 does the same).
    const password = utf8(unlock.password.normalize("NFKC"));
    const key = new Uint8Array(await call(() => argon2id(password, salt, derivation.memoryKib, derivation.passes)));
    return wiped(key, () => hkdf(key, "quorate vault password", { name: "AES-GCM", length: 256 }, ["encrypt", "decrypt"], salt));
  }
  if ("key" in unlock) {
    if (unlock.key.length < KEY_BYTES) throw new QuorateError("invalid_argument", "key: at least 32 bytes are needed");
    const key = new Uint8Array(unlock.key);
    return wiped(key, () => hkdf(key, "quorate vault key", { name: "AES-GCM", length: 256 }, ["encrypt", "decrypt"], salt));
  }
  throw new QuorateError("wrong_unlock", "this wallet is unlocked by something else");
}

/** Wipes a secret once it has been used. */
async function wiped<T>(secret: Uint8Array, use: () => Promise<T>): Promise<T> {
  try {
    return await use();
  } finally {
    secret.fill(0);
  }
}

export async function hkdf(
  secret: Uint8Array<ArrayBuffer>,
  info: string,
  algorithm: AesKeyGenParams | HmacKeyGenParams,
  usages: KeyUsage[],
  salt: Uint8Array<ArrayBuffer> = new Uint8Array(0),
): Promise<CryptoKey> {
  const from = await subtle().importKey("raw", secret, "HKDF", false, ["deriveKey"]);
  return subtle().deriveKey({ name: "HKDF", hash: "SHA-256", salt, info: utf8(info) }, from, algorithm, false, usages);
}

function subtle(): SubtleCrypto {
  // Browsers have it on https and localhost only; without it nothing may be stored.
  if (globalThis.crypto?.subtle === undefined) {
    throw new QuorateError("insecure_context", "this page cannot encrypt: serve it over https or from localhost");
  }
  return crypto.subtle;
}

export async function encrypt(key: CryptoKey, value: Uint8Array<ArrayBuffer>, bound: string): Promise<Uint8Array<ArrayBuffer>> {
  const iv = random(NONCE_BYTES);
  const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData: utf8(bound) }, key, value);
  return concat([iv, new Uint8Array(sealed)]);
}

export async function decrypt(key: CryptoKey, sealed: Uint8Array, bound: string): Promise<Uint8Array<ArrayBuffer>> {
  const iv = new Uint8Array(sealed.subarray(0, NONCE_BYTES));
  const body = new Uint8Array(sealed.subarray(NONCE_BYTES));
  return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv, additionalData: utf8(bound) }, key, body));
}

/** Length of the key, key, value. */
function frame(key: string, value: Uint8Array): Uint8Array<ArrayBuffer> {
  const name = utf8(key);
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, name.length);
  return concat([length, name, value]);
}

function unframe(bytes: Uint8Array<ArrayBuffer>): { key: string; value: Uint8Array } {
  const end = 4 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
  return { key: new TextDecoder().decode(bytes.subarray(4, end)), value: bytes.slice(end) };
}

function damaged(what: string, cause: unknown): QuorateError {
  const message = `${what}; keep the stored wallet aside and restore it from its words under another name`;
  return new QuorateError("storage_damaged", message, { cause });
}

export function random(length: number): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(length));
}

export function utf8(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

export function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function base64url(bytes: Uint8Array): string {
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64url(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}
