// What receivers are told of invoices: written down before it is sent, sent again until it is taken, and of one invoice in order.
import { randomUUID } from "node:crypto";
import type { Invoice } from "../invoice.js";
import { signedHeaders, type InvoiceData, type WebhookBody } from "../webhooks.js";
import type { Database, Row, Step } from "./database.js";

/** Somebody who is told. */
export interface Endpoint {
  readonly url: string;
  /** By which it knows that it is told by this server; several while it changes. */
  readonly secrets: readonly string[];
}

/** What is known of an invoice beside how it stands. */
export interface Shown {
  readonly proofs: Readonly<Record<string, string>>;
  readonly document: string;
}

/** An invoice as it stands, and how to show it. */
export interface Noted {
  readonly invoice: Invoice;
  readonly shown: () => Promise<Shown>;
}

/** How it went with what was to be sent. */
export interface Delivery {
  readonly id: string;
  readonly url: string;
  readonly order: string;
  readonly sequence: number;
  /** What it says, such as `invoice.paid`. */
  readonly type: WebhookBody["type"];
  readonly state: "waiting" | "delivered" | "failed";
  readonly attempts: number;
  readonly created: string;
  /** When it is sent next, while it waits. */
  readonly due?: string;
  /** What the last attempt came to, if it was not taken. */
  readonly failure?: string;
}

/** Wait after each attempt that failed; after the last one it has failed for good. Three days in all. */
const AGAIN_S = [5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 64_800, 86_400] as const;
/** For a receiver to answer. */
const PATIENCE_MS = 10_000;
/** Sent at a time to one receiver. */
const TOGETHER = 8;
/** Wait after so many that were not taken. */
const REST_MS = 5_000;
/** The longest wait of a timer. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** What was taken is kept so long. */
const KEPT_MS = 30 * 86_400_000;
/** And what has failed for good. */
const FAILED_KEPT_MS = 90 * 86_400_000;
const TOLD = "INSERT INTO quorate_told (invoice, print, sequence) VALUES ($1, $2, $3) ON CONFLICT (invoice) DO UPDATE SET print = excluded.print, sequence = excluded.sequence";
const FAILURE_MAX = 200;
const PAGE = 1_000;

/** All that is to be sent. */
export class Outbox {
  readonly #database: Database;
  readonly #endpoints: ReadonlySet<string>;
  readonly #lines: readonly Line[];
  /** One after the other: each begins with what was told before. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @param failed - called when the database does not work. */
  constructor(database: Database, endpoints: readonly Endpoint[], failed: (error: unknown) => void) {
    this.#database = database;
    this.#endpoints = new Set(endpoints.map(({ url }) => url));
    this.#lines = endpoints.map((endpoint) => new Line(database, endpoint, failed));
  }

  /**
   * Writes down how an invoice stands, if that is news, for everybody who is told.
   *
   * @param now - reads it, when its turn has come: what was read before may be old.
   */
  async note(order: string, now: () => Promise<Noted | undefined>): Promise<void> {
    await this.#inTurn(async () => {
      const noted = await now();
      if (noted === undefined) return;
      const { invoice, shown } = noted;
      const [told] = await this.#database.all("SELECT print, sequence FROM quorate_told WHERE invoice = $1", order);
      const print = printOf(invoice);
      if (told?.["print"] === print) return;
      const sequence = Number(told?.["sequence"] ?? 0) + 1;
      const steps: Step[] = [[TOLD, order, print, sequence]];
      // Whoever made it knows that it waits.
      const isNews = told !== undefined && told["print"] !== "";
      if (this.#endpoints.size > 0 && (isNews || invoice.state !== "waiting")) {
        const at = Date.now();
        const said: WebhookBody = { type: `invoice.${invoice.state}`, timestamp: new Date(at).toISOString(), sequence, invoice: dataOf(invoice), ...(await shown()) };
        const [id, body] = [`msg_${randomUUID().replaceAll("-", "")}`, JSON.stringify(said)];
        for (const url of this.#endpoints) {
          steps.push([
            "INSERT INTO quorate_deliveries (id, endpoint, invoice, sequence, type, body, created, due, attempts, state) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 'waiting')",
            ...[id, url, order, sequence, said.type, body, at, at],
          ]);
        }
      }
      await this.#database.transact(steps);
      if (steps.length > 1) this.#wake();
    });
  }

  /** Nothing is told of an order any more; what waits is not sent. Should there be one again, what is told of it is later than what was. */
  async forget(order: string): Promise<void> {
    await this.#inTurn(() =>
      this.#database.transact([
        ["UPDATE quorate_told SET print = '' WHERE invoice = $1", order],
        ["DELETE FROM quorate_deliveries WHERE invoice = $1", order],
      ]),
    );
  }

  #inTurn(step: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(step);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** The latest deliveries of a state, or all. */
  async list(state: Delivery["state"] | undefined, order: string | undefined): Promise<readonly Delivery[]> {
    const columns = "SELECT id, endpoint, invoice, sequence, type, state, attempts, created, due, failure FROM quorate_deliveries";
    const rows = await this.#database.all(`${columns} WHERE state LIKE $1 AND ($2 = '' OR invoice = $3) ORDER BY created DESC LIMIT ${PAGE}`, state ?? "%", order ?? "", order ?? "");
    return rows.map(deliveryOf);
  }

  /** Sends what has failed or waits once more, now. Gives `false` if there is nothing of this id for anybody who is told. */
  async retry(id: string): Promise<boolean> {
    const rows = await this.#database.all("SELECT endpoint FROM quorate_deliveries WHERE id = $1 AND state <> 'delivered'", id);
    const again = rows.map((row) => String(row["endpoint"])).filter((url) => this.#endpoints.has(url));
    const change = "UPDATE quorate_deliveries SET state = 'waiting', due = $1, attempts = 0 WHERE id = $2 AND endpoint = $3";
    await this.#database.transact(again.map((url): Step => [change, Date.now(), id, url]));
    this.#wake();
    return again.length > 0;
  }

  /** How many wait, for nobody who is told any more, and how many have failed for good. */
  async counts(): Promise<{ readonly waiting: number; readonly undeliverable: number; readonly failed: number }> {
    const rows = await this.#database.all("SELECT state, endpoint, COUNT(*) AS many FROM quorate_deliveries WHERE state <> 'delivered' GROUP BY state, endpoint");
    const count = (state: string, known: boolean): number =>
      rows.filter((row) => row["state"] === state && this.#endpoints.has(String(row["endpoint"])) === known).reduce((sum, row) => sum + Number(row["many"]), 0);
    return { waiting: count("waiting", true), undeliverable: count("waiting", false), failed: count("failed", true) + count("failed", false) };
  }

  /**
   * Sends what is due, and goes on until the end. What waits for an address that nobody is told at any more waits on, or goes to the one that there is in its place.
   *
   * @param orders - those that there are: of others nothing is told.
   */
  async start(orders: ReadonlySet<string>): Promise<void> {
    for (const row of await this.#database.all("SELECT invoice FROM quorate_told WHERE print <> ''")) {
      const order = String(row["invoice"]);
      if (!orders.has(order)) await this.forget(order);
    }
    const [only, ...others] = this.#endpoints;
    if (only !== undefined && others.length === 0) await this.#move(only);
    this.#wake();
  }

  /** Each message goes there once, however many were to have it. */
  async #move(only: string): Promise<void> {
    const elsewhere = "state = 'waiting' AND endpoint <> $1";
    const there = "SELECT 1 FROM quorate_deliveries AS other WHERE other.id = one.id AND other.endpoint = $2";
    const first = "SELECT MIN(other.endpoint) FROM quorate_deliveries AS other WHERE other.id = one.id AND other.state = 'waiting'";
    await this.#database.transact([
      [`DELETE FROM quorate_deliveries AS one WHERE ${elsewhere} AND EXISTS (${there})`, only, only],
      [`DELETE FROM quorate_deliveries AS one WHERE ${elsewhere} AND endpoint <> (${first})`, only],
      ["UPDATE quorate_deliveries SET endpoint = $1 WHERE state = 'waiting' AND endpoint <> $2", only, only],
    ]);
  }

  /** Forgets what was taken, or has failed, long ago. */
  async sweep(now: number): Promise<void> {
    await this.#database.transact([
      ["DELETE FROM quorate_deliveries WHERE state = 'delivered' AND created < $1", now - KEPT_MS],
      ["DELETE FROM quorate_deliveries WHERE state = 'failed' AND created < $1", now - FAILED_KEPT_MS],
    ]);
  }

  #wake(): void {
    for (const line of this.#lines) line.wake();
  }

  /** What is on its way is given up, and sent again by the next server. */
  async close(): Promise<void> {
    await Promise.all([this.#turn, ...this.#lines.map((line) => line.close())]);
  }
}

/** What waits for one receiver. One that does not answer holds up no other. */
class Line {
  readonly #database: Database;
  readonly #endpoint: Endpoint;
  readonly #failed: (error: unknown) => void;
  readonly #ending = new AbortController();
  #sending: Promise<void> | undefined;
  #again = false;
  /** Until then nothing is sent: the last that was, was not taken. */
  #rests = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(database: Database, endpoint: Endpoint, failed: (error: unknown) => void) {
    [this.#database, this.#endpoint, this.#failed] = [database, endpoint, failed];
  }

  /** Sends what is due. */
  wake(): void {
    if (this.#ending.signal.aborted) return;
    if (this.#sending !== undefined) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    if (Date.now() < this.#rests) return this.#wakeIn(this.#rests - Date.now());
    this.#sending = this.#send()
      .catch((error: unknown) => {
        if (!this.#ending.signal.aborted) this.#failed(error);
      })
      .finally(() => {
        this.#sending = undefined;
        if (!this.#again) return;
        this.#again = false;
        this.wake();
      });
  }

  async #send(): Promise<void> {
    while (!this.#ending.signal.aborted) {
      const now = Date.now();
      // Of each invoice the oldest: the next waits until it is taken, or has failed for good.
      const first = "SELECT MIN(sequence) FROM quorate_deliveries AS other WHERE other.endpoint = one.endpoint AND other.invoice = one.invoice AND other.state = 'waiting'";
      const waiting = `SELECT id, body, attempts, due FROM quorate_deliveries AS one WHERE state = 'waiting' AND endpoint = $1 AND sequence = (${first}) ORDER BY due LIMIT ${TOGETHER}`;
      const rows = await this.#database.all(waiting, this.#endpoint.url);
      const due = rows.filter((row) => Number(row["due"]) <= now);
      if (due.length === 0) {
        const [next] = rows;
        if (next !== undefined) this.#wakeIn(Number(next["due"]) - now);
        return;
      }
      const outcomes = await Promise.all(due.map((row) => this.#deliver(row)));
      await this.#database.transact(outcomes.flatMap(({ steps }) => steps));
      // Of a receiver that takes nothing, not all that waits is sent at once.
      if (outcomes.every(({ taken }) => !taken)) {
        this.#rests = Date.now() + REST_MS;
        return this.#wakeIn(REST_MS);
      }
    }
  }

  #wakeIn(milliseconds: number): void {
    if (!this.#ending.signal.aborted) this.#timer = setTimeout(() => this.wake(), Math.min(Math.max(milliseconds, 1), TIMER_MAX_MS));
  }

  /** One attempt. */
  async #deliver(row: Row): Promise<{ readonly taken: boolean; readonly steps: readonly Step[] }> {
    const [id, { url }, attempts] = [String(row["id"]), this.#endpoint, Number(row["attempts"]) + 1];
    const failure = await this.#post(id, String(row["body"]));
    if (failure === undefined) {
      return { taken: true, steps: [["UPDATE quorate_deliveries SET state = 'delivered', attempts = $1, failure = NULL WHERE id = $2 AND endpoint = $3", attempts, id, url]] };
    }
    // One that the server's own end cut off does not count.
    if (this.#ending.signal.aborted) return { taken: false, steps: [] };
    const wait = AGAIN_S[attempts - 1];
    const [state, due] = wait === undefined ? ["failed", 0] : ["waiting", Date.now() + wait * 1_000];
    const change = "UPDATE quorate_deliveries SET state = $1, attempts = $2, due = $3, failure = $4 WHERE id = $5 AND endpoint = $6";
    return { taken: false, steps: [[change, String(state), attempts, Number(due), failure.slice(0, FAILURE_MAX), id, url]] };
  }

  /** Gives why it was not taken, or nothing. */
  async #post(id: string, body: string): Promise<string | undefined> {
    const { url, secrets } = this.#endpoint;
    try {
      const headers = { "content-type": "application/json", ...(await signedHeaders(secrets, id, Math.floor(Date.now() / 1_000), body)) };
      const signal = AbortSignal.any([this.#ending.signal, AbortSignal.timeout(PATIENCE_MS)]);
      const answer = await fetch(url, { method: "POST", headers, body, redirect: "manual", signal });
      // What it says besides is nobody's.
      await answer.body?.cancel();
      return answer.ok ? undefined : `it answered with ${answer.status}`;
    } catch (error) {
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
      return cause instanceof Error ? cause.message : String(cause);
    }
  }

  async close(): Promise<void> {
    this.#ending.abort();
    clearTimeout(this.#timer);
    await this.#sending;
  }
}

/** What is told: time alone changes nothing of what was paid, and neither do blocks. */
function printOf({ created, state, received, pending, refunds, expires, cancelled, payments }: Invoice): string {
  const moves = state === "waiting" || state === "partial";
  const over = moves && (cancelled !== undefined || Date.now() > expires.getTime());
  return [created.getTime(), state, received, pending, over, ...refunds.map(({ id, txid }) => `${id}${txid}`), ...payments.map(({ outpoint, finality }) => `${outpoint}${finality}`)].join(" ");
}

function deliveryOf(row: Row): Delivery {
  const [state, failure] = [row["state"] as Delivery["state"], row["failure"]];
  const at = (name: string): string => new Date(Number(row[name])).toISOString();
  return {
    ...{ id: String(row["id"]), url: String(row["endpoint"]), order: String(row["invoice"]), sequence: Number(row["sequence"]), type: row["type"] as Delivery["type"] },
    ...{ state, attempts: Number(row["attempts"]), created: at("created") },
    ...(state === "waiting" && { due: at("due") }),
    ...(typeof failure === "string" && { failure }),
  };
}

/** An invoice as JSON has it. */
export function dataOf(invoice: Invoice): InvoiceData {
  const { created, expires, cancelled, payments, refunds, ...rest } = invoice;
  const times = { created: created.toISOString(), expires: expires.toISOString(), ...(cancelled && { cancelled: cancelled.toISOString() }) };
  const amounts = Object.fromEntries(Object.entries(rest).map(([name, value]) => [name, typeof value === "bigint" ? String(value) : value]));
  return {
    ...(amounts as unknown as Omit<InvoiceData, "created" | "expires" | "cancelled" | "payments" | "refunds">),
    ...times,
    payments: payments.map(({ amount, at, ...payment }) => ({ ...payment, amount: String(amount), at: at.toISOString() })),
    refunds: refunds.map(({ amount, ...refund }) => ({ ...refund, amount: String(amount) })),
  };
}
