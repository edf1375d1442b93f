import { useEffect, useState, type FormEvent } from "react";
import type { RefreshQuote } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Copy, Field, Problem, useAction } from "./ui.js";
import { ChangePassword, Erase } from "./security.js";
import { useUnit, type Unit } from "./units.js";

export function Settings({ wallet, name, lock }: { wallet: OpenWallet; name: string; lock: () => Promise<void> }) {
  const { account } = wallet;
  return (
    <>
      <section className="card" aria-label="Account">
        <h2>Your account in any wallet</h2>
        <p className="soft">This descriptor is public. With it any descriptor wallet can watch the account, and with your words recover it, without Quorate, once the time lock of a coin has passed.</p>
        <p className="mono" data-testid="descriptor">{account.descriptor}</p>
        <div className="row">
          <Copy text={account.descriptor} label="Copy descriptor" />
          <Copy text={account.record} label="Copy account record" />
        </div>
        <p className="hint">The account record lets a checkout take payments without your keys.</p>
      </section>
      <OldCoins wallet={wallet} />
      <Backup wallet={wallet} />
      <Amounts />
      <ChangePassword wallet={wallet} />
      <section className="card" aria-label="Federation">
        <h2>Federation</h2>
        <p className="mono">{account.federation}</p>
        <p className="hint">Network: {account.network}. Everything that this wallet shows was verified against this id.</p>
      </section>
      <section className="card" aria-label="Leaving">
        <h2>Leaving</h2>
        <p className="soft">You need nobody's leave: with the backup sheet, <a href="./recover.html">this page</a> moves your coins without the federation, each once its time lock has passed.</p>
      </section>
      <section className="card"><button type="button" className="quiet" onClick={() => void lock()}>Lock wallet</button></section>
      <Erase wallet={wallet} name={name} lock={lock} />
    </>
  );
}

function Amounts() {
  const { unit, choose } = useUnit();
  return (
    <section className="card" aria-label="Amounts">
      <Field label="Amounts in">
        {(id) => (
          <select id={id} value={unit.name} onChange={(event) => choose(event.target.value as Unit["name"])}>
            <option value="sat">satoshis</option>
            <option value="BTC">bitcoin</option>
          </select>
        )}
      </Field>
    </section>
  );
}

/** Coins that grow old, and what moving them home costs; nothing while there are none. */
function OldCoins({ wallet }: { wallet: OpenWallet }) {
  const { unit } = useUnit();
  const [quote, setQuote] = useState<RefreshQuote>();
  const { busy, error, run } = useAction();
  useEffect(() => {
    void wallet.refreshQuote().then(setQuote, () => setQuote(undefined));
  }, [wallet]);
  if (quote === undefined) return null;
  const move = async () => {
    await wallet.refresh();
    setQuote(await wallet.refreshQuote());
  };
  return (
    <section className="card" aria-label="Old coins">
      <h2>Old coins</h2>
      <p className="soft">
        {quote.coins} {quote.coins === 1 ? "coin" : "coins"} with {unit.show(quote.amount)} {quote.expired ? "can be paid with no longer" : "will soon be too old to pay with"}. Moving
        {quote.coins === 1 ? " it" : " them"} within your account makes that good, for a fee of {unit.show(quote.fee)}.
      </p>
      <Problem error={error} />
      <button type="button" className="quiet" disabled={busy} onClick={() => run(move)}>Move for {unit.show(quote.fee)}</button>
    </section>
  );
}

function Backup({ wallet }: { wallet: OpenWallet }) {
  const [password, setPassword] = useState("");
  const [shown, setShown] = useState<{ words?: string[]; sheet?: string }>();
  const { busy, error, run } = useAction();
  const reveal = (what: "words" | "sheet") => {
    run(async () => {
      setShown(what === "words" ? { words: (await wallet.revealWords({ password })).split(" ") } : { sheet: await wallet.backup({ password }) });
      setPassword("");
    });
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    reveal("words");
  };
  return (
    <form className="card" onSubmit={submit} aria-label="Backup">
      <h2>Backup</h2>
      {shown ? (
        <>
          {shown.words && <ol className="words">{shown.words.map((word, index) => <li key={index}>{word}</li>)}</ol>}
          {shown.sheet && <pre className="sheet" data-testid="sheet">{shown.sheet}</pre>}
          <div className="row">
            {shown.sheet && <button type="button" onClick={() => window.print()}>Print</button>}
            {shown.sheet && (
              <a className="button quiet" download="quorate-backup.txt" href={`data:text/plain;charset=utf-8,${encodeURIComponent(shown.sheet)}`}>Save as a file</a>
            )}
            <button type="button" className="quiet" onClick={() => setShown(undefined)}>Hide</button>
          </div>
        </>
      ) : (
        <>
          <p className="soft">The sheet has your words and the descriptor: all that it takes to move your coins without anybody's help. Keep it where you keep cash.</p>
          <Field label="Password">
            {(id) => <input id={id} type="password" autoComplete="current-password" value={password} onChange={(event) => setPassword(event.target.value)} />}
          </Field>
          <Problem error={error} />
          <div className="row">
            <button className="quiet" disabled={busy || password === ""}>Show the twelve words</button>
            <button type="button" className="quiet" disabled={busy || password === ""} onClick={() => reveal("sheet")}>Show the backup sheet</button>
          </div>
        </>
      )}
    </form>
  );
}
