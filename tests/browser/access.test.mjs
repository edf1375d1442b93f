// Every page in both themes and two sizes, at 200 % text on a phone too: axe finds nothing, nothing is cut off, and a payment is made with the keyboard alone.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { PATIENCE_MS, openPage, shot, startAll, startBrowser, startDevnet } from "./support.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PASSWORD = "correct horse battery";
const SIZES = { desktop: { width: 900, height: 900 }, phone: { width: 360, height: 740 } };

let devnet, browser, payee, wallet;
const problems = [];

before(async () => {
  [devnet, browser] = await startAll(startDevnet(), startBrowser());
  payee = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "payee" });
  await payee.ready();
});
after(async () => {
  await payee?.close();
  await browser?.stop();
  await devnet?.stop();
});

/** Looks at a page as it stands: both themes, two sizes, large text. */
async function inspect(page, name) {
  for (const [size, viewport] of Object.entries(SIZES)) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await shot(page, `page-${name}-${size}-${colorScheme}`);
      await page.evaluate((axe) => globalThis.axe ?? (0, eval)(axe), AXE);
      const violations = await page.evaluate(async () => (await globalThis.axe.run()).violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`));
      assert.deepEqual(violations, [], `${name}, ${size}, ${colorScheme}`);
    }
  }
  // WCAG 1.4.4 and 1.4.10: twice the text, and no scrolling sideways.
  await page.evaluate(() => void (document.documentElement.style.fontSize = "200%"));
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await shot(page, `page-${name}-phone-large`);
  assert.ok(wide <= 0, `${name} is ${wide} pixels too wide with large text`);
  await page.evaluate(() => void (document.documentElement.style.fontSize = ""));
  await page.setViewportSize(SIZES.desktop);
}

/** Presses Tab until what has the focus has this name, as somebody without a mouse does. */
async function tabTo(page, name) {
  const focused = () => page.evaluate(() => {
    const one = document.activeElement;
    return [one?.textContent, one?.getAttribute("aria-label"), ...Array.from(one?.labels ?? [], (label) => label.textContent)].map((text) => text?.trim() ?? "");
  });
  for (let presses = 0; presses < 60; presses += 1) {
    if ((await focused()).some((text) => (typeof name === "string" ? text === name : name.test(text)))) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`no way to ${name} with the keyboard: ${await focused()}`);
}

test("a wallet from its making to its settings", { timeout: 6 * PATIENCE_MS }, async () => {
  wallet = await openPage(browser.context, `${devnet.site}/?wallet=access`, problems);
  await wallet.getByLabel("Password again").waitFor();
  await inspect(wallet, "welcome");
  await wallet.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await wallet.getByLabel("Password again").fill(PASSWORD);
  await wallet.getByRole("button", { name: "Create wallet" }).click();
  await wallet.getByTestId("words").waitFor();
  await inspect(wallet, "words");
  const words = await wallet.getByTestId("words").locator("li").allTextContents();
  await wallet.getByRole("button", { name: "I have written them down" }).click();
  await wallet.locator("input[data-word]").first().waitFor();
  await inspect(wallet, "words-asked");
  for (const input of await wallet.locator("input[data-word]").all()) await input.fill(words[Number(await input.getAttribute("data-word"))]);
  await wallet.getByRole("button", { name: "Done" }).click();
  await wallet.getByText("ready", { exact: true }).waitFor();
  await inspect(wallet, "home-empty");
  await wallet.getByRole("button", { name: "I have kept it" }).click();
  await wallet.getByRole("button", { name: /to play with/ }).click();
  await wallet.getByTestId("balance").filter({ hasText: "1 000 000 sat" }).waitFor();
  for (const name of ["Receive", "Send", "Settings"]) {
    await wallet.getByRole("navigation").getByRole("button", { name }).click();
    if (name === "Receive") await wallet.getByTestId("address").filter({ hasText: /^bcrt1p/ }).waitFor();
    await inspect(wallet, name.toLowerCase());
  }
});

test("a payment with the keyboard alone", { timeout: 4 * PATIENCE_MS }, async () => {
  const press = async (name) => {
    await tabTo(wallet, name);
    await wallet.keyboard.press("Enter");
  };
  await wallet.evaluate(() => document.activeElement?.blur());
  await press("Send");
  await tabTo(wallet, "To");
  await wallet.keyboard.insertText(await payee.nextAddress());
  await tabTo(wallet, "Amount");
  await wallet.keyboard.type("21 000");
  const review = wallet.getByRole("button", { name: /^Review/ });
  await review.and(wallet.locator(":enabled")).waitFor();
  await press(/^Review/);
  await wallet.getByRole("heading", { name: "Pay this?" }).waitFor();
  await inspect(wallet, "review");
  await press(/^Pay \d/);
  await wallet.getByRole("heading", { name: /^Final/ }).waitFor();
  await inspect(wallet, "final");
  await press("Send another");
  await press("Home");
  await press("Sent");
  await wallet.getByRole("region", { name: "Payment" }).getByRole("button", { name: "Copy proof" }).waitFor();
  await inspect(wallet, "payment");
  await press("Back");
  await wallet.getByRole("listitem").filter({ hasText: "Sent" }).waitFor();
  await inspect(wallet, "home");
  await wallet.close();
});

test("the till and the page for leaving", { timeout: 4 * PATIENCE_MS }, async () => {
  const till = await openPage(browser.context, `${devnet.site}/checkout.html`, problems);
  await till.getByRole("button", { name: "Open", exact: true }).waitFor();
  await inspect(till, "till-open");
  await till.getByRole("button", { name: "Open", exact: true }).click();
  await till.getByRole("button", { name: /^Charge/ }).waitFor();
  await inspect(till, "till-charge");
  await till.getByRole("button", { name: /^Charge/ }).click();
  await till.getByTestId("uri").waitFor();
  await inspect(till, "till-waiting");
  await till.getByRole("button", { name: "Sales" }).click();
  await till.getByRole("region", { name: "Sales" }).waitFor();
  await inspect(till, "till-sales");
  await till.close();
  const leaving = await openPage(browser.context, `${devnet.site}/recover.html`, problems);
  await leaving.getByRole("heading").first().waitFor();
  await inspect(leaving, "recover");
  await leaving.close();
});

test("no page had an error of its own", () => assert.deepEqual(problems, []));
