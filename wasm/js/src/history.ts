// What a caller wants of a wallet's history, and the history as a file for somebody's books.
import { checkCount, checkOptions, checkText, optional, refuse } from "./checks.js";
import type { HistoryEntry, HistoryOptions } from "./types.js";

/**
 * Looks at what was passed.
 *
 * @throws {@link QuorateError} `invalid_argument`
 */
export function checkHistory(options: HistoryOptions): HistoryOptions {
  const { direction, from, until, before, limit } = checkOptions("options", options, ["direction", "from", "until", "before", "limit"]);
  if (direction !== undefined && direction !== "in" && direction !== "out") refuse("direction", 'has to be "in" or "out"');
  optional(checkCount, "from", from);
  optional(checkCount, "until", until);
  optional(checkText, "before", before);
  if (optional(checkCount, "limit", limit) === 0) refuse("limit", "has to be 1 or more");
  return options;
}

/** The part of a history that was asked for, in its order. */
export function select(history: readonly HistoryEntry[], { direction, from, until, before, limit }: HistoryOptions): readonly HistoryEntry[] {
  const end = before === undefined ? history.length : history.findIndex(({ txid }) => txid === before);
  if (end < 0) refuse("before", "no entry has this txid");
  const wanted = history.slice(0, end).filter((entry) => {
    // What is in no block comes after all blocks.
    const height = entry.block?.height ?? Number.POSITIVE_INFINITY;
    return (direction === undefined || (direction === "out") === entry.spent > 0n) && height >= (from ?? 0) && (until === undefined || height < until);
  });
  return limit === undefined ? wanted : wanted.slice(-limit);
}

const COLUMNS = ["txid", "time", "height", "received_sat", "spent_sat", "fee_sat", "balance_change_sat", "finality", "state", "to", "label"] as const;

type Row = Record<(typeof COLUMNS)[number], string | number | null>;

function row(entry: HistoryEntry): Row {
  return {
    txid: entry.txid,
    time: entry.blockTime === undefined ? null : new Date(entry.blockTime * 1000).toISOString(),
    height: entry.block?.height ?? null,
    // All bitcoin that there can be are fewer satoshis than a number holds without loss.
    received_sat: Number(entry.received),
    spent_sat: Number(entry.spent),
    fee_sat: entry.fee === undefined ? null : Number(entry.fee),
    balance_change_sat: Number(entry.received - entry.spent),
    finality: entry.finality ?? null,
    state: entry.conflicted !== undefined ? "conflicted" : entry.block !== undefined ? "confirmed" : entry.finality !== undefined ? "final" : (entry.payment?.state ?? "unconfirmed"),
    to: entry.to.map(({ address, amount }) => `${address}=${amount}`).join(" "),
    // Some spreadsheets part fields by semicolons or tabs, whatever the quotes say.
    label: entry.label?.replace(/[;\t]/g, ",") ?? null,
  };
}

/** A field (RFC 4180). */
export function field(value: string | number | null): string {
  // A spreadsheet takes what begins so for a formula, and labels may be somebody else's.
  const text = typeof value === "string" && /^[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(value) ? `'${value}` : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * A history as a file: CSV (RFC 4180, with a line of names) for a spreadsheet, or JSON. Amounts are in satoshis, times in UTC. What failed or conflicts is there too, with its
 * `state`: only rows that are `confirmed` or `final` have moved money.
 *
 * @throws {@link QuorateError} `invalid_argument`: there is no such format.
 *
 * @example
 * ```ts no-run
 * import { exportHistory, type Wallet } from "quorate";
 * async function download(wallet: Wallet) {
 *   const text = exportHistory(await wallet.history(), "csv");
 *   return new Blob([text], { type: "text/csv" });
 * }
 * ```
 */
export function exportHistory(history: readonly HistoryEntry[], format: "csv" | "json"): string {
  const rows = history.map(row);
  if (format === "json") return `${JSON.stringify(rows, null, 2)}\n`;
  if (format !== "csv") refuse("format", 'has to be "csv" or "json"');
  const lines = [COLUMNS.join(","), ...rows.map((one) => COLUMNS.map((column) => field(one[column])).join(","))];
  return lines.map((line) => `${line}\r\n`).join("");
}
