import { StrictMode, useEffect, useState, type FormEvent } from "react";
import { createRoot } from "react-dom/client";
import { useConnection, useHistory } from "quorate/react";
import { Federation, init as initVerifier, type FinalTransaction } from "quorate/verify";
import { Wallet, type IncomingPayment } from "quorate/worker";
import { findDevnet, type Devnet } from "./devnet.js";
import "./style.css";
import { Copy, Field, Problem, Qr, Shell, btc, parseSats, sats, useAction } from "./ui.js";

interface Sale {
  readonly amount: bigint;
  readonly address: string;
}

/** A payment that this browser checked by itself, with nothing but the proof and the federation's id. */
interface Checked {
  readonly transaction: FinalTransaction;
  readonly proof: string;
  readonly tookMs: number;
}

function App() {
  const [devnet, setDevnet] = useState<Devnet>();
  const [wallet, setWallet] = useState<Wallet>();
  const [sale, setSale] = useState<Sale>();
  const start = useAction();
  useEffect(() => void findDevnet().then(setDevnet), []);
  const open = (record: string) =>
    start.run(async () => {
      if (!devnet) throw new Error("this page has to be served by a devnet");
      const options = { bridge: devnet.bridge, federation: devnet.federation };
      // Kept, so that a page that is loaded again gives no address to a second customer.
      const opened = await (record ? Wallet.watch({ ...options, record, name: await tillName(record), key: tillKey() }) : Wallet.create({ ...options, storage: "memory" }));
      await initVerifier();
      setWallet(opened);
    });
  return (
    <Shell title="Corner shop" aside={wallet && <Till wallet={wallet} />}>
      {!wallet && <Start busy={start.busy} error={start.error} onStart={open} />}
      {wallet && !sale && <Charge wallet={wallet} onSale={setSale} />}
      {wallet && sale && <Payment key={sale.address} wallet={wallet} sale={sale} onNext={() => setSale(undefined)} />}
    </Shell>
  );
}

/** A till of its own for each account. */
async function tillName(record: string): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(record)));
  return `till-${Array.from(hash.slice(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Encrypts what the till has seen, on this device. It guards no money: a till has no keys. */
function tillKey(): Uint8Array {
  const kept = localStorage.getItem("till-key") ?? Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem("till-key", kept);
  return Uint8Array.from(kept.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
}

function Till({ wallet }: { wallet: Wallet }) {
  const connection = useConnection(wallet);
  return <span className={`pill ${connection === "ready" ? "good" : "wait"}`} role="status">{connection}</span>;
}

function Start({ busy, error, onStart }: { busy: boolean; error: unknown; onStart: (record: string) => void }) {
  const [record, setRecord] = useState("");
  return (
    <form className="card" onSubmit={(event) => { event.preventDefault(); onStart(record.trim()); }}>
      <h1>Open the till</h1>
      <Field label="Account record (optional)" hint="From the settings of your wallet. The till then takes payments for you and can spend nothing. Without it the till gets a wallet of its own, for as long as this tab is open.">
        {(id) => <textarea id={id} className="mono" rows={3} value={record} onChange={(event) => setRecord(event.target.value)} />}
      </Field>
      <Problem error={error} />
      <button disabled={busy}>{busy ? "Opening…" : "Open"}</button>
    </form>
  );
}

function Charge({ wallet, onSale }: { wallet: Wallet; onSale: (sale: Sale) => void }) {
  const [text, setText] = useState("21 000");
  const { busy, error, run } = useAction();
  const amount = parseSats(text);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      if (amount !== undefined) onSale({ amount, address: await wallet.nextAddress() });
    });
  };
  return (
    <form className="card" onSubmit={submit}>
      <h1>New sale</h1>
      <Field label="Amount" hint="In satoshis.">
        {(id) => <input id={id} inputMode="numeric" value={text} onChange={(event) => setText(event.target.value)} />}
      </Field>
      <Problem error={error} />
      <button disabled={busy || amount === undefined}>{amount ? `Charge ${sats(amount)}` : "Charge"}</button>
    </form>
  );
}

async function check(wallet: Wallet, payment: IncomingPayment, amount: bigint): Promise<Checked | undefined> {
  const [{ proof } = { proof: undefined }] = payment.transactions;
  if (proof === undefined) return undefined;
  const federation = new Federation(await wallet.federationDocument(), wallet.account.federation);
  try {
    const from = performance.now();
    const transaction = federation.verifyProof(proof);
    const paid = transaction.outputs.filter(({ address }) => address === payment.address).reduce((sum, { value }) => sum + value, 0n);
    return paid >= amount ? { transaction, proof, tookMs: performance.now() - from } : undefined;
  } finally {
    federation[Symbol.dispose]();
  }
}

function Payment({ wallet, sale, onNext }: { wallet: Wallet; sale: Sale; onNext: () => void }) {
  const [paid, setPaid] = useState<IncomingPayment>();
  const [checked, setChecked] = useState<Checked>();
  const [error, setError] = useState<unknown>();
  useEffect(() => {
    const stop = new AbortController();
    wallet
      .paymentTo(sale.address, { amount: sale.amount, signal: stop.signal })
      .then(async (payment) => {
        setChecked(await check(wallet, payment, sale.amount));
        setPaid(payment);
      })
      .catch((thrown: unknown) => stop.signal.aborted || setError(thrown));
    return () => stop.abort();
  }, [wallet, sale]);
  const uri = `bitcoin:${sale.address}?amount=${btc(sale.amount)}&label=Corner%20shop`;
  if (paid) return <Paid wallet={wallet} paid={paid} checked={checked} onNext={onNext} />;
  return (
    <section className="card" aria-label="Payment">
      <h1>{sats(sale.amount)}</h1>
      <Qr text={uri} label={`QR code for a payment of ${sats(sale.amount)}`} />
      <p className="mono" data-testid="uri">{uri}</p>
      <Problem error={error} />
      <p role="status" className="soft">Waiting for the payment…</p>
      <div className="row">
        <Copy text={uri} label="Copy link" />
        <button type="button" className="quiet" onClick={onNext}>Cancel</button>
      </div>
    </section>
  );
}

const txidOf = ({ transaction }: Checked) => <span className="mono">{transaction.txid}</span>;

/** How sure the merchant can be, and of what. */
function standing({ transactions }: IncomingPayment, checked: Checked | undefined): string {
  if (checked?.transaction.finality === "enforced") return `Final, verified in this browser in ${checked.tookMs.toFixed(1)} ms.`;
  if (checked) return `Attested by the federation, verified in this browser in ${checked.tookMs.toFixed(1)} ms. The payer holds the key alone: for large amounts wait for confirmations.`;
  if (transactions.every(({ finality }) => finality === "enforced")) return "Final, paid by more than one transaction, each verified by the till's wallet.";
  if (transactions.every(({ proof }) => proof === undefined)) return "In a block of the chain, not by the federation: wait for the confirmations that you need.";
  return "Paid by several transactions, not all of them final: wait for confirmations.";
}

function Paid({ wallet, paid, checked, onNext }: { wallet: Wallet; paid: IncomingPayment; checked: Checked | undefined; onNext: () => void }) {
  const history = useHistory(wallet);
  const txid = paid.transactions[0]?.txid;
  const confirmations = history?.find((entry) => entry.txid === txid)?.confirmations ?? 0;
  return (
    <section className="card">
      <div className="card done" role="status">
        <svg className="mark" viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="7" /><path d="M4.5 8.2l2.4 2.4 4.6-5" /></svg>
        <h1>{sats(paid.amount)} paid</h1>
        <p>{standing(paid, checked)}</p>
        <p className="soft" data-testid="confirmations">
          {confirmations === 0 ? "Not in a block yet; it need not be." : `${confirmations} confirmation${confirmations > 1 ? "s" : ""}`}
        </p>
      </div>
      {checked && (
        <details>
          <summary>The proof</summary>
          <p className="soft">
            {checked.transaction.finality === "enforced" ? (
              <>Signing transaction {txidOf(checked)} took {checked.transaction.signers} nodes of the federation. Each keeps a durable record of it, so no transaction that spends the same coins can be signed.</>
            ) : (
              <>{checked.transaction.signers} nodes of the federation have committed to transaction {txidOf(checked)} and to no other of the same coins. Their owner alone holds the key and can still sign another for the chain.</>
            )}{" "}
            Anyone can check this with the federation's id and nothing else.
          </p>
          <pre>{JSON.stringify(JSON.parse(checked.proof), undefined, 2)}</pre>
          <Copy text={checked.proof} label="Copy proof" />
        </details>
      )}
      <button type="button" onClick={onNext}>Next sale</button>
    </section>
  );
}

const root = document.getElementById("root");
if (root) createRoot(root).render(<StrictMode><App /></StrictMode>);
