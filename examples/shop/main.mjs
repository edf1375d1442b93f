// `npm run shop`: all that a shop is, with play money. Starts a devnet, a wallet of the owner, the invoice server that watches its account, and the shop.
//
// In earnest the four are apart: the owner's wallet is on the owner's phone, the invoice server has its record and no key, and the federation is not yours.
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { spawn } from "node:child_process";
import webPush from "web-push";
import { Wallet } from "quorate";
import { InvoiceServer } from "quorate/server";
import { startShop } from "./shop.mjs";

const devnetProgram = process.env.QUORATE_DEVNET;
const directory = process.env.SHOP_DIRECTORY ?? "target/shop";
if (devnetProgram === undefined) throw new Error("QUORATE_DEVNET has to be the path of quorate-devnet; `npm run shop` sets it");
mkdirSync(directory, { recursive: true, mode: 0o700 });

/** Made once, and kept for nobody else to read. */
function secrets() {
  const path = join(directory, "secrets.json");
  if (!existsSync(path)) {
    const made = { password: randomBytes(24).toString("hex"), token: randomBytes(24).toString("hex"), secret: `whsec_${randomBytes(32).toString("base64")}`, push: webPush.generateVAPIDKeys() };
    writeFileSync(path, JSON.stringify(made), { mode: 0o600 });
  }
  return JSON.parse(readFileSync(path, "utf8"));
}

/** Starts the devnet; gives its addresses. */
async function startDevnet() {
  const child = spawn(devnetProgram, ["--data-dir", join(directory, "devnet"), ...process.argv.slice(2)], { stdio: ["ignore", "pipe", "inherit"] });
  const said = await new Promise((resolve, reject) => {
    let text = "";
    child.once("exit", (code) => reject(new Error(`the devnet ended with ${code}: ${text}`)));
    child.stdout.setEncoding("utf8").on("data", (more) => {
      process.stdout.write(more);
      text += more;
      if (text.includes("Stop with Ctrl-C")) resolve(text);
    });
  });
  child.removeAllListeners("exit");
  const find = (pattern) => said.match(pattern)?.[1] ?? "";
  return { child, bridge: find(/bridge +(ws:\S+)/), federation: find(/id ([0-9a-f]{64})/) };
}

const { password, token, secret, push } = secrets();
/** What is open, to be closed in the other order, however it ends. */
const open = [];
try {
  const { child, bridge, federation } = await startDevnet();
  open.push(() => void child.kill("SIGTERM"));
  const gone = new Promise((_, reject) => child.once("exit", (code) => reject(new Error(`the devnet has ended with ${code}`))));
  gone.catch(() => undefined);
  const kept = { directory: join(directory, "owner"), name: federation, password };
  // Its owner's wallet gives out addresses, too.
  const till = (number) => ({ number, of: 2 });
  const owner = (await Wallet.exists(kept)) ? await Wallet.open({ ...kept, bridge }) : await Wallet.create({ ...kept, bridge, federation, till: till(0) });
  open.push(() => owner.close());
  const port = Number(process.env.SHOP_PORT ?? 8_491);
  const server = await InvoiceServer.start({
    ...{ bridge, federation, record: owner.account.record, database: join(directory, `${federation}.sqlite`), password, token, port: Number(process.env.SHOP_SERVER_PORT ?? 8_490) },
    webhooks: [{ url: `http://127.0.0.1:${port}/paid`, secrets: [secret] }],
    till: till(1),
  });
  open.push(() => server.close());
  const shop = await startShop({ server: server.url, token, federation, secret, directory, port, push: { subject: "mailto:shop@example.com", ...push } });
  open.push(() => shop.close());
  console.log(`\n  shop             ${shop.url}/\n  invoice server   ${server.url}/v1/status   (Authorization: Bearer ${join(directory, "secrets.json")}: token)\n\nOpen the shop, and pay with the wallet above. Stop with Ctrl-C.`);
  const ending = new Promise((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, resolve);
  });
  await Promise.race([ending, gone, server.ended()]);
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  for (const close of open.reverse()) await close();
}
