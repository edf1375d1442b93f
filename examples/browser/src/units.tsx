// In which unit amounts are shown and typed: satoshis or bitcoin. The choice is kept on this device.
import { createContext, useContext, useState, type ReactNode } from "react";
import { btc, parseSats, sats } from "./ui.js";

/** A unit of amounts. */
export interface Unit {
  readonly name: "sat" | "BTC";
  readonly hint: string;
  readonly show: (amount: bigint) => string;
  /** Reads what was typed; `undefined` if it is no amount. */
  readonly parse: (text: string) => bigint | undefined;
}

const SAT: Unit = { name: "sat", hint: "In satoshis.", show: sats, parse: parseSats };
const BTC: Unit = { name: "BTC", hint: "In bitcoin, such as 0.0025.", show: (amount) => `${btc(amount)} BTC`, parse: parseBtc };

/** Reads a decimal number of bitcoin, with a point and at most eight digits behind it. */
export function parseBtc(text: string): bigint | undefined {
  const [, whole = "", part = ""] = /^(\d{1,8})(?:\.(\d{1,8}))?$/.exec(text.trim()) ?? [];
  if (whole === "") return undefined;
  const amount = BigInt(whole + part.padEnd(8, "0"));
  return amount > 0n && amount <= 2_100_000_000_000_000n ? amount : undefined;
}

const KEY = "quorate-unit";
const Chosen = createContext<{ unit: Unit; choose: (name: Unit["name"]) => void }>({ unit: SAT, choose: () => undefined });

export const useUnit = () => useContext(Chosen);

export function Units({ children }: { children: ReactNode }) {
  const [unit, setUnit] = useState(() => (localStorage.getItem(KEY) === "BTC" ? BTC : SAT));
  const choose = (name: Unit["name"]) => {
    localStorage.setItem(KEY, name);
    setUnit(name === "BTC" ? BTC : SAT);
  };
  return <Chosen value={{ unit, choose }}>{children}</Chosen>;
}
