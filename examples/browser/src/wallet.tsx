import { StrictMode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import { useBalance, useConnection, useHistory, useSend } from "quorate/react";
import { Wallet } from "quorate/worker";
import { findDevnet, fund, type Devnet } from "./devnet.js";
import { History } from "./history.js";
import { Receive } from "./receive.js";
import { Send } from "./send.js";
import { Settings } from "./settings.js";
import { Open, walletName } from "./open.js";
import "./style.css";
import { Problem, Shell, sats, useAction } from "./ui.js";
import { Units, useUnit } from "./units.js";

const GIFT = 1_000_000n;
const TABS = ["Home", "Receive", "Send", "Settings"] as const;
type Tab = (typeof TABS)[number];

/** The section that the page's address names: the browser's back button leads through them. */
function useTab(): [Tab, (tab: Tab) => void] {
  const read = (): Tab => TABS.find((tab) => tab.toLowerCase() === location.hash.slice(1)) ?? "Home";
  const [tab, setTab] = useState(read);
  useEffect(() => {
    const moved = () => setTab(read());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const go = (next: Tab) => {
    location.hash = next.toLowerCase();
    setTab(next);
  };
  return [tab, go];
}

/** Whether this device has a network at all: known at once, before any connection has noticed. */
function useOnline(): boolean {
  const [online, setOnline] = useState(navigator.onLine);
  useEffect(() => {
    const changed = () => setOnline(navigator.onLine);
    for (const type of ["online", "offline"]) addEventListener(type, changed);
    return () => {
      for (const type of ["online", "offline"]) removeEventListener(type, changed);
    };
  }, []);
  return online;
}

function App() {
  const [devnet, setDevnet] = useState<Devnet | null>();
  const [wallet, setWallet] = useState<Wallet>();
  useEffect(() => void findDevnet().then((found) => setDevnet(found ?? null)), []);
  if (devnet === undefined) return <Shell title="Quorate">{null}</Shell>;
  const open = (opened: Wallet) => {
    // It begins at home, where payments under way are seen.
    history.replaceState(null, "", location.pathname + location.search);
    setWallet(opened);
  };
  if (wallet === undefined) return <Open devnet={devnet} onOpen={open} />;
  const lock = () => wallet.close().finally(() => setWallet(undefined));
  return <Main wallet={wallet} name={walletName(devnet)} devnet={devnet} lock={lock} />;
}

function Main({ wallet, name, devnet, lock }: { wallet: Wallet; name: string; devnet: Devnet | null; lock: () => Promise<void> }) {
  const { unit } = useUnit();
  const [tab, setTab] = useTab();
  const online = useOnline();
  const told = useConnection(wallet);
  const connection = online || told === "closed" ? told : "offline";
  const section = useRef<HTMLDivElement>(null);
  const shown = useRef(tab);
  // Whoever listens to the page hears of the new section first.
  useEffect(() => {
    if (shown.current !== tab) section.current?.focus();
    shown.current = tab;
  }, [tab]);
  const balance = useBalance(wallet);
  const history = useHistory(wallet);
  const sending = useSend(wallet);
  const tone = { ready: "good", connected: "wait", offline: "bad", closed: "bad" }[connection ?? "offline"];
  return (
    <Shell title="Quorate wallet" aside={<span className="row">{wallet.account.network !== "bitcoin" && <span className="pill wait">{wallet.account.network}</span>}<span className={`pill ${tone}`} role="status">{connection}</span></span>}>
      <section className="card" aria-label="Balance">
        <div>
          <h1 className="balance" data-testid="balance">{balance ? unit.show(balance.spendable) : "…"}</h1>
          <p className="soft">
            {balance && balance.incoming > 0n && <>{unit.show(balance.incoming)} incoming · </>}
            {balance && balance.locked > 0n && <>{unit.show(balance.locked)} being paid · </>}
            {balance && balance.immature > 0n && <>{unit.show(balance.immature)} maturing · </>}
            {balance && balance.expired > 0n && <>{unit.show(balance.expired)} too old to pay with: see Settings · </>}
            ready to spend
          </p>
        </div>
        {devnet && <Gift wallet={wallet} />}
      </section>
      {connection === "closed" && (
        <section className="card" role="alert">
          <p>The wallet had to stop; nothing that it saved is lost.</p>
          <button type="button" onClick={() => void lock()}>Open it again</button>
        </section>
      )}
      <OldTip wallet={wallet} />
      <nav aria-label="Sections">
        {TABS.map((one) => (
          <button key={one} type="button" aria-current={one === tab ? "page" : undefined} onClick={() => setTab(one)}>
            {one}
          </button>
        ))}
      </nav>
      {tab !== "Settings" && <Keep account={wallet.account.id} onShow={() => setTab("Settings")} />}
      <div ref={section} tabIndex={-1}>
        {tab === "Home" && <History wallet={wallet} entries={history} />}
        {tab === "Receive" && <Receive wallet={wallet} />}
        {tab === "Send" && <Send wallet={wallet} sending={sending} ready={connection === "ready"} />}
        {tab === "Settings" && <Settings wallet={wallet} name={name} lock={lock} />}
      </div>
    </Shell>
  );
}

/** Says that the bridge tells of no new blocks, until it does. */
function OldTip({ wallet }: { wallet: Wallet }) {
  const [since, setSince] = useState<number>();
  useEffect(() => {
    const stops = [wallet.on("tipStale", ({ time }) => setSince(time)), wallet.on("tip", () => setSince(undefined))];
    return () => stops.forEach((stop) => stop());
  }, [wallet]);
  if (since === undefined) return null;
  return (
    <section className="card" role="alert">
      <p>The bridge has told of no block since {new Date(since * 1000).toLocaleString()}. It may hold blocks back, or this device's clock is wrong; until that is over, payments to you wait.</p>
    </section>
  );
}

/** Asks once whether the backup sheet was kept: the words alone do not say which account is theirs. */
function Keep({ account, onShow }: { account: string; onShow: () => void }) {
  const key = `quorate-kept-${account}`;
  const [kept, setKept] = useState(() => localStorage.getItem(key) !== null);
  if (kept) return null;
  const confirm = () => {
    localStorage.setItem(key, "yes");
    setKept(true);
  };
  return (
    <section className="card" aria-label="Keep your backup">
      <h2>Have you kept your backup sheet?</h2>
      <p className="soft">Your words and the sheet move your coins even when every server of the federation is gone. It takes a minute now.</p>
      <div className="row">
        <button type="button" onClick={onShow}>Show me the sheet</button>
        <button type="button" className="quiet" onClick={confirm}>I have kept it</button>
      </div>
    </section>
  );
}

function Gift({ wallet }: { wallet: Wallet }) {
  const { busy, error, run } = useAction();
  return (
    <div>
      <button type="button" className="quiet" disabled={busy} onClick={() => run(async () => fund(await wallet.unusedAddress(), GIFT))}>
        Get {sats(GIFT)} to play with
      </button>
      <Problem error={error} />
    </div>
  );
}

const root = document.getElementById("root");
if (root) createRoot(root).render(<StrictMode><Units><App /></Units></StrictMode>);
