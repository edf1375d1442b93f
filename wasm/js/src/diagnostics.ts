// What a wallet says of itself to its developer: lines as things happen, and a text for a bug report.
import { QuorateError } from "./errors.js";
import type { Balance, Block, Coin, Connection, HistoryEntry, WalletEvent } from "./types.js";

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

/** Without what tells whose wallet it is, where it is kept or what is in it, and without what would spoil a terminal or a page. */
function redacted(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ")
    .replace(/\b([a-z][a-z0-9+.-]*):\/\/\S+/gi, "$1://…")
    .replace(/(^|[\s"'(=])(?:~|[a-z]:)?[/\\][^\s"')]+/gi, "$1…")
    .replace(/\b([0-9a-f]{8})[0-9a-f]{56}\b/gi, "$1…")
    // Addresses, keys, transactions and the like.
    .replace(/[0-9A-Za-z+/=-]{25,}/g, "…")
    .replace(/\d[\d.,' ]*(BTC|sats?|satoshis?|₿)(?![a-z])/gi, "… $1")
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
    case "labels":
      return ["info", "labels were changed"];
    case "tip":
      return ["info", `tip ${event.tip.height}`];
    case "tipStale":
      return ["warn", `tip ${event.tip.height} is old`];
    case "lagged":
      return ["warn", `${event.missed} events were missed`];
    case "refused":
      return ["warn", `refused, ${event.error.code}`];
    case "serverMisbehaved":
      return ["warn", `the bridge misbehaved: ${event.what}`];
    case "closed":
      return event.error === undefined ? ["info", "closed"] : ["warn", `closed, ${event.error.code}`];
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

/** What the text is made of, as far as the wallet still says it. */
export interface Facts {
  readonly network: string;
  readonly federation: string;
  readonly watchOnly: boolean;
  readonly connection: PromiseSettledResult<Connection>;
  readonly tip: PromiseSettledResult<Block>;
  readonly balance: PromiseSettledResult<Balance>;
  readonly coins: PromiseSettledResult<readonly Coin[]>;
  readonly history: PromiseSettledResult<readonly HistoryEntry[]>;
}

/** What is told of an answer, or why there is none. */
function told<T>(answer: PromiseSettledResult<T>, tell: (value: T) => unknown): unknown {
  return answer.status === "fulfilled" ? tell(answer.value) : { error: QuorateError.from(answer.reason).code };
}

/** How many there are of each kind. */
function count<T>(all: readonly T[], kind: (one: T) => string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const one of all) counts[kind(one)] = (counts[kind(one)] ?? 0) + 1;
  return counts;
}

function kindOfCoin(coin: Coin): string {
  if (coin.frozen) return "frozen";
  if (coin.lockedBy !== undefined) return "locked";
  return coin.block !== undefined ? "confirmed" : (coin.finality ?? "unconfirmed");
}

function kindOfEntry(entry: HistoryEntry): string {
  if (entry.conflicted !== undefined) return "conflicted";
  return entry.block !== undefined ? "confirmed" : (entry.finality ?? entry.payment?.state ?? "unconfirmed");
}

/** Which kinds of money there are, not how much of it. */
function kindsOf(balance: Balance): string[] {
  return Object.entries(balance).flatMap(([kind, amount]) => (typeof amount === "bigint" && amount > 0n ? [kind] : []));
}

/** The text: how many of what, and the latest lines. */
export function report({ connection, tip, balance, coins, history, ...wallet }: Facts, lines: readonly LogLine[]): string {
  const facts = {
    time: new Date().toISOString(),
    environment: globalThis.navigator?.userAgent ?? "unknown",
    ...wallet,
    connection: told(connection, (value) => value),
    tip: told(tip, ({ height }) => height),
    balance: told(balance, kindsOf),
    coins: told(coins, (all) => count(all, kindOfCoin)),
    history: told(history, (all) => count(all, kindOfEntry)),
    log: lines.map(({ time, level, text }) => `${new Date(time).toISOString()} ${level} ${text}`),
  };
  return `${JSON.stringify(facts, null, 2)}\n`;
}
