// What is kept with a wallet and is nothing to its engine: texts under names that begin alike.

/** A change: a text, or `undefined` to take it away. */
export type RowChange = ReadonlyMap<string, string | undefined>;
/** Makes a change durable. */
export type Save = (change: Map<string, Uint8Array | null>) => Promise<void>;

/** The rows of one kind. */
export class Rows {
  readonly #prefix: string;
  readonly #all = new Map<string, string>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  /** Takes its rows out of what was stored; the rest is others'. */
  take(state: Map<string, Uint8Array>): void {
    for (const [key, value] of [...state]) {
      if (!key.startsWith(this.#prefix)) continue;
      state.delete(key);
      this.#all.set(key.slice(this.#prefix.length), new TextDecoder().decode(value));
    }
  }

  get all(): ReadonlyMap<string, string> {
    return this.#all;
  }

  /** One step after the other: each sees what the one before left, and the last one stays. What it keeps is durable before it is here. */
  inTurn<T>(save: Save, step: (keep: (change: RowChange) => Promise<void>) => Promise<T>): Promise<T> {
    const done = this.#turn.then(() => step((change) => this.#keep(change, save)));
    this.#turn = done.catch(() => undefined);
    return done;
  }

  async #keep(change: RowChange, save: Save): Promise<void> {
    if (change.size === 0) return;
    await save(new Map([...change].map(([name, text]) => [this.#prefix + name, text === undefined ? null : new TextEncoder().encode(text)])));
    for (const [name, text] of change) {
      if (text === undefined) this.#all.delete(name);
      else this.#all.set(name, text);
    }
  }
}
