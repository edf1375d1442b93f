// Leaving in a browser: a sheet, a server that knows the chain, and nobody of the federation.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { PATIENCE_MS, askChain, openPage, serveEsplora, shot, startAll, startBrowser, startDevnet, taprootScript } from "./support.mjs";

const DELAY = 289;
const ELSEWHERE = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
const problems = [];
let devnet, server, browser;

before(async () => {
  devnet = await startDevnet();
  [server, browser] = await startAll(serveEsplora(devnet.rpc, taprootScript), startBrowser());
});
after(async () => {
  await browser?.stop();
  server?.stop();
  await devnet?.stop();
});

async function fund(address, amount) {
  await fetch(`${devnet.site}/devnet/fund`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ address, amount }) });
}

async function paidWallet(name) {
  const wallet = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name, recoveryDelay: DELAY });
  await wallet.ready();
  const address = await wallet.nextAddress();
  await fund(address, 120_000);
  const kept = { sheet: await wallet.backup(), words: await wallet.revealWords(), descriptor: wallet.account.descriptor, address };
  await wallet.close();
  return kept;
}

test("a page moves the coins of a sheet", { timeout: 4 * PATIENCE_MS }, async () => {
  const { sheet } = await paidWallet("sheet");
  const page = await openPage(browser.context, `${devnet.site}/recover.html`, problems);
  await page.getByLabel("Backup sheet").fill("no sheet");
  await page.getByRole("button", { name: "Read the backup" }).click();
  await page.getByRole("alert").filter({ hasText: "the backup has no valid line" }).or(page.getByText(/backup has no valid line/)).first().waitFor();
  await page.getByLabel("Or its file").setInputFiles({ name: "quorate-backup.txt", mimeType: "text/plain", buffer: Buffer.from(sheet) });
  await page.getByRole("button", { name: "Read the backup" }).click();
  await page.getByLabel("Esplora server").fill(server.url);
  await page.getByRole("button", { name: "Find my coins" }).click();
  await page.getByTestId("total").filter({ hasText: "120 000 sat" }).waitFor();
  await page.getByText(/opens at height \d+, in \d+ blocks, about 2 days/).waitFor();
  await page.getByLabel("To", { exact: true }).fill(ELSEWHERE);
  await page.getByRole("button", { name: "Show what it costs" }).click();
  await page.getByText(/No coin can be moved yet: the first one opens at height/).waitFor();
  await shot(page, "9-leaving-early");

  await askChain(devnet.rpc, "generatetoaddress", DELAY, ELSEWHERE);
  await page.getByRole("button", { name: "Find my coins" }).click();
  await page.getByText("open", { exact: true }).waitFor();
  await page.getByLabel("To", { exact: true }).fill(ELSEWHERE);
  assert.equal(await page.getByLabel("Fee rate").inputValue(), "3", "the server's estimate");
  await page.getByRole("button", { name: "Show what it costs" }).click();
  await page.getByRole("heading", { name: /1\d\d \d{3} sat arrive/ }).waitFor();
  await shot(page, "10-leaving-cost");
  await page.getByRole("button", { name: "Sign" }).click();
  await page.getByTestId("transaction").waitFor();
  await page.getByRole("button", { name: "Send it now" }).click();
  const txid = await page.getByTestId("txid").textContent();
  await shot(page, "11-left");
  assert.ok((await askChain(devnet.rpc, "getrawmempool")).includes(txid));
  await page.close();
});

test("and those of a descriptor and a list, with the words", { timeout: 4 * PATIENCE_MS }, async () => {
  const { words, descriptor, address } = await paidWallet("list");
  await askChain(devnet.rpc, "generatetoaddress", DELAY, ELSEWHERE);
  const { unspents, height } = await askChain(devnet.rpc, "scantxoutset", "start", [`raw(${taprootScript(address)})`]);
  const [coin] = unspents;
  const page = await openPage(browser.context, `${devnet.site}/recover.html`, problems);
  await page.getByLabel("Backup sheet").fill(descriptor);
  await page.getByLabel("Network").selectOption("regtest");
  await page.getByRole("button", { name: "Read the backup" }).click();
  await page.getByText("I have a list of them").click();
  await page.getByLabel("Coins", { exact: true }).fill(`${coin.txid}:${coin.vout} 120000 ${coin.height} ${address}`);
  await page.getByLabel("Height of the chain").fill(String(height));
  await page.getByRole("button", { name: "Use this list" }).click();
  await page.getByText("open", { exact: true }).waitFor();
  await page.getByLabel("To", { exact: true }).fill(ELSEWHERE);
  await page.getByLabel("Fee rate").fill("2");
  await page.getByRole("button", { name: "Show what it costs" }).click();
  await page.getByLabel("Your twelve words").fill(words);
  await page.getByRole("button", { name: "Sign" }).click();
  const transaction = await page.getByTestId("transaction").inputValue();
  assert.match(await askChain(devnet.rpc, "sendrawtransaction", transaction), /^[0-9a-f]{64}$/);
  await page.close();
  assert.deepEqual(problems, []);
});
