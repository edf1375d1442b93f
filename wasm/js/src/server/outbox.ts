// What receivers are told of invoices: written down before it is sent, sent again until it is taken, and of one invoice in order.
import { randomUUID } from "node:crypto";
import { fingerprint, type Invoice } from "../invoice.js";
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

/** How it went with what was to be sent. */
export interface Delivery {
  readonly id: string;
  readonly url: string;
  readonly order: string;
  readonly sequence: number;
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

  /** Writes down how an invoice stands, if that is news, for everybody who is told. */
  async note(invoice: Invoice, shown: () => Promise<Shown>): Promise<void> {
    const noted = this.#turn.then(async () => {
      const { order, state } = invoice;
      const [told] = await this.#database.all("SELECT print, sequence FROM quorate_told WHERE invoice = $1", order);
      const print = `${invoice.created.getTime()} ${fingerprint(invoice, Date.now())}`;
      if (told?.["print"] === print) return;
      const sequence = Number(told?.["sequence"] ?? 0) + 1;
      const steps: Step[] = [["INSERT INTO quorate_told (invoice, print, sequence) VALUES ($1, $2, $3) ON CONFLICT (invoice) DO UPDATE SET print = excluded.print, sequence = excluded.sequence", order, print, sequence]];
      // Whoever made it knows that it waits.
      if (this.#endpoints.size > 0 && (told !== undefined || state !== "waiting")) {
        const now = Date.now();
        const said: WebhookBody = { type: `invoice.${state}`, timestamp: new Date(now).toISOString(), sequence, invoice: dataOf(invoice), ...(await shown()) };
        const [id, body] = [`msg_${randomUUID().replaceAll("-", "")}`, JSON.stringify(said)];
        for (const url of this.#endpoints) {
          steps.push([
            "INSERT INTO quorate_deliveries (id, endpoint, invoice, sequence, body, created, due, attempts, state) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 'waiting')",
            ...[id, url, order, sequence, body, now, now],
          ]);
        }
      }
      await this.#database.transact(steps);
      if (steps.length > 1) this.#wake();
    });
    this.#turn = noted.catch(() => undefined);
    await noted;
  }

  /** Nothing is told of an order any more; what waits is not sent. */
  async forget(order: string): Promise<void> {
    await this.#database.transact([
      ["DELETE FROM quorate_told WHERE invoice = $1", order],
      ["DELETE FROM quorate_deliveries WHERE invoice = $1", order],
    ]);
  }

  /** The latest deliveries of a state, or all. */
  async list(state: Delivery["state"] | undefined, order: string | undefined): Promise<readonly Delivery[]> {
    const columns = "SELECT id, endpoint, invoice, sequence, state, attempts, created, due, failure FROM quorate_deliveries";
    const rows = await this.#database.all(`${columns} WHERE state LIKE $1 AND ($2 = '' OR invoice = $3) ORDER BY created DESC LIMIT ${PAGE}`, state ?? "%", order ?? "", order ?? "");
    return rows.map(deliveryOf);
  }

  /** Sends what has failed or waits once more, now. Gives `false` if there is nothing of this id. */
  async retry(id: string): Promise<boolean> {
    const rows = await this.#database.all("SELECT 1 AS one FROM quorate_deliveries WHERE id = $1 AND state <> 'delivered'", id);
    await this.#database.transact([["UPDATE quorate_deliveries SET state = 'waiting', due = $1, attempts = 0 WHERE id = $2 AND state <> 'delivered'", Date.now(), id]]);
    this.#wake();
    return rows.length > 0;
  }

  /** How many wait, and how many have failed for good. */
  async counts(): Promise<{ readonly waiting: number; readonly failed: number }> {
    const rows = await this.#database.all("SELECT state, COUNT(*) AS many FROM quorate_deliveries WHERE state <> 'delivered' GROUP BY state");
    const count = (state: string): number => Number(rows.find((row) => row["state"] === state)?.["many"] ?? 0);
    return { waiting: count("waiting"), failed: count("failed") };
  }

  /** Sends what is due, and goes on until the end. */
  async start(): Promise<void> {
    for (const row of await this.#database.all("SELECT DISTINCT endpoint FROM quorate_deliveries WHERE state = 'waiting'")) {
      const url = String(row["endpoint"]);
      if (this.#endpoints.has(url)) continue;
      await this.#database.transact([["UPDATE quorate_deliveries SET state = 'failed', failure = 'nobody is told there any more' WHERE state = 'waiting' AND endpoint = $1", url]]);
    }
    this.#wake();
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
        await this.#database.transact([["DELETE FROM quorate_deliveries WHERE state = 'delivered' AND endpoint = $1 AND created < $2", this.#endpoint.url, now - KEPT_MS]]);
        const [next] = rows;
        if (next !== undefined) this.#wakeIn(Number(next["due"]) - now);
        return;
      }
      const outcomes = await Promise.all(due.map((row) => this.#deliver(row)));
      await this.#database.transact(outcomes.flatMap(({ steps }) => steps));
      // Of a receiver that takes nothing, not all that waits is sent at once.
      if (outcomes.every(({ taken }) => !taken)) return this.#wakeIn(REST_MS);
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

function deliveryOf(row: Row): Delivery {
  const [state, failure] = [row["state"] as Delivery["state"], row["failure"]];
  const at = (name: string): string => new Date(Number(row[name])).toISOString();
  return {
    ...{ id: String(row["id"]), url: String(row["endpoint"]), order: String(row["invoice"]), sequence: Number(row["sequence"]) },
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
