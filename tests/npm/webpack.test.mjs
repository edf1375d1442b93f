// The README's code through webpack 5, with no configuration but its entry; a warning fails too.
import { execFileSync } from "node:child_process";
import { createReadStream, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { PATIENCE_MS, startAll, startBrowser, startDevnet } from "../browser/support.mjs";
import { emptyProject, pageThatPays, readmeCode } from "./support.mjs";

const BUILD = `
import webpack from "webpack";
// Of the module's size webpack would warn.
webpack({ mode: "production", entry: "./main.js", context: import.meta.dirname, performance: { hints: false } }, (error, stats) => {
  const problems = error ?? (stats.hasErrors() || stats.hasWarnings() ? stats.toString({ all: false, errors: true, warnings: true }) : undefined);
  if (problems) { console.error(problems); process.exit(1); }
});
`;
const TYPES = { js: "text/javascript", wasm: "application/wasm" };

test("a payment through webpack 5", { timeout: 4 * PATIENCE_MS }, async () => {
  const directory = mkdtempSync(join(tmpdir(), "quorate-webpack-"));
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    const file = join(directory, "dist", path);
    response.setHeader("content-type", TYPES[path.split(".").pop()] ?? "text/html");
    if (path === "/") response.end('<!doctype html><script src="main.js"></script>');
    else if (existsSync(file)) createReadStream(file).pipe(response);
    else response.writeHead(404).end();
  });
  let devnet, browser;
  try {
    [devnet, browser] = await startAll(startDevnet(), startBrowser());
    emptyProject(directory, "webpack@5");
    writeFileSync(join(directory, "main.js"), readmeCode(devnet));
    writeFileSync(join(directory, "build.js"), BUILD);
    execFileSync(process.execPath, ["build.js"], { cwd: directory, stdio: ["ignore", "ignore", "inherit"] });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    await pageThatPays(browser.context, `http://127.0.0.1:${server.address().port}/`);
  } finally {
    server.close();
    await browser?.stop();
    await devnet?.stop();
    rmSync(directory, { recursive: true, force: true });
  }
});
