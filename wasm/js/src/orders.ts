// Which address an order was given, kept with the wallet and encrypted like it.
import { checkText, refuse } from "./checks.js";

/** Orders that a wallet keeps; of more than these the oldest go. */
const ORDERS_MAX = 100_000;
/** Characters of an order. */
const ORDER_MAX = 200;

const PREFIX = "order/";
type Saved = Map<string, Uint8Array | null>;

interface Kept {
  readonly address: string;
  /** Counts up. */
  readonly at: number;
}

export function checkOrder(order: string): string {
  if (checkText("order", order).length > ORDER_MAX) refuse("order", `is longer than ${ORDER_MAX} characters`);
  if (order === "") refuse("order", "is empty");
  return order;
}

/** The orders of one wallet. */
export class Orders {
  readonly #all = new Map<string, Kept>();
  #last = 0;
  #turn: Promise<unknown> = Promise.resolve();

  /** Takes the orders out of what was stored; the rest is the engine's. */
  static take(state: Map<string, Uint8Array>): Orders {
    const orders = new Orders();
    const found: [string, Kept][] = [];
    for (const [key, value] of [...state]) {
      if (!key.startsWith(PREFIX)) continue;
      state.delete(key);
      try {
        const { address, at } = JSON.parse(new TextDecoder().decode(value)) as Kept;
        if (typeof address === "string" && Number.isSafeInteger(at)) found.push([key, { address, at }]);
      } catch {
        // What cannot be read was given to nobody who could ask for it again.
      }
    }
    // In the order in which they came.
    for (const [key, kept] of found.sort(([, one], [, other]) => one.at - other.at)) {
      orders.#all.set(key, kept);
      orders.#last = kept.at;
    }
    return orders;
  }

  /**
   * The address of an order: the one that it was given, or the `next` one, once `save` has made durable whose it is. One after the other: who asks twice at once
   * gets the same.
   */
  reserve(order: string, next: () => Promise<string>, save: (change: Saved) => Promise<void>): Promise<string> {
    const reserved = this.#turn.then(() => this.#reserve(order, next, save));
    this.#turn = reserved.catch(() => undefined);
    return reserved;
  }

  async #reserve(order: string, next: () => Promise<string>, save: (change: Saved) => Promise<void>): Promise<string> {
    const key = PREFIX + order;
    const known = this.#all.get(key);
    if (known !== undefined) return known.address;
    const [[oldest] = []] = this.#all;
    const goes = this.#all.size >= ORDERS_MAX ? oldest : undefined;
    const kept: Kept = { address: await next(), at: this.#last + 1 };
    const change: Saved = new Map([[key, new TextEncoder().encode(JSON.stringify(kept))]]);
    if (goes !== undefined) change.set(goes, null);
    await save(change);
    if (goes !== undefined) this.#all.delete(goes);
    this.#all.set(key, kept);
    this.#last = kept.at;
    return kept.address;
  }
}
