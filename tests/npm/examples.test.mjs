// Every example of the package's documentation compiles against its types; those that need no federation run as well. (The five minutes of the README are
// run by the tests of the bundlers.)
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";

/** What examples may take for granted. */
const GIVEN = `
declare global {
  type Wallet = import("quorate").Wallet;
  const wallet: import("quorate").Wallet, signal: AbortSignal;
  const bridge: string, federation: string, password: string;
  const documentJson: string, proofJson: string, id: string, proof: string, sheet: string, words: string;
}
export {};
`;
const OPTIONS = {
  strict: true,
  noEmit: true,
  target: "esnext",
  lib: ["esnext", "dom", "dom.asynciterable"],
  module: "esnext",
  moduleResolution: "bundler",
  jsx: "react-jsx",
  types: [],
  skipLibCheck: true,
  noImplicitAny: false,
};
let directory, examples;

/** Fenced code in comments and Markdown: its language, what is said behind it, and the code. */
function blocks(file) {
  const text = readFileSync(file, "utf8").replaceAll(/^ *\* ?/gm, (mark) => (file.endsWith(".md") ? mark : ""));
  return [...text.matchAll(/```(tsx?|js)( no-run)?\n([^]*?)```/g)].map(([, language, skip, code = ""]) => ({ file, language, runs: skip === undefined && !file.endsWith(".md"), code }));
}

before(() => {
  directory = mkdtempSync(join(tmpdir(), "quorate-examples-"));
  symlinkSync(resolve("node_modules"), join(directory, "node_modules"));
  mkdirSync(join(directory, "src"));
  const sources = ["wasm/js/src", "wasm/js/src/server"].flatMap((folder) => readdirSync(folder).filter((name) => name.endsWith(".ts")).map((name) => `${folder}/${name}`));
  examples = [...sources, "wasm/js/README.md"].flatMap(blocks);
  examples.forEach((example, index) => {
    const extension = example.language === "js" ? "ts" : example.language;
    example.name = `${String(index).padStart(2, "0")}.${extension}`;
    writeFileSync(join(directory, "src", example.name), `${example.code}\nexport {};\n`);
  });
  writeFileSync(join(directory, "src/given.d.ts"), GIVEN);
  writeFileSync(join(directory, "package.json"), JSON.stringify({ private: true, type: "module" }));
  writeFileSync(join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions: OPTIONS, include: ["src"] }));
});
after(() => rmSync(directory, { recursive: true, force: true }));

test("examples compile", () => {
  assert.ok(examples.length >= 12, `${examples.length} examples`);
  try {
    execFileSync(process.execPath, [resolve("node_modules/typescript/bin/tsc"), "-p", directory], { encoding: "utf8" });
  } catch ({ stdout }) {
    const where = examples.map(({ name, file }) => `${name} is of ${file}`);
    assert.fail(`${stdout}\n${where.join("\n")}`);
  }
});

test("and run, where they need nothing", () => {
  const runnable = examples.filter(({ runs }) => runs);
  assert.ok(runnable.length >= 3, `${runnable.length} run`);
  for (const { code, file } of runnable) {
    const script = join(directory, "run.mjs");
    // Imports come first wherever they stand; `console.assert` alone would only tell.
    writeFileSync(script, `console.assert = (held) => { if (!held) throw new Error("an example of ${file} does not hold"); };\n${code}`);
    execFileSync(process.execPath, [script], { cwd: directory, stdio: ["ignore", "inherit", "inherit"] });
  }
});
