// The checkout as a merchant has it for a day: sales that survive the page, that are paid in part, too late or not at all, and the books.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { PATIENCE_MS, openPage, shot, startAll, startBrowser, startDevnet } from "./support.mjs";
import { fund, spendable } from "../npm/support.mjs";

let devnet, browser, owner, payer;
const problems = [];

before(async () => {
  [devnet, browser] = await startAll(startDevnet(), startBrowser());
  const connection = { bridge: devnet.bridge, federation: devnet.federation, storage: "memory" };
  [owner, payer] = await Promise.all(["owner", "customer"].map((name) => Wallet.create({ ...connection, name })));
  await Promise.all([owner.ready(), payer.ready()]);
  for (let coin = 0; coin < 4; coin += 1) await fund(devnet, await payer.nextAddress(), 500_000);
  await spendable(payer, 2_000_000n);
});
after(async () => {
  await Promise.all([owner?.close(), payer?.close()]);
  await browser?.stop();
  await devnet?.stop();
});

/** Begins a sale; gives the link that the customer scans. */
async function charge(page, amount) {
  await page.getByRole("button", { name: "New sale" }).click();
  await page.getByLabel("Amount").fill(amount);
  await page.getByRole("button", { name: /^Charge/ }).click();
  return page.getByTestId("uri").textContent();
}

const payTo = async (uri, amount) => {
  const { address, amount: asked } = await payer.parseDestination(uri);
  await payer.pay({ to: address, amount: amount ?? asked });
};

test("a day with the till of an owner who is elsewhere", { timeout: 4 * PATIENCE_MS }, async () => {
  const page = await openPage(browser.context, `${devnet.site}/checkout.html`, problems);
  await page.getByLabel("Account record").fill(owner.account.record);
  await page.getByRole("button", { name: "Open", exact: true }).click();
  const first = await charge(page, "12 000");
  await page.reload();
  assert.equal(await page.getByTestId("uri").textContent(), first, "the page was loaded again, and the sale goes on");
  await payTo(first, 5_000n);
  await page.getByRole("heading", { name: /^7.000 sat$/ }).waitFor();
  const rest = await page.getByTestId("uri").textContent();
  assert.match(rest, /amount=0\.00007$/);
  await shot(page, "till-partial");
  await payTo(rest);
  await page.getByRole("heading", { name: /12.000 sat paid/ }).waitFor();
  await page.getByRole("button", { name: "Next sale" }).click();

  const cancelled = await charge(page, "8 000");
  await page.getByRole("button", { name: "Cancel" }).click();
  await payTo(cancelled);
  await page.getByRole("button", { name: "Sales" }).click();
  await page.getByText("late", { exact: true }).waitFor();
  await shot(page, "till-sales");
  const over = await charge(page, "3 000");
  await payTo(over, 3_500n);
  await page.getByRole("heading", { name: /3.500 sat paid, and more/ }).waitFor();
  await page.getByRole("button", { name: "Sales" }).click();

  // The owner pays back what came too late, and the till notes it.
  await page.getByRole("listitem").filter({ hasText: "late" }).getByRole("button").click();
  await page.getByRole("heading", { name: /8.000 sat to pay back/ }).waitFor();
  await spendable(owner, 8_000n);
  const { txid } = await owner.pay({ to: await payer.nextAddress(), amount: 8_000n });
  await page.getByLabel("Transaction (txid)").fill("no txid");
  await page.getByRole("button", { name: "It was paid back" }).click();
  await page.getByRole("alert").filter({ hasText: "64 hex digits" }).waitFor();
  await page.getByLabel("Transaction (txid)").fill(txid);
  await page.getByRole("button", { name: "It was paid back" }).click();
  await page.getByRole("heading", { name: /paid back/ }).waitFor();
  await shot(page, "till-refunded");

  await page.getByRole("button", { name: "Sales" }).click();
  await page.getByRole("heading", { name: /15.500 sat taken/ }).waitFor();
  const [saved] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as CSV" }).click()]);
  const rows = readFileSync(await saved.path(), "utf8").trim().split("\r\n").slice(1).map((line) => line.split(",").slice(1, 2)[0]);
  assert.deepEqual(rows, ["paid", "refunded", "overpaid"]);
  await page.getByRole("button", { name: "Close the till" }).click();
  await page.getByRole("heading", { name: "Open the till" }).waitFor();
  await page.close();
});

test("a till with a wallet of its own pays back by itself", { timeout: 4 * PATIENCE_MS }, async () => {
  const page = await openPage(browser.context, `${devnet.site}/checkout.html`, problems);
  await page.getByRole("button", { name: "Open", exact: true }).click();
  const uri = await charge(page, "20 000");
  await payTo(uri, 45_000n);
  await page.getByRole("heading", { name: /45.000 sat paid, and more/ }).waitFor();
  await page.getByLabel("Customer's address").fill("bcrt1none");
  await page.getByRole("button", { name: "Pay back" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Customer's address").fill(await payer.nextAddress());
  await page.getByRole("button", { name: "Pay back" }).click();
  await page.getByRole("form", { name: "Pay back" }).waitFor({ state: "detached" });
  await page.close();
});

test("no page had an error of its own", () => assert.deepEqual(problems, []));
