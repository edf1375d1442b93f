import { useEffect, useState } from "react";
import type { OpenWallet } from "quorate/worker";
import { Copy, Field, Problem, Qr, btc, useAction } from "./ui.js";
import { useUnit } from "./units.js";

export function Receive({ wallet }: { wallet: OpenWallet }) {
  const { unit } = useUnit();
  const [address, setAddress] = useState<string>();
  const [amount, setAmount] = useState("");
  const [received, setReceived] = useState<{ readonly amount: bigint }>();
  const { error, run } = useAction();
  const next = () => run(async () => setAddress(await wallet.nextAddress()));
  useEffect(() => run(async () => setAddress(await wallet.unusedAddress())), [wallet, received]);
  useEffect(() => wallet.on("received", setReceived), [wallet]);
  const wanted = unit.parse(amount);
  const uri = address && `bitcoin:${address}${wanted ? `?amount=${btc(wanted)}` : ""}`;
  return (
    <section className="card" aria-label="Receive">
      {received !== undefined && <p role="status" className="pill good">{unit.show(received.amount)} received, final</p>}
      {uri && <Qr text={uri} label={`QR code for ${uri}`} />}
      <p className="mono" data-testid="address">{address}</p>
      <Field label="Amount (optional)" hint={unit.hint}>
        {(id) => <input id={id} inputMode="decimal" value={amount} onChange={(event) => setAmount(event.target.value)} />}
      </Field>
      <Problem error={error} />
      <div className="row">
        {address && <Copy text={wanted && uri ? uri : address} label={wanted ? "Copy link" : "Copy address"} />}
        <button type="button" className="quiet" onClick={next}>New address</button>
      </div>
    </section>
  );
}
