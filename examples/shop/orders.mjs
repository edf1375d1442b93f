// The shop's own books: what was ordered, what it costs and to which address it is to be paid. They are the shop's, and not the invoice server's.
import sqlite from "node-sqlite3-wasm";

const SCHEMA = `CREATE TABLE IF NOT EXISTS orders
  (id TEXT PRIMARY KEY, item TEXT NOT NULL, amount TEXT NOT NULL, address TEXT NOT NULL, uri TEXT NOT NULL, expires TEXT NOT NULL, state TEXT NOT NULL, sequence INTEGER NOT NULL, push TEXT)`;

export class Orders {
  #database;

  constructor(path) {
    this.#database = new sqlite.Database(path);
    this.#database.exec(SCHEMA);
  }

  add({ id, item, amount, address, uri, expires }) {
    this.#database.run("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, 'waiting', 0, NULL)", [id, item, String(amount), address, uri, expires]);
  }

  get(id) {
    const row = this.#database.get("SELECT * FROM orders WHERE id = ?", id);
    return row ?? undefined;
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
