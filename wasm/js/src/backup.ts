// A whole wallet as one file, encrypted under a password or key of its own.
import { QuorateError } from "./errors.js";
import { concat, decrypt, encrypt, hkdf, lockRecord, random, unwrap, utf8, type Unlock } from "./vault.js";

/** What a file begins with, and its version. */
const MAGIC = /* @__PURE__ */ utf8("quorate backup 1\n");
const KEY_BYTES = 32;
/** A lock takes some 300 bytes. */
const LOCK_BYTES_MAX = 4_096;
/** Bytes of a file at most, and of what is not the values. */
const FILE_BYTES_MAX = 256 * 1024 * 1024;
const HEAD_BYTES_MAX = 8_192;

/** Writes values into a file: its beginning, the length of the lock, the lock, and the values under the lock's key, bound to all before them. */
export async function writeBackup(values: ReadonlyMap<string, Uint8Array>, unlock: Unlock): Promise<Uint8Array<ArrayBuffer>> {
  const key = random(KEY_BYTES);
  const lock = await lockRecord(key, unlock);
  const head = concat([MAGIC, length(lock), lock]);
  const plain = concat([...values].flatMap(([name, value]) => [length(utf8(name)), utf8(name), length(value), value]));
  try {
    if (plain.length > FILE_BYTES_MAX - HEAD_BYTES_MAX) throw new QuorateError("invalid_argument", "the wallet is too large for a backup file; keep its words, and export its labels");
    return concat([head, await encrypt(await fileKey(key), plain, hex(head))]);
  } finally {
    plain.fill(0);
    key.fill(0);
  }
}

/**
 * Reads what {@link writeBackup} wrote.
 *
 * @throws {@link QuorateError} `invalid_backup`, `wrong_password`, `wrong_unlock`
 */
export async function readBackup(file: Uint8Array, unlock: Unlock): Promise<Map<string, Uint8Array>> {
  if (file.length > FILE_BYTES_MAX) throw invalid("is too large for a backup");
  if (MAGIC.some((byte, at) => file[at] !== byte)) throw invalid("is no backup of a wallet that this release knows");
  const [lock, at] = part(file, MAGIC.length);
  if (lock.length > LOCK_BYTES_MAX) throw invalid("is damaged");
  const key = await unwrap(lock, unlock).catch((error: QuorateError) => {
    throw error.code === "storage_damaged" || error.code === "state_too_new" ? invalid("is damaged, or of a later release", error) : error;
  });
  let opened: Uint8Array;
  try {
    opened = await decrypt(await fileKey(key), file.subarray(at), hex(file.subarray(0, at)));
  } catch (cause) {
    throw invalid("is damaged", cause);
  } finally {
    key.fill(0);
  }
  const values = new Map<string, Uint8Array>();
  for (let from = 0; from < opened.length; ) {
    const [name, afterName] = part(opened, from);
    const [value, next] = part(opened, afterName);
    values.set(new TextDecoder().decode(name), value.slice());
    from = next;
  }
  opened.fill(0);
  return values;
}

function fileKey(key: Uint8Array<ArrayBuffer>): Promise<CryptoKey> {
  return hkdf(key, "quorate backup", { name: "AES-GCM", length: 256 }, ["encrypt", "decrypt"]);
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function length(bytes: Uint8Array): Uint8Array {
  const written = new Uint8Array(4);
  new DataView(written.buffer).setUint32(0, bytes.length);
  return written;
}

/** Bytes that stand behind their length, and where they end. */
function part(bytes: Uint8Array, at: number): [Uint8Array, number] {
  const from = at + 4;
  if (from > bytes.length) throw invalid("is cut off");
  const end = from + new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);
  if (end > bytes.length) throw invalid("is cut off");
  return [bytes.subarray(from, end), end];
}

function invalid(what: string, cause?: unknown): QuorateError {
  return new QuorateError("invalid_backup", `the file ${what}; use another copy, or the words`, { cause });
}
