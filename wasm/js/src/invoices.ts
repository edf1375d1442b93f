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
import { checkAmount, checkCount, checkFeeRate, checkOptions, checkText, optional, refuse } from "./checks.js";
import { QuorateError, type Code } from "./errors.js";
import {
  DATED_MAX,
  ENOUGH,
  date,
  fingerprint,
  notePaid,
  readKept,
  satoshisFor,
  standing,
  txidOf,
  undated,
  type Fiat,
  type Invoice,
  type InvoiceState,
  type Kept,
  type KeptRefund,
} from "./invoice.js";
import { clean } from "./labels.js";
import { checkOrder } from "./orders.js";
import type { Coin, Minimum, WaitOptions } from "./types.js";
import type { OpenWallet } from "./wallet.js";

export { exportInvoices } from "./invoice-books.js";
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
/** Characters of a refund's id. */
const ID_MAX = 30;
const PREFIX = "invoice/";
/** The longest wait of a timer. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** States that only a payment, a refund or time can end. */
const MOVING: ReadonlySet<InvoiceState> = new Set(["waiting", "partial"]);
/** Blocks after which nothing of a payment is expected to change. */
const DEEP = 100;
/** Errors after which a payment is known to come to nothing. After any other it may go on, and is asked for again as it was. */
const FAILED: ReadonlySet<Code> = new Set<Code>([
  ...(["payment_failed", "payment_rejected", "invalid_address", "unknown_address_type", "wrong_network", "dust", "watch_only"] as const),
  ...(["insufficient_funds", "coins_busy", "coins_short_lived", "lift_first", "unconfirmed_chain", "not_certified"] as const),
  ...(["fee_rate_out_of_range", "fee_unreasonable", "amount_too_large", "invalid_argument"] as const),
]);
/** After the first sync a block of a payment may be on its way still. */
const SETTLING_MS = 30_000;

/** Whoever waits for an invoice. */
interface Waiter {
  readonly take: (invoice: Invoice) => void;
  readonly fail: (error: unknown) => void;
}

/** A refund as it is asked for. */
interface AskedRefund {
  readonly id: string;
  readonly to: string;
  readonly amount: bigint | undefined;
  readonly feeRate: number | undefined;
}

const opened = new WeakMap<OpenWallet, Promise<Invoices>>();

/** All invoices of one wallet. */
export class Invoices implements Disposable {
  readonly #wallet: OpenWallet;
  #rate: InvoicesOptions["rate"];
  readonly #kept = new Map<string, Kept>();
  /** As they stood last, and what of it was told. */
  readonly #last = new Map<string, Invoice>();
  readonly #told = new Map<string, string>();
  readonly #byAddress = new Map<string, string>();
  readonly #listeners = new Set<(invoice: Invoice) => void>();
  readonly #waiters = new Map<Waiter, string>();
  /** Refunds under way. */
  readonly #refunding = new Map<string, Promise<void>>();
  readonly #stops: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #looking: Promise<void> | undefined;
  #again = false;
  /** All of them are to be looked at, or those of which something is in no block. */
  #all = true;
  #unmined = false;
  /** What has arrived since the last pass, by txid. */
  #arrived = new Set<string>();
  /** Those that could not be looked at. */
  #missed = new Set<string>();
  /** What was at their addresses in the last pass and unspent. */
  #held = new Map<string, string>();
  #height = 0;
  /** When blocks of payments were made, as far as this pass has asked. */
  #times: ReadonlyMap<string, number | undefined> = new Map();
  /** Whether the wallet has heard of all that there was: before, what is not there may have been paid all the same. */
  #synced = false;
  #syncedAt = 0;
  #settling: ReturnType<typeof setTimeout> | undefined;
  /** One change after the other: each begins with what the one before left. */
  #turn: Promise<unknown> = Promise.resolve();
  #closed = false;

  private constructor(wallet: OpenWallet) {
    this.#wallet = wallet;
  }

  /** Goes on with the invoices that a wallet has. There is one object of them for each open wallet. */
  static async open(wallet: OpenWallet, options: InvoicesOptions = {}): Promise<Invoices> {
    const { rate } = checkOptions("options", options, ["rate"]);
    let opening = opened.get(wallet);
    if (opening === undefined) {
      const invoices = new Invoices(wallet);
      opening = invoices.#start().then(() => invoices);
      opened.set(wallet, opening);
      opening.catch(() => invoices.close());
    }
    const invoices = await opening;
    if (rate !== undefined) invoices.#rate = rate;
    return invoices;
  }

  async #start(): Promise<void> {
    const wallet = this.#wallet;
    for (const text of (await wallet.notes(PREFIX)).values()) {
      const kept = readKept(text);
      if (kept !== undefined) this.#remember(kept);
    }
    for (const type of ["balance", "tip"] as const) this.#stops.push(wallet.on(type, () => void this.#look()));
    this.#stops.push(
      wallet.on("received", ({ txid }) => {
        this.#arrived.add(txid);
        void this.#look();
      }),
    );
    this.#stops.push(
      wallet.on("confirmed", () => {
        this.#unmined = true;
        void this.#look();
      }),
    );
    for (const type of ["conflicted", "lagged"] as const) this.#stops.push(wallet.on(type, () => void this.#look(true)));
    this.#stops.push(wallet.on("disconnected", () => void (this.#synced = false)));
    this.#stops.push(wallet.on("synced", () => this.#hasSynced()));
    this.#stops.push(wallet.on("closed", () => this.close()));
    // It may have been before this listened; who has ended says so by its event.
    wallet.synced().then(
      () => this.#hasSynced(),
      () => undefined,
    );
    await this.#look(true);
  }

  #hasSynced(): void {
    if (this.#closed) return;
    // It is said again after each question that was answered.
    const first = !this.#synced;
    this.#synced = true;
    if (first) {
      this.#syncedAt = Date.now();
      clearTimeout(this.#settling);
      this.#settling = setTimeout(() => void this.#look(true), SETTLING_MS + 1);
      (this.#settling as { unref?: () => void }).unref?.();
    }
    void this.#look(first);
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
    // An order that was forgotten has its address of before, with what was paid to it.
    const before = this.#kept.has(order) ? [] : [...new Set((await this.#wallet.coinsAt(address)).map(txidOf))];
    const created = Date.now();
    const fresh = (): Kept => ({
      ...{ order, address, amount: String(satoshis), tolerance: String(tolerance), minimum, created, expires: created + seconds * 1_000 },
      ...(text !== undefined && { memo: clean(text) }),
      ...(priced !== undefined && { fiat: priced }),
      ...{ seen: {}, refunds: [] },
      ...(before.length > 0 && { before: before.slice(0, DATED_MAX) }),
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

  /** Forgets an invoice, so that there is room for others: a wallet keeps 100,000 notes. What arrives for it later is told of by nobody. */
  async forget(order: string): Promise<void> {
    this.#of(order);
    await this.#inTurn(async () => {
      const { address, refunds } = this.#of(order);
      if (refunds.some(({ txid }) => txid === undefined)) refuse("order", "a refund of it is under way");
      await this.#wallet.setNote(PREFIX + order, undefined);
      for (const [{ fail }, of] of [...this.#waiters]) if (of === order) fail(new QuorateError("invalid_argument", "order: the invoice was forgotten"));
      for (const map of [this.#kept, this.#last, this.#told]) map.delete(order);
      this.#byAddress.delete(address);
    });
  }

  /**
   * Pays back to an address of the payer's choice, and waits until that is final. It is kept before it is paid: whenever the same `id` is asked for again, after whatever
   * crash, it is the same refund, and what was paid is not paid again. One that failed for good can be asked for again, with another address too.
   *
   * @param options - `amount`: all that can be, if absent. `id`: what the shop calls this refund, for an invoice that is paid back in several parts.
   * @throws {@link QuorateError} `invalid_argument`: there is nothing or not so much to pay back, or the refund of this `id` is another one; and as `Wallet.pay`.
   */
  async refund(
    order: string,
    options: { readonly to: string; readonly amount?: bigint; readonly id?: string; readonly feeRate?: number } & WaitOptions,
  ): Promise<Invoice> {
    const { to, amount, id = "1", feeRate, signal } = checkOptions("options", options, ["to", "amount", "id", "feeRate", "signal"]);
    checkText("to", to);
    if (checkOrder(id).length > ID_MAX) refuse("id", `is longer than ${ID_MAX} characters`);
    optional(checkAmount, "amount", amount);
    optional(checkFeeRate, "feeRate", feeRate);
    this.#of(order);
    // One at a time, or one that fails would take away what the other has kept.
    const name = JSON.stringify([order, id]);
    const before = this.#refunding.get(name) ?? Promise.resolve();
    const made = before.then(() => this.#refund(order, { id, to, amount, feeRate }, signal));
    const over = made.then(
      () => undefined,
      () => undefined,
    );
    this.#refunding.set(name, over);
    try {
      return await made;
    } finally {
      if (this.#refunding.get(name) === over) this.#refunding.delete(name);
    }
  }

  async #refund(order: string, asked: AskedRefund, signal: AbortSignal | undefined): Promise<Invoice> {
    const { id } = asked;
    const refund = await this.#begin(order, asked);
    if (refund.txid !== undefined) return this.#update(order);
    const { created, failed } = this.#of(order);
    const attempt = failed?.[id] ?? 0;
    const { to = asked.to, feeRate } = refund;
    const request = { to, amount: BigInt(refund.amount), idempotencyKey: `refund/${order}/${id}/${created}/${attempt}`, ...(feeRate !== undefined && { feeRate }) };
    let txid: string;
    try {
      ({ txid } = await this.#wallet.pay(request, signal === undefined ? {} : { signal }));
    } catch (error) {
      if (FAILED.has(QuorateError.from(error).code)) {
        await this.#keep(order, (kept) => ({ ...kept, refunds: kept.refunds.filter((one) => one.id !== id), failed: { ...kept.failed, [id]: attempt + 1 } }));
      }
      throw error;
    }
    return this.#keep(order, (kept) => ({ ...kept, refunds: [...kept.refunds.filter((one) => one.id !== id), { ...refund, txid }] }));
  }

  /** Keeps a refund before it is made, or finds the one that was. */
  async #begin(order: string, { id, to, amount, feeRate }: AskedRefund): Promise<KeptRefund> {
    let found: KeptRefund | undefined;
    const { refundable, received, refunds } = await this.#update(order);
    await this.#keep(order, (kept) => {
      found = kept.refunds.find((one) => one.id === id);
      if (found !== undefined) {
        const same = (found.to === undefined || found.to === to) && (amount === undefined || found.amount === String(amount)) && (feeRate === undefined || found.feeRate === feeRate);
        if (!same) refuse("id", `the refund ${JSON.stringify(id)} was begun with another amount, address or fee rate`);
        return kept;
      }
      const back = amount ?? refundable;
      if (back === 0n) refuse("amount", "there is nothing to pay back");
      if (refunds.length !== kept.refunds.length || back > received - refunds.reduce((total, one) => total + one.amount, 0n)) refuse("amount", "so much is not there to pay back");
      found = { id, amount: String(back), to, ...(feeRate !== undefined && { feeRate }) };
      return { ...kept, refunds: [...kept.refunds, found] };
    });
    return found as unknown as KeptRefund;
  }

  /** Notes a payment back that another wallet made: a till that only watches makes none. A txid counts once. */
  async markRefunded(order: string, options: { readonly txid: string; readonly amount: bigint }): Promise<Invoice> {
    const { txid, amount } = checkOptions("options", options, ["txid", "amount"]);
    if (!/^[0-9a-f]{64}$/.test(checkText("txid", txid))) refuse("txid", "has to be 64 hex digits");
    checkAmount("amount", amount);
    this.#of(order);
    const noted = (kept: Kept): boolean => kept.refunds.some((refund) => refund.txid === txid);
    return this.#keep(order, (kept) => (noted(kept) ? kept : { ...kept, refunds: [...kept.refunds, { id: txid, txid, amount: String(amount) }] }));
  }

  /**
   * Waits until an invoice is neither `waiting` nor `partial`; one that is `partial` when its time is over or it was cancelled is given then. That nothing or too little
   * came is said once the wallet is synced, because before it may not have heard of it.
   */
  async settled(order: string, { signal }: WaitOptions = {}): Promise<Invoice> {
    signal?.throwIfAborted();
    this.#of(order);
    return new Promise<Invoice>((resolve, reject) => {
      const abort = (): void => waiter.fail(signal?.reason);
      const end = (): void => {
        this.#waiters.delete(waiter);
        signal?.removeEventListener("abort", abort);
      };
      const waiter: Waiter = {
        take: (invoice) => {
          if (invoice.order !== order || !this.#isOver(invoice)) return;
          end();
          resolve(invoice);
        },
        fail: (error) => {
          end();
          reject(error);
        },
      };
      this.#waiters.set(waiter, order);
      signal?.addEventListener("abort", abort, { once: true });
      if (this.#closed) waiter.fail(ended());
      else this.#update(order).then(waiter.take, waiter.fail);
    });
  }

  #isOver({ state, expires, cancelled, payments }: Invoice): boolean {
    if (state === "paid" || state === "overpaid" || state === "refunded") return true;
    if (!this.#synced) return false;
    // Its block may say that it came in time.
    if (state === "late") return payments.every(({ height }) => height !== undefined) || Date.now() > this.#syncedAt + SETTLING_MS;
    return !MOVING.has(state) || cancelled !== undefined || Date.now() > expires.getTime();
  }

  /** Calls a listener whenever an invoice stands otherwise. Gives a function that ends it. */
  on(listener: (invoice: Invoice) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Listens to the wallet no more. Who waits hears `closed`. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#settling);
    this.#stops.splice(0).forEach((stop) => stop());
    this.#listeners.clear();
    for (const { fail } of [...this.#waiters.keys()]) fail(ended());
    opened.delete(this.#wallet);
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
    const done = this.#turn.then(() => {
      if (this.#closed) throw ended();
      return step();
    });
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

  /** Looks at what may have changed: see {@link #changed}; or at all. */
  #look(all = false): Promise<void> {
    this.#all ||= all;
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
    this.#times = new Map();
    const changed = await this.#changed();
    const orders = this.#all ? [...this.#kept.keys()] : changed;
    this.#all = false;
    // One that cannot be looked at keeps nobody from the others.
    for (const order of orders) {
      if (!this.#kept.has(order)) continue;
      await this.#update(order).catch((error: unknown) => {
        this.#missed.add(order);
        for (const [{ fail }, of] of [...this.#waiters]) if (of === order) fail(error);
      });
    }
    this.#wake();
  }

  /**
   * Invoices at whose addresses something has arrived, has become more certain or was spent since the last pass; whose time is over since; and of whose payments one is
   * not as certain as it has to be, or may have come into a block or left one.
   */
  async #changed(): Promise<ReadonlySet<string>> {
    const { height } = await this.#wallet.tip();
    const grown = height !== this.#height;
    const unmined = this.#unmined || grown;
    [this.#height, this.#unmined] = [height, false];
    const held = new Map<string, string>();
    const arrived = this.#arrived;
    this.#arrived = new Set();
    for (const { address, outpoint, finality, block, conflicted } of await this.#wallet.coins()) {
      arrived.delete(outpoint.slice(0, 64));
      if (this.#byAddress.has(address)) held.set(address, `${held.get(address) ?? ""} ${outpoint}${finality}${block?.height}${conflicted !== undefined}`);
    }
    const now = Date.now();
    const mayMove = (invoice: Invoice): boolean => {
      const { order, state, expires, payments } = invoice;
      return (
        (MOVING.has(state) && expires.getTime() < now && this.#told.get(order) !== fingerprint(invoice, now)) ||
        payments.some((payment) => !payment.good || (payment.height === undefined ? unmined : grown && payment.height > height - DEEP))
      );
    };
    const changed = new Set(this.#missed);
    this.#missed = new Set();
    for (const [address, order] of this.#byAddress) {
      const last = this.#last.get(order);
      // What arrived and is spent already is at no address that can be told here.
      if (arrived.size > 0 || held.get(address) !== this.#held.get(address) || last === undefined || mayMove(last)) changed.add(order);
    }
    this.#held = held;
    return changed;
  }

  /** How an invoice stands now; tells it if that is news. What is new at its address is dated first. */
  #update(order: string): Promise<Invoice> {
    return this.#inTurn(() => this.#stand(order));
  }

  async #stand(order: string): Promise<Invoice> {
    const others = new Set(this.#of(order).before);
    const coins = (await this.#wallet.coinsAt(this.#of(order).address)).filter((coin) => !others.has(txidOf(coin)));
    const now = Date.now();
    const dated = await this.#date(this.#of(order), coins, now);
    const invoice = standing(dated, coins, now);
    const kept = notePaid(dated, invoice, now);
    if (kept !== this.#of(order)) await this.#save(kept);
    this.#last.set(order, invoice);
    const print = fingerprint(invoice, now);
    if (this.#told.get(order) !== print) for (const listener of [...this.#listeners]) queueMicrotask(() => listener(invoice));
    this.#told.set(order, print);
    for (const { take } of [...this.#waiters.keys()]) take(invoice);
    return invoice;
  }

  /** Dates what is new, for which it asks for the times of blocks if that needs them. */
  async #date(kept: Kept, coins: readonly Coin[], now: number): Promise<Kept> {
    const fresh = undated(kept, coins);
    if (fresh.length === 0) return kept;
    // One question for all that a block has.
    if (fresh.some((coin) => coin.block !== undefined && this.#times.get(txidOf(coin)) === undefined)) {
      this.#times = new Map((await this.#wallet.history({ direction: "in" })).map(({ txid, blockTime }) => [txid, blockTime]));
    }
    return date(kept, fresh, this.#times, now);
  }

  /** Looks again when the next invoice expires. */
  #wake(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const now = Date.now();
    const ends = [...this.#last.values()].filter(({ state, expires }) => MOVING.has(state) && expires.getTime() >= now).map(({ expires }) => expires.getTime());
    if (ends.length === 0) return;
    const first = ends.reduce((one, other) => Math.min(one, other));
    this.#timer = setTimeout(() => void this.#look(), Math.min(first - now + 1, TIMER_MAX_MS));
    // A process is not kept alive by it.
    (this.#timer as { unref?: () => void }).unref?.();
  }
}

function ended(): QuorateError {
  return new QuorateError("closed", "the invoices have been closed");
}
