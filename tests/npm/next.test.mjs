// The README's code in a Next application, built and served as for production. The page is rendered on the server too, where nothing is loaded.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { PATIENCE_MS, freePort, startAll, startBrowser, startDevnet } from "../browser/support.mjs";
import { emptyProject, pageThatPays, readmeCode } from "./support.mjs";

const LAYOUT = 'export default function Layout({ children }) { return <html lang="en"><body>{children}</body></html>; }';
const PAGE = `"use client";
import { useEffect } from "react";
import { useBalance } from "quorate/react";
import pay from "./pay.js";
export default function Page() {
  const balance = useBalance(undefined);
  useEffect(() => void pay(), []);
  return <p>{String(balance)}</p>;
}
`;

test("a payment in Next", { timeout: 6 * PATIENCE_MS }, async () => {
  const directory = mkdtempSync(join(tmpdir(), "quorate-next-"));
  const next = join(directory, "node_modules/next/dist/bin/next");
  const env = { ...process.env, NEXT_TELEMETRY_DISABLED: "1" };
  let devnet, browser, server;
  try {
    [devnet, browser] = await startAll(startDevnet(), startBrowser());
    emptyProject(directory, "next@16", "react@19", "react-dom@19");
    mkdirSync(join(directory, "app"));
    writeFileSync(join(directory, "app/layout.js"), LAYOUT);
    writeFileSync(join(directory, "app/page.js"), PAGE);
    const lines = readmeCode(devnet).split("\n");
    const [imports, rest] = [lines.filter((line) => line.startsWith("import ")), lines.filter((line) => !line.startsWith("import "))];
    writeFileSync(join(directory, "app/pay.js"), `${imports.join("\n")}\nexport default async function pay() {\n${rest.join("\n")}\n}\n`);
    execFileSync(process.execPath, [next, "build"], { cwd: directory, env, stdio: ["ignore", "ignore", "inherit"] });
    const port = await freePort();
    server = spawn(process.execPath, [next, "start", "-p", String(port), "-H", "127.0.0.1"], { cwd: directory, env, stdio: ["ignore", "pipe", "inherit"] });
    await new Promise((started, failed) => {
      server.once("exit", (code) => failed(new Error(`next ended with ${code}`)));
      server.stdout.setEncoding("utf8").on("data", (text) => text.includes("Ready") && started());
    });
    await pageThatPays(browser.context, `http://127.0.0.1:${port}/`);
  } finally {
    server?.removeAllListeners("exit").kill();
    await browser?.stop();
    await devnet?.stop();
    rmSync(directory, { recursive: true, force: true });
  }
});
