// A SQLite file, by SQLite itself as WebAssembly: it needs no compiler, and this process alone has the file.
import { mkdir, open, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { QuorateError } from "../errors.js";
import { lock } from "../platform/file-lock.js";
import { storageFailed } from "../storage.js";
import { driver, type Database, type Row, type Step } from "./database.js";

/** Opens a file, or makes it. */
export async function openSqlite(path: string): Promise<Database> {
  const { default: sqlite } = await driver("node-sqlite3-wasm", () => import("node-sqlite3-wasm"));
  const unlock = await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    .then(() => lock(`${path}.process`, path))
    .catch((error: unknown) => {
      throw error instanceof QuorateError ? error : storageFailed(`${path} cannot be opened`, error);
    });
  try {
    // What a process left that was killed: nobody else is here.
    await rm(`${path}.lock`, { recursive: true, force: true });
    // For nobody else to read.
    await (await open(path, "a", 0o600)).close();
    const file = new sqlite.Database(path);
    // The journal stays where it is: its place in the directory is durable from the beginning.
    file.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = PERSIST; PRAGMA synchronous = FULL; BEGIN IMMEDIATE; PRAGMA user_version = 1; COMMIT");
    const directory = await open(dirname(path), "r");
    await directory.sync().finally(() => directory.close());
    return new Sqlite(file, unlock);
  } catch (error) {
    await unlock();
    throw storageFailed(`${path} cannot be opened`, error);
  }
}

type File = import("node-sqlite3-wasm").Database;

class Sqlite implements Database {
  readonly #file: File;
  readonly #unlock: () => Promise<void>;
  #failed: QuorateError | undefined;
  #lost: (error: unknown) => void = () => undefined;

  constructor(file: File, unlock: () => Promise<void>) {
    this.#file = file;
    this.#unlock = unlock;
  }

  async all(...[sql, ...values]: Step): Promise<Row[]> {
    return this.#run(() => this.#file.all(sql, values) as Row[]);
  }

  async transact(steps: readonly Step[]): Promise<void> {
    try {
      this.#run(() => {
        this.#file.exec("BEGIN IMMEDIATE");
        try {
          for (const [sql, ...values] of steps) this.#file.run(sql, values);
          this.#file.exec("COMMIT");
        } finally {
          if (this.#file.inTransaction) this.#file.exec("ROLLBACK");
        }
      });
    } catch (error) {
      this.#lost(error);
      throw error;
    }
  }

  onLost(listener: (error: unknown) => void): void {
    this.#lost = listener;
  }

  #run<T>(step: () => T): T {
    if (this.#failed !== undefined) throw this.#failed;
    try {
      return step();
    } catch (error) {
      throw storageFailed("the database", error);
    }
  }

  async close(): Promise<void> {
    if (this.#failed !== undefined) return;
    this.#failed = new QuorateError("closed", "the database has been closed");
    this.#file.close();
    await this.#unlock();
  }
}
