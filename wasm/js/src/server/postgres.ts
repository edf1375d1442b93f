// A database of a PostgreSQL server, on one connection, which holds a lock as long as it lives: two invoice servers on one database would give out the same addresses.
import { QuorateError } from "../errors.js";
import { inUse, storageFailed } from "../storage.js";
import { driver, type Database, type Row, type Step } from "./database.js";

/** Names the lock among those of other programs: "quorate" in ASCII. */
const LOCK = 0x71756f72617465n;
/** For a statement, and for a connection. */
const PATIENCE_MS = 15_000;
const GOODBYE_MS = 2_000;

/** Opens the database of a URL. */
export async function openPostgres(url: string): Promise<Database> {
  const { default: pg } = await driver("pg", () => import("pg"));
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: PATIENCE_MS, query_timeout: PATIENCE_MS, keepAlive: true });
  const database = new Postgres(client);
  try {
    await client.connect();
    const { rows } = await client.query("SELECT pg_try_advisory_lock($1) AS locked", [String(LOCK)]);
    if (rows[0]?.locked !== true) throw inUse("of this database");
    return database;
  } catch (error) {
    await database.close();
    // What the URL has of a password is not repeated.
    throw error instanceof QuorateError ? error : storageFailed("the PostgreSQL server cannot be used", error);
  }
}

class Postgres implements Database {
  readonly #client: import("pg").Client;
  /** One after the other: they share a connection. */
  #turn: Promise<unknown> = Promise.resolve();
  /** With the connection the lock is gone, and nothing may be written any more. */
  #failed: QuorateError | undefined;
  #lost: (error: unknown) => void = () => undefined;

  constructor(client: import("pg").Client) {
    this.#client = client;
    client.on("error", (error) => this.#lose(storageFailed("the connection to PostgreSQL was lost", error)));
    client.on("end", () => this.#lose(storageFailed("PostgreSQL", "the connection has ended")));
  }

  onLost(listener: (error: unknown) => void): void {
    this.#lost = listener;
  }

  #lose(error: QuorateError): void {
    if (this.#failed !== undefined) return;
    this.#failed = error;
    this.#lost(error);
  }

  all(...[sql, ...values]: Step): Promise<Row[]> {
    return this.#inTurn(async () => (await this.#client.query<Row>(sql, values)).rows);
  }

  transact(steps: readonly Step[]): Promise<void> {
    return this.#inTurn(async () => {
      await this.#client.query("BEGIN");
      try {
        for (const [sql, ...values] of steps) await this.#client.query(sql, values);
        await this.#client.query("COMMIT");
      } catch (error) {
        // Whether a COMMIT without an answer was made nobody knows.
        await this.#client.query("ROLLBACK").catch(() => undefined);
        this.#lose(storageFailed("a change was not made", error));
        throw error;
      }
    });
  }

  #inTurn<T>(step: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(async () => {
      if (this.#failed !== undefined) throw this.#failed;
      try {
        return await step();
      } catch (error) {
        throw this.#failed ?? storageFailed("the database", error);
      }
    });
    this.#turn = done.catch(() => undefined);
    return done;
  }

  async close(): Promise<void> {
    this.#failed ??= new QuorateError("closed", "the database has been closed");
    // A server that is gone without a word does not say goodbye, either.
    const late = setTimeout(() => (this.#client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy(), GOODBYE_MS);
    await this.#client.end().catch(() => undefined);
    clearTimeout(late);
  }
}
