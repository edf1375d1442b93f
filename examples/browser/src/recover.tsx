import { StrictMode, useEffect, useState, type ChangeEvent, type FormEvent } from "react";
import { createRoot } from "react-dom/client";
import { Recovery, esplora, type FoundCoins, type Network, type RecoverableCoin, type SignedSweep, type Sweep } from "quorate/recover";
import "./style.css";
import { Copy, Field, Problem, Shell, sats, useAction } from "./ui.js";

const BLOCK_MINUTES = 10;
const SOURCES: Record<Network, string> = {
  bitcoin: "https://mempool.space/api",
  testnet: "https://mempool.space/testnet/api",
  testnet4: "https://mempool.space/testnet4/api",
  signet: "https://mempool.space/signet/api",
  regtest: "",
};

/** When a coin can be moved, for people. */
function opens({ opensAt }: RecoverableCoin, tip: number): string {
  if (opensAt === undefined) return "waits for its block";
  const blocks = opensAt - tip - 1;
  if (blocks <= 0) return "open";
  const days = Math.round((blocks * BLOCK_MINUTES) / 1440);
  return `opens at height ${opensAt}, in ${blocks} blocks${days > 0 ? `, about ${days} ${days === 1 ? "day" : "days"}` : ""}`;
}

/** Above what a payment may cost without a question: 5,000 sat, and a tenth. */
function dear({ amount, fee }: Sweep): boolean {
  return fee > 5_000n && fee * 10n > amount;
}

function App() {
  const [recovery, setRecovery] = useState<Recovery>();
  const [found, setFound] = useState<{ coins: FoundCoins; server: string; time: number }>();
  return (
    <Shell title="Leaving">
      {recovery === undefined ? <Backup onRead={setRecovery} /> : (
        <Coins recovery={recovery} onFound={(coins, server) => setFound((old) => ({ coins, server, time: (old?.time ?? 0) + 1 }))} />
      )}
      {recovery && found && <Move key={found.time} recovery={recovery} found={found.coins} server={found.server} />}
    </Shell>
  );
}

function Backup({ onRead }: { onRead: (recovery: Recovery) => void }) {
  const [text, setText] = useState("");
  const [network, setNetwork] = useState<Network>("bitcoin");
  const { busy, error, run } = useAction();
  const bare = text.trim().startsWith("tr(");
  const file = (event: ChangeEvent<HTMLInputElement>) => void event.target.files?.[0]?.text().then(setText);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => onRead(await Recovery.open(text, bare ? { network } : {})));
  };
  return (
    <form className="card" onSubmit={submit}>
      <h1>Take your coins with you</h1>
      <p className="soft">
        Your backup sheet is enough. Nothing here asks a bridge or a node of your federation: they may all be gone. What you enter stays in this page. To keep the words off
        machines with a connection, use the command <span className="mono">quorate recover</span>, which signs offline.
      </p>
      <Field label="Backup sheet" hint="The whole sheet, or the descriptor alone: the line that begins with tr(.">
        {(id) => <textarea id={id} rows={7} spellCheck={false} autoComplete="off" value={text} onChange={(event) => setText(event.target.value)} />}
      </Field>
      <Field label="Or its file">{(id) => <input id={id} type="file" accept=".txt,text/plain" onChange={file} />}</Field>
      {bare && (
        <Field label="Network">
          {(id) => (
            <select id={id} value={network} onChange={(event) => setNetwork(event.target.value as Network)}>
              {Object.keys(SOURCES).map((name) => <option key={name}>{name}</option>)}
            </select>
          )}
        </Field>
      )}
      <Problem error={error} />
      <button disabled={busy || text.trim() === ""}>Read the backup</button>
    </form>
  );
}

/** Where the coins are: asked of an Esplora server, or from a list. */
function Coins({ recovery, onFound }: { recovery: Recovery; onFound: (found: FoundCoins, server: string) => void }) {
  const { network, recoveryDelay } = recovery.info;
  const [url, setUrl] = useState(SOURCES[network]);
  const [list, setList] = useState("");
  const [tip, setTip] = useState("");
  const [found, setFound] = useState<FoundCoins>();
  const { busy, error, run } = useAction();
  const take = (coins: FoundCoins, server: string) => {
    setFound(coins);
    onFound(coins, server);
  };
  const ask = (event: FormEvent) => {
    event.preventDefault();
    run(async () => take(await recovery.find(esplora(url)), url));
  };
  const read = () => run(async () => take({ tip: Number(tip), coins: recovery.readList(list) }, ""));
  return (
    <>
      <form className="card" onSubmit={ask}>
        <h2>Your coins</h2>
        <p className="soft">An account on {network}. Each coin can be moved {recoveryDelay} blocks after its own block.</p>
        <Field label="Esplora server" hint="It learns your addresses. One of your own keeps them to yourself.">
          {(id) => <input id={id} type="url" value={url} onChange={(event) => setUrl(event.target.value)} />}
        </Field>
        <button disabled={busy || url === ""}>{busy ? "Looking…" : "Find my coins"}</button>
        <details>
          <summary>I have a list of them</summary>
          <div className="field">
            <Field label="Coins" hint="On each line: TXID:VOUT SATOSHIS HEIGHT ADDRESS">
              {(id) => <textarea id={id} rows={4} spellCheck={false} value={list} onChange={(event) => setList(event.target.value)} />}
            </Field>
            <Field label="Height of the chain">
              {(id) => <input id={id} inputMode="numeric" value={tip} onChange={(event) => setTip(event.target.value)} />}
            </Field>
            <button type="button" className="quiet" disabled={busy || list.trim() === "" || !/^\d{1,8}$/.test(tip)} onClick={read}>Use this list</button>
          </div>
        </details>
        <Problem error={error} />
      </form>
      {found && (
        <section className="card" aria-label="Coins">
          <p className="balance" data-testid="total">{sats(found.coins.reduce((sum, coin) => sum + coin.value, 0n))}</p>
          <p className="soft">in {found.coins.length} {found.coins.length === 1 ? "coin" : "coins"}, at height {found.tip}</p>
          <ul className="history">
            {found.coins.map((coin) => (
              <li key={coin.outpoint}>
                <span className="mono" title={coin.outpoint}>{coin.outpoint.slice(0, 8)}…</span>
                <span className="amount">{sats(coin.value)}</span>
                <span className="hint">{opens(coin, found.tip)}</span>
                <span />
              </li>
            ))}
          </ul>
        </section>
      )}
    </>
  );
}

/** What is open goes to one address. */
function Move({ recovery, found, server }: { recovery: Recovery; found: FoundCoins; server: string }) {
  const [to, setTo] = useState("");
  const [rate, setRate] = useState("");
  const [words, setWords] = useState("");
  const [passphrase, setPassphrase] = useState("");
  const [sweep, setSweep] = useState<Sweep>();
  const [signed, setSigned] = useState<SignedSweep>();
  const [sent, setSent] = useState(false);
  const { busy, error, run } = useAction();
  useEffect(() => {
    if (server !== "") void esplora(server).feeRate().then((estimate) => setRate((old) => old || (estimate ? String(Math.ceil(estimate)) : "")), () => undefined);
  }, [server]);
  const build = (event: FormEvent) => {
    event.preventDefault();
    run(async () => setSweep(recovery.sweep(found, { to, feeRate: Number(rate) })));
  };
  const sign = (event: FormEvent) => {
    event.preventDefault();
    if (sweep === undefined) return;
    run(async () => {
      setSigned(recovery.sign(sweep.psbt, { passphrase, ...(!recovery.info.hasWords && { words }) }));
      setWords("");
      setPassphrase("");
    });
  };
  const send = () => run(async () => {
    if (signed === undefined) return;
    await esplora(server).broadcast(signed.transaction);
    setSent(true);
  });
  if (sent && signed) {
    return (
      <section className="card done">
        <h2>Sent</h2>
        <p className="mono" data-testid="txid">{signed.txid}</p>
        <p className="soft">The server has taken it. Look for it in a block; at a low fee rate that can take a while.</p>
      </section>
    );
  }
  if (signed) {
    return (
      <section className="card" aria-label="Signed">
        <h2>Signed</h2>
        <p className="soft">Any Bitcoin node or block explorer can send this transaction.</p>
        <textarea readOnly rows={5} className="mono" data-testid="transaction" value={signed.transaction} aria-label="Transaction" />
        <Problem error={error} />
        <div className="row">
          {server !== "" && <button type="button" disabled={busy} onClick={send}>Send it now</button>}
          <Copy text={signed.transaction} label="Copy transaction" />
        </div>
      </section>
    );
  }
  if (sweep) {
    return (
      <form className="card" onSubmit={sign} aria-label="Move">
        <h2>{sats(sweep.amount)} arrive</h2>
        <p className="soft">
          at <span className="mono">{to}</span>, for a fee of {sats(sweep.fee)}.
          {sweep.left.length > 0 && <> {sweep.left.length} {sweep.left.length === 1 ? "coin stays" : "coins stay"} behind for now: not open yet, for a second transaction (500 coins fit into one), or worth less than moving them costs.</>}
        </p>
        {!recovery.info.hasWords && (
          <Field label="Your twelve words">
            {(id) => <textarea id={id} rows={2} autoComplete="off" autoCapitalize="none" spellCheck={false} value={words} onChange={(event) => setWords(event.target.value)} />}
          </Field>
        )}
        {(recovery.info.needsPassphrase || !recovery.info.hasWords) && (
          <Field label="Passphrase" hint={recovery.info.needsPassphrase ? "The one beside the words. It is not on the sheet." : "Only if there is one beside the words."}>
            {(id) => <input id={id} type="password" autoComplete="off" value={passphrase} onChange={(event) => setPassphrase(event.target.value)} />}
          </Field>
        )}
        {dear(sweep) && <p className="problem" role="alert">That is much: more than a tenth of what arrives. Look at what blocks take today before you sign; coins can wait.</p>}
        <Problem error={error} />
        <div className="row">
          <button disabled={busy || (!recovery.info.hasWords && words.trim() === "") || (recovery.info.needsPassphrase && passphrase === "")}>Sign</button>
          <Copy text={sweep.psbt} label="Copy PSBT" />
          <button type="button" className="quiet" onClick={() => setSweep(undefined)}>Change</button>
        </div>
      </form>
    );
  }
  return (
    <form className="card" onSubmit={build} aria-label="Move">
      <h2>Move what is open</h2>
      <Field label="To">{(id) => <input id={id} spellCheck={false} autoComplete="off" value={to} onChange={(event) => setTo(event.target.value)} />}</Field>
      <Field label="Fee rate" hint="In sat/vB. It is in no hurry; look at what blocks take today.">
        {(id) => <input id={id} inputMode="decimal" value={rate} onChange={(event) => setRate(event.target.value)} />}
      </Field>
      <Problem error={error} />
      <button disabled={busy || to === "" || !/^\d+(\.\d+)?$/.test(rate)}>Show what it costs</button>
    </form>
  );
}

const root = document.getElementById("root");
if (root) createRoot(root).render(<StrictMode><App /></StrictMode>);
