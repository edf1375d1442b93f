// The database of an invoice server: the statements that it needs are few, and read alike by SQLite and PostgreSQL.
import { refuse } from "../checks.js";
import { QuorateError } from "../errors.js";
import { inUse, storageFailed, type StateStore, type WalletStorage } from "../storage.js";

/** What a column has, or a placeholder (`$1`, `$2` …, each once and in this order) is given. */
export type Value = string | number | Uint8Array | null;
export type Row = Readonly<Record<string, Value>>;
/** A statement with its values. */
export type Step = readonly [sql: string, ...values: Value[]];

/** A database that this process alone writes. */
export interface Database {
  all(...step: Step): Promise<Row[]>;
  /** Makes changes durable, as a whole or not at all. */
  transact(steps: readonly Step[]): Promise<void>;
  /** Calls a listener when it does not work any more, or it is not known what is in it: it is to be closed then, and opened again. */
  onLost(listener: (error: unknown) => void): void;
  /** Lets another process have it. */
  close(): Promise<void>;
}

const VERSION = "1";

const SCHEMA: readonly Step[] = [
  ["CREATE TABLE IF NOT EXISTS quorate_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"],
  ["CREATE TABLE IF NOT EXISTS quorate_wallet (wallet TEXT NOT NULL, name TEXT NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (wallet, name))"],
  ["CREATE TABLE IF NOT EXISTS quorate_told (invoice TEXT PRIMARY KEY, print TEXT NOT NULL, sequence BIGINT NOT NULL)"],
  [
    "CREATE TABLE IF NOT EXISTS quorate_deliveries (id TEXT NOT NULL, endpoint TEXT NOT NULL, invoice TEXT NOT NULL, sequence BIGINT NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL, " +
      "created BIGINT NOT NULL, due BIGINT NOT NULL, attempts BIGINT NOT NULL, state TEXT NOT NULL, failure TEXT, PRIMARY KEY (id, endpoint))",
  ],
  ["CREATE INDEX IF NOT EXISTS quorate_deliveries_due ON quorate_deliveries (state, due)"],
  ["CREATE INDEX IF NOT EXISTS quorate_deliveries_age ON quorate_deliveries (state, created)"],
  ["CREATE INDEX IF NOT EXISTS quorate_deliveries_line ON quorate_deliveries (endpoint, invoice, sequence)"],
];

/**
 * Opens a database: a SQLite file, or a PostgreSQL server by its URL.
 *
 * @throws {@link QuorateError} `storage_failed`, `wallet_in_use`, `invalid_argument`.
 */
export async function openDatabase(place: string): Promise<Database> {
  if (place === "") refuse("database", "is empty: it is the path of a SQLite file, or a postgres:// URL");
  const database = /^postgres(ql)?:\/\//.test(place) ? await (await import("./postgres.js")).openPostgres(place) : await (await import("./sqlite.js")).openSqlite(place);
  try {
    await database.transact([...SCHEMA, ["INSERT INTO quorate_meta (name, value) VALUES ('version', $1) ON CONFLICT (name) DO NOTHING", VERSION]]);
    const [version] = await database.all("SELECT value FROM quorate_meta WHERE name = 'version'");
    if (version?.["value"] !== VERSION) throw storageFailed("the database", `it was written by another release (version ${version?.["value"]}, this one reads ${VERSION})`);
    return database;
  } catch (error) {
    await database.close();
    throw error instanceof QuorateError ? error : storageFailed("the database cannot be set up", error);
  }
}

/** Loads a driver that is installed beside this package. */
export async function driver<T>(name: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (cause) {
    throw new QuorateError("storage_unavailable", `the database needs the package ${name}: npm install ${name}`, { cause });
  }
}

/** Wallets in a database. */
export class DatabaseStorage implements WalletStorage {
  readonly #database: Database;
  readonly #open = new Set<string>();

  constructor(database: Database) {
    this.#database = database;
  }

  async open(name: string): Promise<StateStore> {
    if (this.#open.has(name)) throw inUse(name);
    this.#open.add(name);
    return {
      load: async () => {
        const rows = await this.#database.all("SELECT name, value FROM quorate_wallet WHERE wallet = $1", name);
        return new Map(rows.map((row) => [String(row["name"]), new Uint8Array(row["value"] as Uint8Array)]));
      },
      apply: (change) => {
        if (!this.#open.has(name)) throw new QuorateError("closed", "the wallet has been closed");
        return this.#database.transact(
          [...change].map(([key, value]): Step =>
            value === null
              ? ["DELETE FROM quorate_wallet WHERE wallet = $1 AND name = $2", name, key]
              : ["INSERT INTO quorate_wallet (wallet, name, value) VALUES ($1, $2, $3) ON CONFLICT (wallet, name) DO UPDATE SET value = excluded.value", name, key, value],
          ),
        );
      },
      close: async () => void this.#open.delete(name),
    };
  }

  async has(name: string): Promise<boolean> {
    return (await this.#database.all("SELECT 1 AS one FROM quorate_wallet WHERE wallet = $1 LIMIT 1", name)).length > 0;
  }

  async erase(name: string): Promise<void> {
    if (this.#open.has(name)) throw inUse(name);
    await this.#database.transact([["DELETE FROM quorate_wallet WHERE wallet = $1", name]]);
  }
}
