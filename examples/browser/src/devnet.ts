/** Where the local devnet is, if this page was served by one. */
export interface Devnet {
  readonly bridge: string;
  readonly federation: string;
  readonly network: string;
}

/** Asks the server of this page. */
export async function findDevnet(): Promise<Devnet | undefined> {
  const answer = await fetch("/devnet.json").catch(() => undefined);
  if (!answer?.ok || !answer.headers.get("content-type")?.includes("json")) return undefined;
  return (await answer.json()) as Devnet;
}

/** Play money, in a block of its own. */
export async function fund(address: string, amount: bigint): Promise<void> {
  const answer = await fetch("/devnet/fund", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ address, amount: Number(amount) }),
  });
  if (!answer.ok) throw new Error(await answer.text());
}
