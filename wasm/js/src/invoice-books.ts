// Invoices as a file for somebody's books.
import { refuse } from "./checks.js";
import { field } from "./history.js";
import type { Invoice } from "./invoice.js";

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
