// All sales of a till, newest first, and the file of them for its books.
import { useEffect, useState } from "react";
import { exportInvoices, type Invoice, type Invoices } from "quorate/invoices";
import { sats } from "./ui.js";

/** All sales, as they stand; `undefined` before they are known. */
export function useSales(invoices: Invoices): readonly Invoice[] | undefined {
  const [sales, setSales] = useState<readonly Invoice[]>();
  useEffect(() => {
    let live = true;
    const load = () => void invoices.list().then((list) => live && setSales(list), () => undefined);
    load();
    const stop = invoices.on(load);
    return () => {
      live = false;
      stop();
    };
  }, [invoices]);
  return sales;
}

const GOOD: ReadonlySet<Invoice["state"]> = new Set(["paid", "overpaid"]);
/** What the merchant has to do something about. */
const BAD: ReadonlySet<Invoice["state"]> = new Set(["partial", "late"]);
const SHOWN = 100;

export function Sales({ sales = [], onOpen, onForget }: { sales: readonly Invoice[] | undefined; onOpen: (order: string) => void; onForget: (() => void) | undefined }) {
  const total = sales.filter(({ state }) => GOOD.has(state)).reduce((sum, { received }) => sum + received, 0n);
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([exportInvoices(sales, "csv")], { type: "text/csv" }));
    link.download = `sales-${new Date().toISOString().slice(0, 10)}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return (
    <section className="card" aria-label="Sales">
      <h1>{sats(total)} taken</h1>
      {sales.length === 0 && <p className="soft">No sales yet.</p>}
      <ul className="history">
        {sales.toReversed().slice(0, SHOWN).map(({ order, state, amount, received, refundable }) => (
          <li key={order}>
            <button type="button" className="link" onClick={() => onOpen(order)}>{order}</button>
            <span className="amount">{sats(received > 0n ? received : amount)}</span>
            <span className="soft">{refundable > 0n && BAD.has(state) ? `${sats(refundable)} to pay back` : ""}</span>
            <span className={`pill ${GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "wait"}`}>{state}</span>
          </li>
        ))}
      </ul>
      {sales.length > SHOWN && <p className="soft">The last {SHOWN} of {sales.length}; the file has all.</p>}
      <div className="row">
        <button type="button" className="quiet" disabled={sales.length === 0} onClick={save}>Save as CSV</button>
        {onForget && <button type="button" className="quiet" onClick={onForget}>Close the till</button>}
      </div>
    </section>
  );
}
