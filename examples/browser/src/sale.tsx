// One sale: what is asked for, what has come of it, and how sure the merchant can be.
import { useEffect, useState, type FormEvent } from "react";
import type { Invoice, Invoices } from "quorate/invoices";
import { Federation, type FinalTransaction } from "quorate/verify";
import type { Wallet } from "quorate/worker";
import { Copy, Field, Problem, Qr, btc, parseSats, sats, useAction } from "./ui.js";
import { GiveBack, isOwed } from "./refund.js";

/** A payment that this browser checked by itself, with nothing but the proof and the federation's id. */
interface Checked {
  readonly transaction: FinalTransaction;
  readonly proof: string;
  readonly tookMs: number;
}

export function Charge({ invoices, number, onSale }: { invoices: Invoices; number: number; onSale: (sale: Invoice) => void }) {
  const [text, setText] = useState("21 000");
  const [minimum, setMinimum] = useState<Invoice["minimum"]>("enforced");
  const { busy, error, run } = useAction();
  const amount = parseSats(text);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      if (amount === undefined) return;
      const order = `${new Date().toISOString().slice(0, 10)}/${number}`;
      onSale(await invoices.create({ order, amount, minimum, memo: `Corner shop, ${order}` }));
    });
  };
  return (
    <form className="card" onSubmit={submit}>
      <h1>New sale</h1>
      <Field label="Amount" hint="In satoshis.">
        {(id) => <input id={id} inputMode="numeric" value={text} onChange={(event) => setText(event.target.value)} />}
      </Field>
      <Field label="Paid when" hint="A wallet of another kind pays on the chain: its payment counts with its block.">
        {(id) => (
          <select id={id} value={minimum} onChange={(event) => setMinimum(event.target.value as Invoice["minimum"])}>
            <option value="enforced">final by the federation, or in a block</option>
            <option value="confirmed">in a block</option>
          </select>
        )}
      </Field>
      <Problem error={error} />
      <button disabled={busy || amount === undefined}>{amount ? `Charge ${sats(amount)}` : "Charge"}</button>
    </form>
  );
}

interface SaleProps {
  readonly wallet: Wallet;
  readonly invoices: Invoices;
  readonly sale: Invoice;
  readonly watches: boolean;
  readonly onNext: () => void;
}

export function Sale({ wallet, invoices, sale, watches, onNext }: SaleProps) {
  const waits = sale.state === "waiting" || sale.state === "partial";
  const over = sale.cancelled !== undefined || sale.expires.getTime() < Date.now();
  return (
    <section className="card" aria-label="Sale">
      {waits && !over ? <Waiting invoices={invoices} sale={sale} onNext={onNext} /> : <Result wallet={wallet} sale={sale} />}
      {isOwed(sale) && !(waits && !over) && <GiveBack invoices={invoices} sale={sale} watches={watches} />}
      {!(waits && !over) && <button type="button" onClick={onNext}>Next sale</button>}
    </section>
  );
}

function Waiting({ invoices, sale, onNext }: { invoices: Invoices; sale: Invoice; onNext: () => void }) {
  const { error, run } = useAction();
  const uri = sale.state === "partial" ? `bitcoin:${sale.address}?amount=${btc(sale.missing)}` : sale.uri;
  const cancel = () =>
    run(async () => {
      await invoices.cancel(sale.order);
      onNext();
    });
  return (
    <>
      <h1>{sats(sale.state === "partial" ? sale.missing : sale.amount)}</h1>
      <Qr text={uri} label={`QR code for a payment of ${sats(sale.missing)}`} />
      <p className="mono" data-testid="uri">{uri}</p>
      <Problem error={error} />
      <p role="status" className="soft">
        {sale.state === "partial" && `${sats(sale.received)} of ${sats(sale.amount)} arrived. `}
        {sale.pending > 0n && `${sats(sale.pending)} is on its way. `}
        Waiting for the payment… <Countdown until={sale.expires} />
      </p>
      <div className="row">
        <Copy text={uri} label="Copy link" />
        <button type="button" className="quiet" onClick={cancel}>Cancel</button>
      </div>
    </>
  );
}

/** Not read out each second. */
function Countdown({ until }: { until: Date }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1_000);
    return () => clearInterval(timer);
  }, []);
  const left = Math.max(0, Math.ceil((until.getTime() - now) / 1_000));
  return <span aria-hidden="true">{Math.floor(left / 60)}:{String(left % 60).padStart(2, "0")}</span>;
}

const TITLES: Readonly<Record<Invoice["state"], string>> = {
  waiting: "waited for",
  partial: "not paid in full",
  paid: "paid",
  overpaid: "paid, and more",
  late: "paid too late",
  expired: "not paid",
  cancelled: "cancelled",
  refunded: "paid back",
};

/** How sure the merchant can be, and of what. */
function standing({ payments, state }: Invoice, checked: Checked | undefined): string {
  if (payments.length === 0) return state === "cancelled" ? "Nothing arrived before it was cancelled. What still arrives is shown here." : "Nothing arrived in time. What still arrives is shown here.";
  if (checked?.transaction.finality === "enforced") return `Final, verified in this browser in ${checked.tookMs.toFixed(1)} ms.`;
  if (checked) return `Attested by the federation, verified in this browser in ${checked.tookMs.toFixed(1)} ms. The payer holds the key alone: for large amounts wait for confirmations.`;
  if (payments.every(({ finality }) => finality === "enforced")) return "Final, paid by more than one transaction, each verified by the till's wallet.";
  if (payments.every(({ height }) => height !== undefined)) return "In a block of the chain, not by the federation: wait for the confirmations that you need.";
  return "Paid by several transactions, not all of them final: wait for confirmations.";
}

async function check(wallet: Wallet, { payments, address }: Invoice): Promise<Checked | undefined> {
  const [txid, ...others] = new Set(payments.map(({ outpoint }) => outpoint.slice(0, 64)));
  const proof = txid === undefined || others.length > 0 ? undefined : await wallet.proof(txid);
  if (proof === undefined) return undefined;
  const federation = new Federation(await wallet.federationDocument(), wallet.account.federation);
  try {
    const from = performance.now();
    const transaction = federation.verifyProof(proof);
    const paid = transaction.outputs.filter((output) => output.address === address).reduce((sum, { value }) => sum + value, 0n);
    const said = payments.reduce((sum, { amount }) => sum + amount, 0n);
    return paid >= said ? { transaction, proof, tookMs: performance.now() - from } : undefined;
  } finally {
    federation[Symbol.dispose]();
  }
}

function Result({ wallet, sale }: { wallet: Wallet; sale: Invoice }) {
  const [checked, setChecked] = useState<Checked>();
  const [tip, setTip] = useState(0);
  const paidBy = sale.payments.map(({ outpoint }) => outpoint).join(" ");
  useEffect(() => {
    let live = true;
    void check(wallet, sale).then((found) => live && setChecked(found));
    return () => void (live = false);
  }, [wallet, paidBy]);
  useEffect(() => {
    void wallet.tip().then(({ height }) => setTip(height));
    return wallet.on("tip", ({ tip: { height } }) => setTip(height));
  }, [wallet]);
  const heights = sale.payments.map(({ height }) => height);
  const last = heights.includes(undefined) ? undefined : Math.max(...(heights as number[]));
  const confirmations = last === undefined || heights.length === 0 ? 0 : Math.max(0, tip - last + 1);
  const good = sale.state === "paid" || sale.state === "overpaid";
  return (
    <>
      <div className={`card ${good ? "done" : ""}`} role="status">
        {good && <svg className="mark" viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="7" /><path d="M4.5 8.2l2.4 2.4 4.6-5" /></svg>}
        <h1>{sats(sale.received > 0n ? sale.received : sale.amount)} {TITLES[sale.state]}</h1>
        <p>{standing(sale, checked)}</p>
        {sale.payments.length > 0 && (
          <p className="soft" data-testid="confirmations">
            {confirmations === 0 ? (sale.minimum === "confirmed" ? "Not in a block yet." : "Not in a block yet; it need not be.") : `${confirmations} confirmation${confirmations > 1 ? "s" : ""}`}
          </p>
        )}
      </div>
      {checked && <Proof checked={checked} />}
    </>
  );
}

function Proof({ checked: { transaction, proof } }: { checked: Checked }) {
  const txid = <span className="mono">{transaction.txid}</span>;
  return (
    <details>
      <summary>The proof</summary>
      <p className="soft">
        {transaction.finality === "enforced" ? (
          <>Signing transaction {txid} took {transaction.signers} nodes of the federation. Each keeps a durable record of it, so no transaction that spends the same coins can be signed.</>
        ) : (
          <>{transaction.signers} nodes of the federation have committed to transaction {txid} and to no other of the same coins. Their owner alone holds the key and can still sign another for the chain.</>
        )}{" "}
        Anyone can check this with the federation's id and nothing else.
      </p>
      <pre>{JSON.stringify(JSON.parse(proof), undefined, 2)}</pre>
      <Copy text={proof} label="Copy proof" />
    </details>
  );
}
