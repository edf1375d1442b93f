// Paying back what was too much, too late or for nothing.
import { useState, type FormEvent } from "react";
import type { Invoice, Invoices } from "quorate/invoices";
import { Field, Problem, sats, useAction } from "./ui.js";

const begun = ({ refunds }: Invoice) => refunds.find(({ txid }) => txid === undefined);

/** Whether something is to be paid back, or is on its way. */
export const isOwed = (sale: Invoice): boolean => sale.refundable > 0n || begun(sale) !== undefined;

/** A till with keys pays back by itself; one that only watches notes what the owner's wallet paid. */
export function GiveBack({ invoices, sale, watches }: { invoices: Invoices; sale: Invoice; watches: boolean }) {
  const [text, setText] = useState("");
  const { busy, error, run } = useAction();
  const value = text.trim();
  // One that was begun, and of which it is not known whether it was paid, is asked for again as it was.
  const amount = begun(sale)?.amount ?? sale.refundable;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      if (watches) await invoices.markRefunded(sale.order, { txid: value.toLowerCase(), amount });
      else await invoices.refund(sale.order, { to: value });
      setText("");
    });
  };
  const hint = watches ? `Pay ${sats(amount)} back with the owner's wallet, and note its transaction here.` : "An address that the customer gives you. A payer's own address is not always one that can be paid to.";
  return (
    <form className="card" onSubmit={submit} aria-label="Pay back">
      <h2>{sats(amount)} to pay back</h2>
      <Field label={watches ? "Transaction (txid)" : "Customer's address"} hint={hint}>
        {(id) => <input id={id} className="mono" value={text} onChange={(event) => setText(event.target.value)} />}
      </Field>
      <Problem error={error} />
      <button className="quiet" disabled={busy || value === ""}>{busy ? "Paying back…" : watches ? "It was paid back" : "Pay back"}</button>
    </form>
  );
}
