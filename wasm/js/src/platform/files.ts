import { createHash } from "node:crypto";
import { mkdir, open, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { QuorateError } from "../errors.js";
import { storageFailed, type StateChange, type StateStore, type WalletStorage } from "../storage.js";
import { isCode, lock } from "./file-lock.js";

/** A log is written anew when it is larger than this and four times what is in it. */
const COMPACT_BYTES_MIN = 1 << 20;
/** Length and checksum in front of each record. */
const HEADER_BYTES = 12;

/**
 * Files, one log per wallet: each change is a record with a checksum, written and synced before it counts. What a crash left at the end is
 * not a record and is cut off.
 */
export class FileStorage implements WalletStorage {
  readonly #directory: string;

  constructor(directory?: string) {
    this.#directory = directory ?? join(homedir(), ".quorate");
  }

  #path(name: string): string {
    return join(this.#directory, `${encodeURIComponent(name)}.wallet`);
  }

  async open(name: string): Promise<StateStore> {
    try {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw storageFailed(`${this.#directory} cannot be made`, error);
    }
    const path = this.#path(name);
    const unlock = await lock(`${path}.lock`, name).catch((error: unknown) => {
      throw error instanceof QuorateError ? error : storageFailed(`${path}.lock cannot be made`, error);
    });
    try {
      return await Log.open(path, unlock);
    } catch (error) {
      await unlock();
      throw error instanceof QuorateError ? error : storageFailed(`${path} cannot be opened`, error);
    }
  }

  async has(name: string): Promise<boolean> {
    try {
      return (await stat(this.#path(name))).size > 0;
    } catch (error) {
      if (isCode(error, "ENOENT")) return false;
      throw storageFailed(`${this.#path(name)} cannot be read`, error);
    }
  }

  async erase(name: string): Promise<void> {
    const path = this.#path(name);
    const unlock = await lock(`${path}.lock`, name).catch((error: unknown) => {
      if (isCode(error, "ENOENT")) return async () => {};
      throw error instanceof QuorateError ? error : storageFailed(`${path}.lock cannot be made`, error);
    });
    try {
      await rm(path, { force: true });
    } catch (error) {
      throw storageFailed(`${path} cannot be erased`, error);
    } finally {
      await unlock();
    }
  }
}

class Log implements StateStore {
  #path: string;
  #file: FileHandle;
  #size: number;
  #state: Map<string, Uint8Array>;
  #unlock: () => Promise<void>;
  #turn: Promise<void> = Promise.resolve();
  #failed: QuorateError | undefined;

  private constructor(path: string, file: FileHandle, size: number, state: Map<string, Uint8Array>, unlock: () => Promise<void>) {
    this.#path = path;
    this.#file = file;
    this.#size = size;
    this.#state = state;
    this.#unlock = unlock;
  }

  static async open(path: string, unlock: () => Promise<void>): Promise<Log> {
    await rm(`${path}.new`, { force: true });
    const file = await open(path, "a+", 0o600);
    try {
      await syncDirectory(path);
      const bytes = await file.readFile();
      const state = new Map<string, Uint8Array>();
      const size = replay(bytes, state);
      if (size < bytes.length) {
        await file.truncate(size);
        await file.sync();
      }
      return new Log(path, file, size, state, unlock);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async load(): Promise<Map<string, Uint8Array>> {
    return new Map(this.#state);
  }

  /** One write at a time. After one that failed the end of the file is not known, so none is made any more. */
  apply(change: StateChange): Promise<void> {
    const written = this.#turn.then(() => this.#append(change));
    this.#turn = written.catch(() => undefined);
    return written;
  }

  async #append(change: StateChange): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed;
    try {
      const record = encode(change);
      await this.#file.appendFile(record);
      await this.#file.datasync();
      this.#size += record.length;
      take(change, this.#state);
      await this.#compact();
    } catch (error) {
      this.#failed = storageFailed(`${this.#path} cannot be written`, error);
      throw this.#failed;
    }
  }

  async #compact(): Promise<void> {
    if (this.#size < COMPACT_BYTES_MIN) return;
    const whole = encode(this.#state);
    if (whole.length * 4 > this.#size) return;
    const file = await open(`${this.#path}.new`, "w", 0o600);
    await file.writeFile(whole);
    await file.sync();
    await rename(`${this.#path}.new`, this.#path);
    await syncDirectory(this.#path);
    await this.#file.close();
    await file.close();
    this.#file = await open(this.#path, "a", 0o600);
    this.#size = whole.length;
  }

  async close(): Promise<void> {
    await this.#turn;
    this.#failed ??= new QuorateError("closed", "the wallet has been closed");
    await this.#file.close();
    await this.#unlock();
  }
}

/** Makes the entry of a file durable, not only what is in it. */
async function syncDirectory(path: string): Promise<void> {
  // Windows has no handle of a directory to sync; its journal does this.
  if (process.platform === "win32") return;
  const directory = await open(dirname(path), "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function take(change: StateChange, state: Map<string, Uint8Array>): void {
  for (const [key, value] of change) value === null ? state.delete(key) : state.set(key, value);
}

function checksum(body: Uint8Array): Buffer {
  return createHash("sha256").update(body).digest().subarray(0, 8);
}

function encode(change: StateChange): Buffer {
  const entries = [...change].map(([key, value]) => [key, value === null ? null : Buffer.from(value).toString("base64")]);
  const body = Buffer.from(JSON.stringify(entries));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, checksum(body), body]);
}

/** Takes in whole records; gives where they end. */
function replay(bytes: Buffer, state: Map<string, Uint8Array>): number {
  let at = 0;
  while (at + HEADER_BYTES <= bytes.length) {
    const end = at + HEADER_BYTES + bytes.readUInt32BE(at);
    if (end > bytes.length) break;
    const body = bytes.subarray(at + HEADER_BYTES, end);
    // A whole record that is wrong was not left by a crash: it is not cut off, and nothing behind it is believed.
    if (!checksum(body).equals(bytes.subarray(at + 4, at + HEADER_BYTES))) {
      const message = "the stored wallet is damaged; keep the file aside and restore the wallet from its words";
      throw new QuorateError("storage_damaged", message, { details: { offset: at } });
    }
    const entries = JSON.parse(body.toString()) as [string, string | null][];
    take(new Map(entries.map(([key, value]) => [key, value === null ? null : new Uint8Array(Buffer.from(value, "base64"))])), state);
    at = end;
  }
  return at;
}
