import { useState } from "react";
import type { HistoryEntry } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Payment } from "./payment.js";
import { Problem, useAction } from "./ui.js";
import { useUnit } from "./units.js";

/** What people want to know of a payment: is it over, and how surely. */
function standing({ payment, finality, confirmations, conflicted, refusal }: HistoryEntry): { text: string; tone: string } {
  if (conflicted) return { text: "taken back on the chain", tone: "bad" };
  if (confirmations > 0) return { text: `${confirmations} confirmation${confirmations > 1 ? "s" : ""}`, tone: "good" };
  if (finality === "enforced") return refusal ? { text: "final, waits for miners", tone: "wait" } : { text: "final", tone: "good" };
  if (finality === "attested") return { text: "attested", tone: "wait" };
  if (payment?.state === "voting") return { text: `votes ${payment.votes}/${payment.quorum}`, tone: "wait" };
  if (payment?.state === "rejected" || payment?.state === "failed") return { text: payment.state, tone: "bad" };
  if (payment) return { text: payment.state, tone: "wait" };
  return { text: "not sent", tone: "bad" };
}

/** What is final and no miner takes can be lifted: for a fee, by who paid it and by who was paid. */
function Lift({ wallet, entry }: { wallet: OpenWallet; entry: HistoryEntry }) {
  const { unit } = useUnit();
  const [quote, setQuote] = useState<{ feeRate: number; fee: bigint }>();
  const { busy, error, run } = useAction();
  const ask = async () => {
    const feeRate = Math.ceil(await wallet.feeRate());
    setQuote({ feeRate, fee: await wallet.bumpQuote(entry.txid, { feeRate }) });
  };
  const lift = async () => {
    if (quote) await wallet.bump(entry.txid, quote);
    setQuote(undefined);
  };
  return (
    <span className="lift">
      <span className="hint">It is final; a node's Bitcoin Core does not take it at present, as the bridge tells: {entry.refusal}</span>
      {quote
        ? <button type="button" disabled={busy} onClick={() => run(lift)}>Pay {unit.show(quote.fee)} to speed it up</button>
        : <button type="button" className="quiet" disabled={busy} onClick={() => run(ask)}>Speed it up</button>}
      <Problem error={error} />
    </span>
  );
}

export function History({ wallet, entries }: { wallet: OpenWallet; entries: readonly HistoryEntry[] | undefined }) {
  const { unit } = useUnit();
  const [opened, setOpened] = useState<string>();
  const one = entries?.find(({ txid }) => txid === opened);
  if (one) return <Payment wallet={wallet} entry={one} standing={standing(one).text} onBack={() => setOpened(undefined)} />;
  if (!entries?.length) return <p className="card soft">Nothing yet. What you pay and receive appears here.</p>;
  return (
    <section className="card" aria-label="History">
      <ul className="history">
        {entries.toReversed().map((entry) => {
          const { text, tone } = standing(entry);
          const net = entry.received - entry.spent;
          const when = entry.blockTime ? new Date(entry.blockTime * 1000).toLocaleString() : "not in a block yet";
          return (
            <li key={entry.txid} data-txid={entry.txid}>
              <button type="button" className="link" onClick={() => setOpened(entry.txid)}>{entry.label ?? (net < 0n ? "Sent" : "Received")}</button>
              <span className={`amount ${net < 0n ? "" : "in"}`}>{net < 0n ? "−" : "+"}{unit.show(net < 0n ? -net : net)}</span>
              {entry.to.map(({ address, amount }) => (
                <span key={address} className="hint payee">{unit.show(amount)} to <span className="mono" title={address}>{address.slice(0, 12)}…{address.slice(-6)}</span></span>
              ))}
              {entry.fee !== undefined && <span className="hint payee">Fee {unit.show(entry.fee)}</span>}
              <span className="hint">{when} · <span className="mono" title={entry.txid}>{entry.txid.slice(0, 8)}…</span></span>
              <span><span className={`pill ${tone}`}>{text}</span></span>
              {entry.refusal !== undefined && entry.finality === "enforced" && !entry.conflicted && entry.confirmations === 0 && <Lift wallet={wallet} entry={entry} />}
            </li>
          );
        })}
      </ul>
    </section>
  );
}
