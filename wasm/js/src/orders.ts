// Which address an order was given, kept with the wallet and encrypted like it.
import { checkText, refuse } from "./checks.js";
import { Rows, type Save } from "./rows.js";

/** Orders that a wallet keeps; of more than these the oldest go. */
const ORDERS_MAX = 100_000;
/** Characters of an order. */
const ORDER_MAX = 200;

interface Kept {
  readonly address: string;
  /** Counts up. */
  readonly at: number;
}

export function checkOrder(order: string): string {
  if (checkText("order", order).length > ORDER_MAX) refuse("order", `is longer than ${ORDER_MAX} characters`);
  if (order === "") refuse("order", "is empty");
  // Databases and logs do not hold them, or take two for the same.
  if (/[\p{Cc}\p{Cs}]/u.test(order)) refuse("order", "has control characters, or halves of characters");
  return order;
}

/** The orders of one wallet. */
export class Orders {
  readonly #rows = new Rows("order/");
  /** By order, in the order in which they came. */
  readonly #all = new Map<string, Kept>();
  #last = 0;

  /** Takes the orders out of what was stored. */
  static take(state: Map<string, Uint8Array>): Orders {
    const orders = new Orders();
    orders.#rows.take(state);
    const found = [...orders.#rows.all].flatMap(([order, text]): [string, Kept][] => {
      const kept = read(text);
      return kept === undefined ? [] : [[order, kept]];
    });
    for (const [order, kept] of found.sort(([, one], [, other]) => one.at - other.at)) {
      orders.#all.set(order, kept);
      orders.#last = kept.at;
    }
    return orders;
  }

  /** The address of an order: the one that it was given, or the `next` one, once `save` has made durable whose it is. Who asks twice at once gets the same. */
  reserve(order: string, next: () => Promise<string>, save: Save): Promise<string> {
    return this.#rows.inTurn(save, async (keep) => {
      const known = this.#all.get(order);
      if (known !== undefined) return known.address;
      const [oldest] = this.#all.keys();
      const goes = this.#all.size >= ORDERS_MAX ? oldest : undefined;
      const kept: Kept = { address: await next(), at: this.#last + 1 };
      const change = new Map<string, string | undefined>([[order, JSON.stringify(kept)]]);
      if (goes !== undefined) change.set(goes, undefined);
      await keep(change);
      if (goes !== undefined) this.#all.delete(goes);
      this.#all.set(order, kept);
      this.#last = kept.at;
      return kept.address;
    });
  }
}

/** What cannot be read was given to nobody who could ask for it again. */
function read(text: string): Kept | undefined {
  try {
    const { address, at } = JSON.parse(text) as Kept;
    return typeof address === "string" && Number.isSafeInteger(at) ? { address, at } : undefined;
  } catch {
    return undefined;
  }
}
