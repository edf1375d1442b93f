// What a wallet says of itself to its developer: lines as things happen, and a text for a bug report.
import type { Balance, Coin, Connection, HistoryEntry, WalletEvent } from "./types.js";

/** Something that happened, in a line. */
export interface LogLine {
  /** Milliseconds since 1970. */
  readonly time: number;
  /** `warn` for what a developer should look at: a refusal, a fault of the bridge, a payment that came to nothing. */
  readonly level: "info" | "warn";
  /** What happened. Transactions by the first digits of their ids; no addresses, no amounts, and nothing that is secret. */
  readonly text: string;
}

/** Lines that are kept for {@link OpenWallet.diagnostics}, the latest ones. */
const LINES_MAX = 200;
/** Characters of a line; some are a server's words. */
const LINE_MAX = 300;

/** Without what tells whose wallet it is, and without what would spoil a terminal or a page. */
function redacted(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ")
    .replace(/\b([0-9a-f]{8})[0-9a-f]{56}\b/gi, "$1…")
    .replace(/\b(bc|tb|bcrt)1[02-9ac-hj-np-z]{8,}\b/gi, "$1…")
    .replace(/\b[xt](?:pub|prv)[1-9A-HJ-NP-Za-km-z]{20,}\b/g, "…")
    .slice(0, LINE_MAX);
}

function describe(event: WalletEvent): [LogLine["level"], string] {
  switch (event.type) {
    case "connected":
    case "ready":
    case "synced":
      return ["info", event.type];
    case "disconnected":
      return ["info", `disconnected: ${event.reason}; again in ${event.retryInMs} ms`];
    case "epoch":
      return ["info", `epoch ${event.epoch}`];
    case "balance":
      return ["info", "the balance is another one"];
    case "payment":
      switch (event.state) {
        case "voting":
          return ["info", `payment ${event.txid}: ${event.votes} of ${event.quorum} votes`];
        case "signing":
          return ["info", `payment ${event.txid}: signing, attempt ${event.attempt}`];
        case "final":
          return ["info", `payment ${event.txid}: final, ${event.finality}`];
        case "rejected":
          return ["warn", `payment ${event.txid}: rejected, ${event.rejects.map(({ node, reason }) => `node ${node}: ${reason}`).join(", ")}`];
        case "failed":
          return ["warn", `payment ${event.txid}: failed, ${event.message}`];
        case "submitted":
        case "approved":
          return ["info", `payment ${event.txid}: ${event.state}`];
      }
    case "received":
      return ["info", `received by ${event.txid}, ${event.finality}`];
    case "confirmed":
      return ["info", `${event.txid} is in block ${event.block.height}`];
    case "conflicted":
      return ["warn", `${event.txid} can be in no block: block ${event.by.block.height} has ${event.by.txid}`];
    case "broadcasting":
      return event.refusal === undefined ? ["info", `${event.txid} waits for its block`] : ["warn", `${event.txid} is not taken by the Bitcoin network: ${event.refusal}`];
    case "coinExpiring":
      return ["warn", `coin ${event.outpoint} is to be refreshed before block ${event.expiresAt}`];
    case "refreshFailed":
      return ["warn", `coins were not refreshed: ${event.reason}`];
    case "tip":
      return ["info", `tip ${event.tip.height}`];
    case "tipStale":
      return ["warn", `tip ${event.tip.height} is old`];
    case "lagged":
      return ["warn", `${event.missed} events were missed`];
    case "refused":
      return ["warn", `refused, ${event.error.code}: ${event.error.message}`];
    case "serverMisbehaved":
      return ["warn", `the bridge misbehaved: ${event.what}`];
    case "closed":
      return event.error === undefined ? ["info", "closed"] : ["warn", `closed, ${event.error.code}: ${event.error.message}`];
  }
}

/** Turns events into lines, keeps the latest, and hands them on. */
export class Recorder {
  readonly #lines: LogLine[] = [];
  readonly #listeners = new Set<(line: LogLine) => void>();

  note(event: WalletEvent): void {
    const [level, text] = describe(event);
    const line: LogLine = { time: Date.now(), level, text: redacted(text) };
    this.#lines.push(line);
    if (this.#lines.length > LINES_MAX) this.#lines.shift();
    // A listener that throws must not keep others from hearing.
    for (const listener of this.#listeners) queueMicrotask(() => listener(line));
  }

  listen(listener: (line: LogLine) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  get lines(): readonly LogLine[] {
    return this.#lines;
  }
}

/** What the text is made of. */
export interface Facts {
  readonly network: string;
  readonly federation: string;
  readonly watchOnly: boolean;
  readonly connection: Connection;
  readonly tip: number;
  readonly balance: Balance;
  readonly coins: readonly Coin[];
  readonly history: readonly HistoryEntry[];
}

/** How many there are of each kind. */
function count<T>(all: readonly T[], kind: (one: T) => string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const one of all) counts[kind(one)] = (counts[kind(one)] ?? 0) + 1;
  return counts;
}

/** The text: how many of what, what is there and what is not, and the latest lines. */
export function report({ network, federation, watchOnly, connection, tip, balance, coins, history }: Facts, lines: readonly LogLine[]): string {
  const environment = globalThis.navigator?.userAgent ?? "unknown";
  const there = Object.entries(balance).filter(([, amount]) => typeof amount === "bigint" && amount > 0n);
  return `${JSON.stringify(
    {
      time: new Date().toISOString(),
      environment,
      network,
      federation,
      watchOnly,
      connection,
      tip,
      // Not how much of it.
      balance: there.map(([kind]) => kind),
      coins: count(coins, (coin) => (coin.frozen ? "frozen" : coin.lockedBy !== undefined ? "locked" : coin.block !== undefined ? "confirmed" : (coin.finality ?? "unconfirmed"))),
      history: count(history, (entry) =>
        entry.conflicted !== undefined ? "conflicted" : entry.block !== undefined ? "confirmed" : (entry.finality ?? entry.payment?.state ?? "unconfirmed"),
      ),
      log: lines.map(({ time, level, text }) => `${new Date(time).toISOString()} ${level} ${text}`),
    },
    null,
    2,
  )}\n`;
}
