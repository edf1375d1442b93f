// The example wallet and checkout in a real browser, on a real federation: what a user does, from the first word to the confirmation.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PATIENCE_MS, openPage, shot, startAll, startBrowser, startDevnet } from "./support.mjs";

const PASSWORD = "correct horse battery";
let directory, devnet, browser;
const problems = [];

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-devnet-"));
  [devnet, browser] = await startAll(startDevnet({ directory }), startBrowser());
});
after(async () => {
  await browser?.stop();
  await devnet?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function createWallet(name, { shots } = {}) {
  const page = await openPage(browser.context, `${devnet.site}/?wallet=${name}`, problems);
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.getByLabel("Password again").fill(PASSWORD);
  if (shots) await shot(page, "1-welcome");
  await page.getByRole("button", { name: "Create wallet" }).click();
  await page.getByTestId("words").waitFor();
  const words = await page.getByTestId("words").locator("li").allTextContents();
  assert.equal(words.length, 12);
  if (shots) await shot(page, "2-backup");
  await page.getByRole("button", { name: "I have written them down" }).click();
  for (const input of await page.locator("input[data-word]").all()) {
    await input.fill(words[Number(await input.getAttribute("data-word"))]);
  }
  await page.getByRole("button", { name: "Done" }).click();
  await page.getByText("ready", { exact: true }).waitFor();
  return { page, words };
}

async function unlock(page) {
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.getByRole("button", { name: "Open wallet" }).click();
}

async function balance(page, text) {
  await page.getByTestId("balance").filter({ hasText: text }).waitFor();
}

async function section(page, name) {
  await page.getByRole("navigation").getByRole("button", { name }).click();
}

async function address(page) {
  await section(page, "Receive");
  const shown = page.getByTestId("address");
  await shown.filter({ hasText: /^bcrt1p/ }).waitFor();
  return shown.textContent();
}

async function pay(page, to, amount) {
  await section(page, "Send");
  await page.getByLabel("To", { exact: true }).fill(to);
  if (amount) await page.getByLabel("Amount").fill(amount);
  await page.getByRole("button", { name: /^Review/ }).click();
  await page.getByRole("button", { name: /^Pay / }).click();
}

async function paid(page) {
  await page.getByRole("heading", { name: /^Final/ }).waitFor();
  const txid = await page.getByTestId("txid").textContent();
  await page.getByRole("button", { name: "Send another" }).click();
  return txid;
}

test("two wallets pay each other in two tabs, and their payments are confirmed", { timeout: 4 * PATIENCE_MS }, async () => {
  const { page: alice } = await createWallet("alice", { shots: true });
  const { page: bob } = await createWallet("bob");
  await alice.getByRole("button", { name: /to play with/ }).click();
  await balance(alice, "1 000 000 sat");
  const to = await address(bob);
  await bob.getByLabel("Amount (optional)").fill("250000");
  await bob.getByRole("img", { name: /amount=0.0025/ }).waitFor();
  await shot(bob, "3-receive");
  await pay(alice, to, "250 000");
  const txid = await paid(alice);
  await balance(bob, "250 000 sat");
  await bob.getByText("250 000 sat received, final").waitFor();
  await section(alice, "Home");
  await shot(alice, "4-home");
  await alice.locator(`[data-txid="${txid}"]`).getByText(/confirmation/).waitFor();

  await pay(bob, `bitcoin:${await address(alice)}?amount=0.001`);
  await paid(bob);
  // It asks once whether the sheet was kept.
  const asked = bob.getByRole("region", { name: "Keep your backup" });
  await bob.getByRole("button", { name: "I have kept it" }).click();
  await asked.waitFor({ state: "detached" });
  await section(bob, "Home");
  assert.equal(await asked.count(), 0);
  await section(bob, "Settings");
  assert.match((await bob.getByTestId("descriptor").textContent()) ?? "", /^tr\(.*\)#[a-z0-9]{8}$/);
  await bob.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await bob.getByRole("button", { name: "Show the backup sheet" }).click();
  const sheet = (await bob.getByTestId("sheet").textContent()) ?? "";
  assert.match(sheet, /^words: {6}([a-z]+ ){11}[a-z]+$/m);
  assert.match(sheet, /^descriptor: tr\(.*\[[0-9a-f]{8}\/87'\/1'\/0'\].*\)#[a-z0-9]{8}$/m);
  assert.match((await bob.getByRole("link", { name: "Save as a file" }).getAttribute("href")) ?? "", /^data:text\/plain/);
  await shot(bob, "6-backup-sheet");
  await bob.getByRole("button", { name: "Hide" }).click();
  await bob.emulateMedia({ colorScheme: "dark" });
  await bob.setViewportSize({ width: 390, height: 844 });
  await shot(bob, "5-settings-dark-phone");
  await alice.close();
  await bob.close();
});

/** In the page: reloads it in the moment in which it first shows that a payment is saved. */
function reloadOnceSaved() {
  const observer = new MutationObserver(() => {
    if (!/Submitted|votes|sign|Final/.test(document.querySelector("section[role=status]")?.textContent ?? "")) return;
    observer.disconnect();
    location.reload();
  });
  observer.observe(document.body, { subtree: true, childList: true, characterData: true });
}

test("a payment goes on when the page is closed in the middle, and words restore a wallet", { timeout: 4 * PATIENCE_MS }, async () => {
  const { page, words } = await createWallet("carol");
  await page.getByRole("button", { name: /to play with/ }).click();
  await balance(page, "1 000 000 sat");
  const { page: other } = await createWallet("dave");
  const to = await address(other);
  await page.evaluate(reloadOnceSaved);
  await Promise.all([page.waitForEvent("load"), pay(page, to, "400000")]);
  await unlock(page);
  await balance(other, "400 000 sat");
  await page.getByText(/final|confirmation/).first().waitFor();
  await page.close();

  const again = await openPage(browser.context, `${devnet.site}/?wallet=carol-restored`, problems);
  await again.getByRole("button", { name: "I have twelve words" }).click();
  await again.getByLabel("Twelve words").fill(words.join(" "));
  await again.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await again.getByLabel("Password again").fill(PASSWORD);
  await again.getByRole("button", { name: "Restore" }).click();
  await balance(again, /^599\s/);
  await again.close();
  await other.close();
});

test("a second tab is told that the wallet is open, and a wrong password opens nothing", { timeout: 4 * PATIENCE_MS }, async () => {
  const { page } = await createWallet("erin");
  const second = await openPage(browser.context, `${devnet.site}/?wallet=erin`, problems);
  await unlock(second);
  await second.getByRole("alert").filter({ hasText: "open in another tab" }).waitFor();
  // Locked, it can be opened in either.
  await section(page, "Settings");
  await page.getByRole("button", { name: "Lock wallet" }).click();
  await page.getByRole("heading", { name: "Welcome back" }).waitFor();
  await page.close();
  await second.getByLabel("Password", { exact: true }).fill("wrong password");
  await second.getByRole("button", { name: "Open wallet" }).click();
  await second.getByRole("alert").filter({ hasText: "The password is wrong" }).waitFor();
  await unlock(second);
  await second.getByText("ready", { exact: true }).waitFor();

  // Nothing that is stored can be read: not the words, not an address, not a txid.
  await section(second, "Settings");
  await second.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await second.getByRole("button", { name: "Show the twelve words" }).click();
  await second.locator("ol.words").waitFor();
  const words = await second.locator("ol.words li").allTextContents();
  const stored = await second.evaluate(async () => {
    const [{ name }] = (await indexedDB.databases()).filter(({ name }) => name?.includes("erin"));
    const database = await new Promise((resolve, reject) => {
      const request = indexedDB.open(name);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    const objects = database.transaction("state").objectStore("state");
    const all = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
    const [keys, values] = await Promise.all([all(objects.getAllKeys()), all(objects.getAll())]);
    return JSON.stringify(keys) + values.map((value) => new TextDecoder().decode(value)).join("\n");
  });
  assert.ok(stored.length > 1000);
  for (const secret of [words.join(" "), words[0] + " " + words[1], "bcrt1", "coin/", devnet.federation]) {
    assert.ok(!stored.includes(secret), `${secret} is stored in the clear`);
  }
  await second.close();
});

test("the checkout verifies a payment by itself and shows the proof", { timeout: 4 * PATIENCE_MS }, async () => {
  const { page } = await createWallet("frank");
  await page.getByRole("button", { name: /to play with/ }).click();
  await balance(page, "1 000 000 sat");
  const shop = await openPage(browser.context, `${devnet.site}/checkout.html`, problems);
  await shop.getByRole("button", { name: "Open", exact: true }).click();
  await shop.getByRole("button", { name: /^Charge/ }).click();
  const uri = (await shop.getByTestId("uri").textContent()) ?? "";
  assert.match(uri, /^bitcoin:bcrt1p.*amount=0\.00021&/);
  await shot(shop, "6-checkout");
  await pay(page, uri);
  await shop.getByText(/verified in this browser in/).waitFor();
  await paid(page);
  await shop.getByText("The proof").click();
  const proof = JSON.parse((await shop.locator("pre").textContent()) ?? "");
  assert.equal(proof.kind, "enforced");
  await shot(shop, "7-paid");
  await shop.getByTestId("confirmations").filter({ hasText: "1 confirmation" }).waitFor();
  await shop.close();
  await page.close();
});

test("a wallet waits out a lost network and a bridge that starts again", { timeout: 6 * PATIENCE_MS }, async () => {
  const { page } = await createWallet("grace");
  await page.getByRole("button", { name: /to play with/ }).click();
  await balance(page, "1 000 000 sat");
  await devnet.stop();
  await page.getByText("offline", { exact: true }).waitFor();
  await balance(page, "1 000 000 sat");
  await shot(page, "8-offline");
  // The same federation and chain, the same bridge.
  const bridge = new URL(devnet.bridge).host;
  devnet = await startDevnet({ directory, bridge });
  await page.getByText("ready", { exact: true }).waitFor();
  await pay(page, await address(page), "1000");
  await paid(page);
  await page.close();
});

test("no page had an error of its own", () => {
  // What a browser says of a connection that is refused is not the page's error.
  assert.deepEqual(problems.filter((text) => !text.includes("WebSocket connection to")), []);
});
