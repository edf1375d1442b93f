/**
 * Invoices of a till or shop: what is asked for, by when, what arrived, and what that makes of it. They are kept with the wallet, so that a sale survives its page;
 * a wallet that only watches will do.
 *
 * @example
 * ```ts no-run
 * import { Wallet } from "quorate";
 * import { Invoices } from "quorate/invoices";
 * async function sell(till: Wallet) {
 *   const invoices = await Invoices.open(till);
 *   const invoice = await invoices.create({ order: "4711", amount: 25_000n });
 *   console.log(invoice.uri);
 *   return invoices.settled("4711");
 * }
 * ```
 *
 * @packageDocumentation
 */
import { checkAmount, checkCount, checkOptions, checkText, optional, refuse } from "./checks.js";
import { QuorateError } from "./errors.js";
import { field } from "./history.js";
import { ENOUGH, satoshisFor, standing, type Fiat, type Invoice, type InvoiceState, type Kept } from "./invoice.js";
import { clean } from "./labels.js";
import { checkOrder } from "./orders.js";
import type { Coin, Minimum, WaitOptions } from "./types.js";
import type { OpenWallet } from "./wallet.js";

export type { Fiat, Invoice, InvoicePayment, InvoiceState, Refund } from "./invoice.js";

/** What an invoice asks for: an amount in satoshis, or a price in another currency. */
export interface InvoiceOptions {
  /** What the shop calls it, at most 200 characters. There is one invoice for each. */
  readonly order: string;
  /** In satoshis. Either this or `fiat`. */
  readonly amount?: bigint;
  /** A price, which {@link InvoicesOptions.rate} turns into satoshis now. */
  readonly fiat?: { readonly currency: string; readonly amount: string };
  /** For the payer, in the link. At most 255 characters. */
  readonly memo?: string;
  /** How long it can be paid. @defaultValue 900 */
  readonly seconds?: number;
  /** How much more or less is all right, in satoshis. @defaultValue 0n */
  readonly tolerance?: bigint;
  /** The least that counts as paid. @defaultValue `"enforced"` */
  readonly minimum?: Minimum;
}

/** Options of {@link Invoices.open}. */
export interface InvoicesOptions {
  /** Price of one bitcoin in a currency, as a decimal number, from a source that the shop trusts. Without it there are no prices in other currencies. */
  readonly rate?: (currency: string) => Promise<string> | string;
}

const SECONDS = 900;
/** Payments of one invoice whose time is kept; of more, which somebody sends for no good reason, it is not. */
const DATED_MAX = 500;
const PREFIX = "invoice/";
/** The longest wait of a timer. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** States that only a payment, a refund or time can end. */
const MOVING: ReadonlySet<InvoiceState> = new Set(["waiting", "partial"]);

/** All invoices of one wallet. Have one of it for each wallet. */
export class Invoices implements Disposable {
  readonly #wallet: OpenWallet;
  readonly #rate: InvoicesOptions["rate"];
  readonly #kept = new Map<string, Kept>();
  /** As they were told last. */
  readonly #last = new Map<string, Invoice>();
  readonly #byAddress = new Map<string, string>();
  readonly #listeners = new Set<(invoice: Invoice) => void>();
  readonly #stops: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #looking: Promise<void> | undefined;
  #again = false;
  /** One change after the other: each begins with what the one before left. */
  #turn: Promise<unknown> = Promise.resolve();
  #closed = false;

  private constructor(wallet: OpenWallet, rate: InvoicesOptions["rate"]) {
    this.#wallet = wallet;
    this.#rate = rate;
  }

  /** Goes on with the invoices that a wallet has. */
  static async open(wallet: OpenWallet, options: InvoicesOptions = {}): Promise<Invoices> {
    const { rate } = checkOptions("options", options, ["rate"]);
    const invoices = new Invoices(wallet, rate);
    for (const text of (await wallet.notes(PREFIX)).values()) {
      const kept = read(text);
      if (kept !== undefined) invoices.#remember(kept);
    }
    for (const type of ["received", "confirmed", "conflicted", "balance", "synced"] as const) {
      invoices.#stops.push(wallet.on(type, () => void invoices.#look()));
    }
    for (const order of invoices.#kept.keys()) await invoices.#update(order);
    invoices.#wake();
    return invoices;
  }

  /**
   * Makes an invoice with an address of its own. One that was made before for the same order is given as it stands, whatever is asked for: a page that is loaded twice
   * asks for one payment.
   *
   * @throws {@link QuorateError} `invalid_argument`, `storage_failed`.
   */
  async create(options: InvoiceOptions): Promise<Invoice> {
    const { order, amount, fiat, memo, seconds = SECONDS, tolerance = 0n, minimum = "enforced" } = checkOptions("options", options, [
      ...["order", "amount", "fiat", "memo", "seconds", "tolerance", "minimum"],
    ]);
    checkOrder(order);
    if (!Object.hasOwn(ENOUGH, minimum)) refuse("minimum", `has to be one of ${Object.keys(ENOUGH).join(", ")}`);
    checkCount("seconds", seconds);
    if (tolerance !== 0n) checkAmount("tolerance", tolerance);
    if ((amount === undefined) === (fiat === undefined)) refuse("amount", "either it or fiat is needed");
    const priced = fiat === undefined ? undefined : await this.#price(checkOptions("fiat", fiat, ["currency", "amount"]));
    const satoshis = checkAmount("amount", amount ?? satoshisFor(priced as Fiat));
    if (satoshis <= tolerance) refuse("tolerance", "has to be less than the amount");
    const text = optional(checkText, "memo", memo);
    const address = await this.#wallet.reserve({ order });
    const created = Date.now();
    const fresh = (): Kept => ({
      ...{ order, address, amount: String(satoshis), tolerance: String(tolerance), minimum, created, expires: created + seconds * 1_000 },
      ...(text !== undefined && { memo: clean(text) }),
      ...(priced !== undefined && { fiat: priced }),
      ...{ seen: {}, refunds: [] },
    });
    return this.#keep(order, (kept: Kept | undefined) => kept ?? fresh());
  }

  /** An invoice as it stands; `undefined` if there is none of this order. */
  async get(order: string): Promise<Invoice | undefined> {
    return this.#kept.has(checkText("order", order)) ? this.#update(order) : undefined;
  }

  /** All invoices, in the order in which they were made. */
  async list(): Promise<readonly Invoice[]> {
    await this.#look();
    return [...this.#last.values()].sort((one, other) => one.created.getTime() - other.created.getTime());
  }

  /** Takes back an invoice. What arrives for it later is shown all the same, as `late`. */
  async cancel(order: string): Promise<Invoice> {
    this.#of(order);
    return this.#keep(order, (kept) => (kept.cancelled === undefined ? { ...kept, cancelled: Date.now() } : kept));
  }

  /**
   * Pays back what can be, or an amount, to an address of the payer's choice, and waits until that is final. Asked for again with the same amount after a crash it is
   * the same payment.
   *
   * @throws {@link QuorateError} `invalid_argument`: there is nothing, or not so much; and as `Wallet.pay`.
   */
  async refund(order: string, options: { readonly to: string; readonly amount?: bigint; readonly feeRate?: number } & WaitOptions): Promise<Invoice> {
    const { to, amount, feeRate, signal } = checkOptions("options", options, ["to", "amount", "feeRate", "signal"]);
    const before = await this.#update(order);
    const back = optional(checkAmount, "amount", amount) ?? before.refundable;
    if (back === 0n) refuse("amount", "there is nothing to pay back");
    if (back > before.received - before.refunds.reduce((total, one) => total + one.amount, 0n)) refuse("amount", "so much was not received");
    const idempotencyKey = `refund/${order}/${before.refunds.length}`;
    const request = { to, amount: back, idempotencyKey, ...(feeRate !== undefined && { feeRate }) };
    const { txid } = await this.#wallet.pay(request, signal === undefined ? {} : { signal });
    return this.markRefunded(order, { txid, amount: back });
  }

  /** Notes a payment back that another wallet made: a till that only watches makes none. A txid counts once. */
  async markRefunded(order: string, options: { readonly txid: string; readonly amount: bigint }): Promise<Invoice> {
    const { txid, amount } = checkOptions("options", options, ["txid", "amount"]);
    if (!/^[0-9a-f]{64}$/.test(checkText("txid", txid))) refuse("txid", "has to be 64 hex digits");
    checkAmount("amount", amount);
    this.#of(order);
    const noted = (kept: Kept): boolean => kept.refunds.some((refund) => refund.txid === txid);
    return this.#keep(order, (kept) => (noted(kept) ? kept : { ...kept, refunds: [...kept.refunds, { txid, amount: String(amount) }] }));
  }

  /** Waits until an invoice is neither `waiting` nor `partial`; one that is partial when its time is over is given then. */
  async settled(order: string, { signal }: WaitOptions = {}): Promise<Invoice> {
    const over = ({ state, expires, cancelled }: Invoice): boolean => !MOVING.has(state) || cancelled !== undefined || Date.now() > expires.getTime();
    return new Promise<Invoice>((resolve, reject) => {
      signal?.throwIfAborted();
      const take = (invoice: Invoice): void => {
        if (invoice.order !== order || !over(invoice)) return;
        end();
        resolve(invoice);
      };
      const fail = (): void => {
        end();
        reject(signal?.reason ?? new QuorateError("closed", "the wallet has been closed"));
      };
      const end = (): void => {
        stop();
        closed();
        signal?.removeEventListener("abort", fail);
      };
      const stop = this.on(take);
      const closed = this.#wallet.on("closed", fail);
      signal?.addEventListener("abort", fail, { once: true });
      Promise.resolve()
        .then(() => this.#of(order) && this.#update(order))
        .then(take)
        .catch((error: unknown) => {
          end();
          reject(error);
        });
    });
  }

  /** Calls a listener whenever an invoice stands otherwise. Gives a function that ends it. */
  on(listener: (invoice: Invoice) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Listens to the wallet no more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#stops.splice(0).forEach((stop) => stop());
    this.#listeners.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #price({ currency, amount }: { readonly currency: string; readonly amount: string }): Promise<Fiat> {
    checkText("fiat.currency", currency);
    checkText("fiat.amount", amount);
    if (this.#rate === undefined) refuse("fiat", "a price needs the option `rate` of Invoices.open");
    return { currency, amount, rate: checkText("rate", await this.#rate(currency)) };
  }

  #of(order: string): Kept {
    return this.#kept.get(checkText("order", order)) ?? refuse("order", "there is no invoice of this order");
  }

  #remember(kept: Kept): void {
    this.#kept.set(kept.order, kept);
    this.#byAddress.set(kept.address, kept.order);
  }

  #inTurn<T>(step: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(step);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** Changes an invoice, or makes one; tells how it stands once that is durable. */
  #keep(order: string, change: (kept: Kept) => Kept): Promise<Invoice> {
    return this.#inTurn(async () => {
      const before = this.#kept.get(order);
      const kept = change(before as Kept);
      if (kept !== before) await this.#save(kept);
      const invoice = await this.#stand(order);
      this.#wake();
      return invoice;
    });
  }

  async #save(kept: Kept): Promise<void> {
    await this.#wallet.setNote(PREFIX + kept.order, JSON.stringify(kept));
    this.#remember(kept);
  }

  /** Looks at what may have changed: invoices that wait, and those at whose addresses something new has arrived. */
  #look(): Promise<void> {
    if (this.#looking !== undefined) {
      this.#again = true;
      return this.#looking;
    }
    this.#looking = this.#pass()
      // The wallet has ended; whoever asks it hears why.
      .catch(() => undefined)
      .finally(() => {
        this.#looking = undefined;
        if (this.#again && !this.#closed) {
          this.#again = false;
          void this.#look();
        }
      });
    return this.#looking;
  }

  async #pass(): Promise<void> {
    const moving = [...this.#last.values()].filter(({ state, payments }) => MOVING.has(state) || payments.some(({ good, confirmed }) => !good || !confirmed));
    const orders = new Set(moving.map(({ order }) => order));
    for (const { address, outpoint } of await this.#wallet.coins()) {
      const order = this.#byAddress.get(address);
      if (order !== undefined && this.#kept.get(order)?.seen[outpoint] === undefined) orders.add(order);
    }
    for (const order of orders) await this.#update(order);
    this.#wake();
  }

  /** How an invoice stands now; tells it if that is news. What is new at its address is dated first. */
  #update(order: string): Promise<Invoice> {
    return this.#inTurn(() => this.#stand(order));
  }

  async #stand(order: string): Promise<Invoice> {
    const coins = await this.#wallet.coinsAt(this.#of(order).address);
    const now = Date.now();
    await this.#date(order, coins, now);
    const invoice = standing(this.#of(order), coins, now);
    const last = this.#last.get(order);
    this.#last.set(order, invoice);
    if (last === undefined || fingerprint(last) !== fingerprint(invoice)) for (const listener of [...this.#listeners]) queueMicrotask(() => listener(invoice));
    return invoice;
  }

  async #date(order: string, coins: readonly Coin[], now: number): Promise<void> {
    const kept = this.#of(order);
    const room = DATED_MAX - Object.keys(kept.seen).length;
    const fresh = coins.filter((coin) => kept.seen[coin.outpoint] === undefined).slice(0, Math.max(0, room));
    if (fresh.length === 0) return;
    // A wallet that was away meanwhile hears late of what came in time; its block knows better.
    const history = fresh.some(({ block }) => block !== undefined) ? await this.#wallet.history({ direction: "in" }) : [];
    const times = new Map(history.map(({ txid, blockTime }) => [txid, blockTime]));
    const at = ({ outpoint }: Coin): number => Math.min(now, (times.get(outpoint.slice(0, 64)) ?? Number.POSITIVE_INFINITY) * 1_000);
    await this.#save({ ...kept, seen: { ...kept.seen, ...Object.fromEntries(fresh.map((coin) => [coin.outpoint, at(coin)])) } });
  }

  /** Looks again when the next invoice expires. */
  #wake(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const now = Date.now();
    const ends = [...this.#last.values()].filter(({ state, expires }) => MOVING.has(state) && expires.getTime() >= now).map(({ expires }) => expires.getTime());
    if (ends.length === 0) return;
    const first = ends.reduce((one, other) => Math.min(one, other));
    this.#timer = setTimeout(() => void this.#expire(), Math.min(first - now + 1, TIMER_MAX_MS));
    // A process is not kept alive by it.
    (this.#timer as { unref?: () => void }).unref?.();
  }

  async #expire(): Promise<void> {
    const moving = [...this.#last.values()].filter(({ state }) => MOVING.has(state));
    for (const { order } of moving) await this.#update(order).catch(() => undefined);
    this.#wake();
  }
}

/** What was kept; `undefined` if it is something else's. */
function read(text: string): Kept | undefined {
  try {
    const kept = JSON.parse(text) as Kept;
    standing(kept, [], 0);
    return kept;
  } catch {
    return undefined;
  }
}

/** What listeners hear changes of. */
function fingerprint({ state, received, pending, refunds, expires, payments }: Invoice): string {
  const over = Date.now() > expires.getTime();
  return [state, received, pending, refunds.length, over, ...payments.map(({ outpoint, confirmed }) => `${outpoint}${confirmed}`)].join(" ");
}

const COLUMNS = ["order", "state", "created", "amount_sat", "received_sat", "refunded_sat", "currency", "price", "rate", "minimum", "address", "txids", "memo"] as const;

/**
 * Invoices as a file: CSV (RFC 4180) for a spreadsheet, or JSON. Amounts are in satoshis, times in UTC.
 *
 * @throws {@link QuorateError} `invalid_argument`: there is no such format.
 */
export function exportInvoices(invoices: readonly Invoice[], format: "csv" | "json"): string {
  const rows = invoices.map((invoice): Record<(typeof COLUMNS)[number], string | number | null> => ({
    order: invoice.order,
    state: invoice.state,
    created: invoice.created.toISOString(),
    amount_sat: Number(invoice.amount),
    received_sat: Number(invoice.received),
    refunded_sat: Number(invoice.refunds.reduce((total, { amount }) => total + amount, 0n)),
    currency: invoice.fiat?.currency ?? null,
    price: invoice.fiat?.amount ?? null,
    rate: invoice.fiat?.rate ?? null,
    minimum: invoice.minimum,
    address: invoice.address,
    txids: [...new Set(invoice.payments.map(({ outpoint }) => outpoint.slice(0, 64)))].join(" "),
    memo: invoice.memo?.replace(/[;\t]/g, ",") ?? null,
  }));
  if (format === "json") return `${JSON.stringify(rows, null, 2)}\n`;
  if (format !== "csv") refuse("format", 'has to be "csv" or "json"');
  return [COLUMNS.join(","), ...rows.map((row) => COLUMNS.map((column) => field(row[column])).join(","))].map((line) => `${line}\r\n`).join("");
}
