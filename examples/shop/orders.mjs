// The shop's own books: what was ordered, what it costs and to which address it is to be paid. They are the shop's, and not the invoice server's.
import { closeSync, openSync, rmSync } from "node:fs";
import sqlite from "node-sqlite3-wasm";

const SCHEMA = `CREATE TABLE IF NOT EXISTS orders
  (id TEXT PRIMARY KEY, item TEXT NOT NULL, amount TEXT NOT NULL, address TEXT NOT NULL, uri TEXT NOT NULL, expires TEXT NOT NULL, state TEXT NOT NULL, sequence INTEGER NOT NULL, push TEXT)`;

export class Orders {
  #database;

  /** There is one shop for each file: a lock that is there was left by one that was killed. */
  constructor(path) {
    closeSync(openSync(path, "a", 0o600));
    rmSync(`${path}.lock`, { recursive: true, force: true });
    this.#database = new sqlite.Database(path);
    this.#database.exec(`PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = PERSIST; PRAGMA synchronous = FULL; ${SCHEMA}`);
  }

  add({ id, item, amount, address, uri, expires }) {
    this.#database.run("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, 'waiting', 0, NULL)", [id, item, String(amount), address, uri, expires]);
  }

  get(id) {
    const row = this.#database.get("SELECT * FROM orders WHERE id = ?", id);
    return row ?? undefined;
  }

  /** How many wait to be paid, of those whose time is not over. */
  waiting(now) {
    return Number(this.#database.get("SELECT COUNT(*) AS many FROM orders WHERE state = 'waiting' AND expires > ?", now.toISOString()).many);
  }

  /** Takes in how an order stands. `false` if something later is known of it already. */
  stand(id, state, sequence) {
    return this.#database.run("UPDATE orders SET state = ?, sequence = ? WHERE id = ? AND sequence < ?", [state, sequence, id, sequence]).changes > 0;
  }

  /** Where the customer's browser can be reached when its page is closed. */
  setPush(id, subscription) {
    this.#database.run("UPDATE orders SET push = ? WHERE id = ?", [JSON.stringify(subscription), id]);
  }

  close() {
    this.#database.close();
  }
}
