import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useConnection } from "quorate/react";
import { Invoices } from "quorate/invoices";
import { init as initVerifier } from "quorate/verify";
import { Wallet } from "quorate/worker";
import { findDevnet, type Devnet } from "./devnet.js";
import { Charge, Sale } from "./sale.js";
import { Sales, useSales } from "./sales.js";
import "./style.css";
import { Field, Problem, Shell, useAction } from "./ui.js";

/** A till with its invoices, and whether it can pay back by itself. */
interface Till {
  readonly wallet: Wallet;
  readonly invoices: Invoices;
  readonly watches: boolean;
}

const RECORD = "till-record";

function App() {
  const [devnet, setDevnet] = useState<Devnet>();
  const [till, setTill] = useState<Till>();
  const { busy, error, run } = useAction();
  useEffect(() => void findDevnet().then(setDevnet), []);
  const open = (record: string) =>
    run(async () => {
      if (!devnet) throw new Error("this page has to be served by a devnet");
      const options = { bridge: devnet.bridge, federation: devnet.federation };
      // Kept, so that a page that is loaded again goes on with its sales, and gives no address to a second customer.
      const wallet = await (record ? Wallet.watch({ ...options, record, name: await tillName(record), key: tillKey() }) : Wallet.create({ ...options, storage: "memory" }));
      await initVerifier();
      const invoices = await Invoices.open(wallet);
      if (record) localStorage.setItem(RECORD, record);
      setTill({ wallet, invoices, watches: record !== "" });
    });
  const kept = localStorage.getItem(RECORD) ?? "";
  useEffect(() => {
    if (devnet && kept) open(kept);
  }, [devnet]);
  const forget = () => {
    localStorage.removeItem(RECORD);
    void till?.wallet.close().then(() => setTill(undefined));
  };
  return (
    <Shell title="Corner shop" aside={till && <Connection wallet={till.wallet} />}>
      {till ? <Counter till={till} onForget={forget} /> : <Start busy={busy} error={error} record={kept} onStart={open} />}
    </Shell>
  );
}

/** A till of its own for each account. */
async function tillName(record: string): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(record)));
  return `till-${Array.from(hash.slice(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Encrypts what the till has seen, on this device. It guards no money: a till that watches has no keys. */
function tillKey(): Uint8Array {
  const kept = localStorage.getItem("till-key") ?? Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem("till-key", kept);
  return Uint8Array.from(kept.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
}

function Connection({ wallet }: { wallet: Wallet }) {
  const connection = useConnection(wallet);
  return <span className={`pill ${connection === "ready" ? "good" : "wait"}`} role="status">{connection}</span>;
}

function Start({ busy, error, record: kept, onStart }: { busy: boolean; error: unknown; record: string; onStart: (record: string) => void }) {
  const [record, setRecord] = useState(kept);
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

/** What is on the counter: a new sale, one that is under way or looked at, or all of them. The address says which, so that a page loaded again shows the same. */
function Counter({ till, onForget }: { till: Till; onForget: () => void }) {
  const { wallet, invoices } = till;
  const sales = useSales(invoices);
  const [place, setPlace] = useState(location.hash.slice(1));
  useEffect(() => {
    const moved = () => setPlace(location.hash.slice(1));
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const go = (to: string) => void (location.hash = to);
  const order = place.startsWith("sale/") ? decodeURIComponent(place.slice(5)) : undefined;
  const sale = sales?.find((one) => one.order === order);
  const tab = (name: string, to: string, current: boolean) => (
    <button type="button" aria-current={current ? "page" : undefined} onClick={() => go(to)}>{name}</button>
  );
  return (
    <>
      {sale && <Sale key={sale.order} wallet={wallet} invoices={invoices} sale={sale} watches={till.watches} onNext={() => go("")} />}
      {place === "sales" && <Sales sales={sales} onOpen={(one) => go(`sale/${encodeURIComponent(one)}`)} onForget={till.watches ? onForget : undefined} />}
      {!sale && place !== "sales" && sales && <Charge invoices={invoices} number={sales.length + 1} onSale={(one) => go(`sale/${encodeURIComponent(one.order)}`)} />}
      <nav aria-label="Till">{tab("New sale", "", !sale && place !== "sales")}{tab("Sales", "sales", place === "sales")}</nav>
    </>
  );
}

const root = document.getElementById("root");
if (root) createRoot(root).render(<StrictMode><App /></StrictMode>);
