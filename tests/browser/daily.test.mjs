// The browser wallet as one lives with it: sections and the back button, units, what a payment was, errors that go, no network, another password, and the end.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { PATIENCE_MS, openPage, shot, startAll, startBrowser, startDevnet } from "./support.mjs";

const PASSWORD = "correct horse battery";
let devnet, browser, page, payee;
const problems = [];

before(async () => {
  [devnet, browser] = await startAll(startDevnet(), startBrowser());
  payee = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "payee" });
  await payee.ready();
  page = await openPage(browser.context, `${devnet.site}/?wallet=daily`, problems);
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.getByLabel("Password again").fill(PASSWORD);
  await page.getByRole("button", { name: "Create wallet" }).click();
  await page.getByTestId("words").waitFor();
  const words = await page.getByTestId("words").locator("li").allTextContents();
  await page.getByRole("button", { name: "I have written them down" }).click();
  for (const input of await page.locator("input[data-word]").all()) await input.fill(words[Number(await input.getAttribute("data-word"))]);
  await page.getByRole("button", { name: "Done" }).click();
  await page.getByText("ready", { exact: true }).waitFor();
  await page.getByRole("button", { name: "I have kept it" }).click();
  await page.getByRole("button", { name: /to play with/ }).click();
  await balance("1 000 000 sat");
});
after(async () => {
  await payee?.close();
  await browser?.stop();
  await devnet?.stop();
});

const balance = (text) => page.getByTestId("balance").filter({ hasText: text }).waitFor();
const section = (name) => page.getByRole("navigation").getByRole("button", { name }).click();

test("sections are in the browser's history, and whoever listens hears of the new one", { timeout: PATIENCE_MS }, async () => {
  await page.getByText("regtest", { exact: true }).waitFor();
  await section("Receive");
  await section("Send");
  assert.equal(new URL(page.url()).hash, "#send");
  await page.goBack();
  await page.getByTestId("address").waitFor();
  await page.goForward();
  await page.getByRole("form", { name: "Send" }).waitFor();
  assert.ok(await page.evaluate(() => document.activeElement?.contains(document.querySelector("form"))), "the section has the focus");
});

test("an error goes when what was wrong is changed", { timeout: PATIENCE_MS }, async () => {
  await section("Send");
  await page.getByLabel("To", { exact: true }).fill(await payee.nextAddress());
  await page.getByLabel("Amount").fill("5 000 000");
  await page.getByRole("button", { name: /^Review/ }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Amount").fill("10");
  await page.getByRole("alert").waitFor({ state: "detached" });
  await page.getByRole("button", { name: /^Review/ }).click();
  const second = await page.getByRole("alert").textContent();
  assert.match(second, /dust|too small|at least|worth/i, "it names the new cause");
  await page.getByLabel("Amount").fill("1000");
  await page.getByRole("alert").waitFor({ state: "detached" });
});

test("amounts in bitcoin", { timeout: PATIENCE_MS }, async () => {
  await section("Settings");
  await page.getByLabel("Amounts in").selectOption("BTC");
  await balance("0.01 BTC");
  await section("Send");
  await page.getByLabel("To", { exact: true }).fill(await payee.nextAddress());
  await page.getByLabel("Amount").fill("0,5");
  assert.ok(await page.getByRole("button", { name: "Review" }).isDisabled(), "a comma is no point");
  await page.getByLabel("Amount").fill("0.0025");
  await page.getByRole("button", { name: "Review 0.0025 BTC" }).click();
  await page.getByRole("button", { name: "Pay 0.0025 BTC" }).click();
  await page.getByRole("heading", { name: /^Final/ }).waitFor();
  await page.getByRole("button", { name: "Send another" }).click();
  await page.reload();
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.getByRole("button", { name: "Open wallet" }).click();
  await balance(/0\.0074\d* BTC/);
  await section("Settings");
  await page.getByLabel("Amounts in").selectOption("sat");
});

test("what a payment was, with a note and its proof", { timeout: PATIENCE_MS }, async () => {
  await section("Home");
  await page.getByRole("listitem").filter({ hasText: "Sent" }).getByRole("button", { name: "Sent" }).click();
  const details = page.getByRole("region", { name: "Payment" });
  await details.getByText(/^250.000 sat to$/).waitFor();
  await details.getByText("Fee", { exact: true }).waitFor();
  await details.getByRole("button", { name: "Copy proof" }).waitFor();
  await details.getByLabel("Note").fill("birthday of Ada");
  await details.getByRole("button", { name: "Save note" }).click();
  await details.getByRole("button", { name: "Save note" }).waitFor({ state: "detached" });
  await shot(page, "9-payment");
  await details.getByRole("button", { name: "Back" }).click();
  await page.getByRole("button", { name: "birthday of Ada" }).waitFor();
});

test("without a network it says so at once, and nothing is sent", { timeout: PATIENCE_MS }, async () => {
  await section("Send");
  await page.getByLabel("To", { exact: true }).fill(await payee.nextAddress());
  await page.getByLabel("Amount").fill("1000");
  await browser.context.setOffline(true);
  await page.getByText("offline", { exact: true }).waitFor();
  assert.ok(await page.getByRole("button", { name: /^Review/ }).isDisabled());
  await browser.context.setOffline(false);
  await page.getByText("ready", { exact: true }).waitFor();
});

test("another password, and the end", { timeout: PATIENCE_MS }, async () => {
  await section("Settings");
  await page.getByLabel("Present password").fill("wrong password");
  await page.getByLabel("New password").fill("a new password");
  await page.getByRole("button", { name: "Change password" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Present password").fill(PASSWORD);
  await page.getByRole("button", { name: "Change password" }).click();
  await page.getByText("The password was changed.").waitFor();
  await page.getByRole("button", { name: "Lock wallet" }).click();
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.getByRole("button", { name: "Open wallet" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Password", { exact: true }).fill("a new password");
  await page.getByRole("button", { name: "Open wallet" }).click();
  await page.getByRole("navigation").waitFor();
  await section("Settings");
  assert.ok(await page.getByRole("button", { name: "Erase" }).isDisabled());
  await page.getByLabel("Type erase").fill("erase");
  await page.getByRole("button", { name: "Erase" }).click();
  await page.getByRole("button", { name: "Create wallet" }).waitFor();
});

test("no page had an error of its own", () => {
  assert.deepEqual(problems.filter((text) => !/WebSocket connection to|ERR_INTERNET_DISCONNECTED/.test(text)), []);
});
