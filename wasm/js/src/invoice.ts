// What an invoice is and how it stands, without a wallet: what has arrived, when, and what that makes of it.
import { QuorateError } from "./errors.js";
import type { Coin, Finality, Minimum } from "./types.js";

/** How an invoice stands. */
export type InvoiceState =
  /** Nothing has arrived. */
  | "waiting"
  /** Something has, and not enough. */
  | "partial"
  | "paid"
  /** More than was asked for arrived, beyond the tolerance. */
  | "overpaid"
  /** Enough arrived, and not all of it in time, or after it was cancelled. */
  | "late"
  /** Its time is over, and nothing has arrived. */
  | "expired"
  /** It was cancelled, and nothing has arrived. */
  | "cancelled"
  /** What arrived was paid back. */
  | "refunded";

/** A price in another currency, as it was when the invoice was made. */
export interface Fiat {
  /** Such as `"EUR"`. */
  readonly currency: string;
  /** A decimal number. */
  readonly amount: string;
  /** Price of one bitcoin, a decimal number. */
  readonly rate: string;
}

/** Something that arrived for an invoice. */
export interface InvoicePayment {
  /** `txid:vout`. */
  readonly outpoint: string;
  /** In satoshis. */
  readonly amount: bigint;
  /** When this wallet heard of it first, or the time of its block if that is earlier. */
  readonly at: Date;
  readonly finality?: Finality;
  /** Whether it is in a block. */
  readonly confirmed: boolean;
  /** Whether it is as certain as the invoice asks for. */
  readonly good: boolean;
}

/** A payment back. */
export interface Refund {
  readonly txid: string;
  /** In satoshis. */
  readonly amount: bigint;
}

/** An invoice, as it stands. Amounts are in satoshis. */
export interface Invoice {
  /** What the shop calls it. */
  readonly order: string;
  readonly address: string;
  /** To show as a QR code, or to link to (BIP21). */
  readonly uri: string;
  readonly amount: bigint;
  readonly memo?: string;
  readonly fiat?: Fiat;
  /** How much more or less is all right. */
  readonly tolerance: bigint;
  /** The least that counts as paid. */
  readonly minimum: Minimum;
  readonly created: Date;
  readonly expires: Date;
  readonly cancelled?: Date;
  readonly state: InvoiceState;
  /** Sum of what arrived and is as certain as it has to be. */
  readonly received: bigint;
  /** Sum of what is on its way. */
  readonly pending: bigint;
  /** What is missing of the amount. */
  readonly missing: bigint;
  /** What could be paid back: all that was too much, or all of an invoice that came to nothing. */
  readonly refundable: bigint;
  readonly payments: readonly InvoicePayment[];
  readonly refunds: readonly Refund[];
}

/** What is kept of an invoice. */
export interface Kept {
  readonly order: string;
  readonly address: string;
  readonly amount: string;
  readonly memo?: string;
  readonly fiat?: Fiat;
  readonly tolerance: string;
  readonly minimum: Minimum;
  /** Milliseconds since 1970. */
  readonly created: number;
  readonly expires: number;
  readonly cancelled?: number;
  /** By outpoint, when it was seen first. */
  readonly seen: Readonly<Record<string, number>>;
  readonly refunds: readonly { readonly txid: string; readonly amount: string }[];
}

/** Whether a coin is as certain as is asked for. */
export const ENOUGH: Readonly<Record<Minimum, (coin: Coin) => boolean>> = {
  attested: (coin) => coin.finality !== undefined || coin.block !== undefined,
  enforced: (coin) => coin.finality === "enforced" || coin.block !== undefined,
  confirmed: (coin) => coin.block !== undefined,
};

const sum = (payments: readonly InvoicePayment[]): bigint => payments.reduce((total, { amount }) => total + amount, 0n);
const least = (value: bigint): bigint => (value > 0n ? value : 0n);

/** How an invoice stands with these coins at its address, at a time. */
export function standing(kept: Kept, coins: readonly Coin[], now: number): Invoice {
  const [amount, tolerance] = [BigInt(kept.amount), BigInt(kept.tolerance)];
  const payments = coins.filter((coin) => !coin.conflicted).map((coin): InvoicePayment => {
    const at = new Date(kept.seen[coin.outpoint] ?? now);
    const { outpoint, value, finality, block } = coin;
    return { outpoint, amount: value, at, ...(finality && { finality }), confirmed: block !== undefined, good: ENOUGH[kept.minimum](coin) };
  });
  payments.sort((one, other) => one.at.getTime() - other.at.getTime() || (one.outpoint < other.outpoint ? -1 : 1));
  const ends = Math.min(kept.expires, kept.cancelled ?? Number.POSITIVE_INFINITY);
  const good = payments.filter((payment) => payment.good);
  const received = sum(good);
  const inTime = sum(good.filter(({ at }) => at.getTime() <= ends));
  const refunds = kept.refunds.map(({ txid, amount: back }) => ({ txid, amount: BigInt(back) }));
  const back = refunds.reduce((total, refund) => total + refund.amount, 0n);
  const enough = amount - tolerance;
  const excess = received - amount;
  const state = ((): InvoiceState => {
    if (back > 0n && back >= received) return "refunded";
    if (received > 0n && received >= enough && inTime < enough) return "late";
    if (received > 0n && received >= enough) return excess - back > tolerance ? "overpaid" : "paid";
    if (payments.length > 0) return "partial";
    if (kept.cancelled !== undefined) return "cancelled";
    return now > kept.expires ? "expired" : "waiting";
  })();
  // Of what is paid in time, what was too much; of all else, all that came.
  const over = state === "paid" || state === "overpaid" ? excess : now > ends || state === "late" ? received : 0n;
  return {
    order: kept.order,
    address: kept.address,
    uri: uriOf(kept),
    amount,
    ...(kept.memo !== undefined && { memo: kept.memo }),
    ...(kept.fiat !== undefined && { fiat: kept.fiat }),
    tolerance,
    minimum: kept.minimum,
    created: new Date(kept.created),
    expires: new Date(kept.expires),
    ...(kept.cancelled !== undefined && { cancelled: new Date(kept.cancelled) }),
    state,
    received,
    pending: sum(payments) - received,
    missing: least(amount - received),
    refundable: least(over - back),
    payments,
    refunds,
  };
}

function uriOf({ address, amount, memo }: Kept): string {
  const digits = amount.padStart(9, "0");
  const bitcoin = `${digits.slice(0, -8)}.${digits.slice(-8)}`.replace(/\.?0+$/, "");
  return `bitcoin:${address}?amount=${bitcoin}${memo === undefined ? "" : `&message=${encodeURIComponent(memo)}`}`;
}

/** A decimal number as a whole one of so many digits after the point. */
function decimal(name: string, text: string, digits: number): bigint {
  const [, whole = "", part = ""] = /^(\d{1,15})(?:\.(\d{1,8}))?$/.exec(text) ?? [];
  if (whole === "") throw new QuorateError("invalid_argument", `${name}: ${JSON.stringify(text)} is no decimal number`);
  return BigInt(whole + part.padEnd(digits, "0"));
}

/**
 * What a price comes to in satoshis, at the price of one bitcoin, rounded up.
 *
 * @throws {@link QuorateError} `invalid_argument`
 */
export function satoshisFor({ amount, rate }: Pick<Fiat, "amount" | "rate">): bigint {
  const [price, of] = [decimal("fiat.amount", amount, 8), decimal("fiat.rate", rate, 8)];
  if (of === 0n) throw new QuorateError("invalid_argument", "fiat.rate: a bitcoin has a price above 0");
  return (price * 100_000_000n + of - 1n) / of;
}
