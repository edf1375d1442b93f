// Every code of an error is in the type, and the README says of each what to do.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const found = (text, pattern) => [...text.matchAll(pattern)].map(([, code]) => code);
const read = (...path) => readFileSync(join(...path), "utf8");
const named = new Set(found(read("wasm/js/src/codes.ts"), /\| "([a-z_]+)"/g));

test("what the engine says is in the type", () => {
  const said = ["sdk/src/wallet/error.rs", "sdk/src/client/error.rs", "sdk/src/recovery/error.rs"].flatMap((file) => found(read(file), /=> "([a-z_]+)",/g));
  const bindings = readdirSync("wasm/src").filter((file) => file.endsWith(".rs"));
  said.push(...bindings.flatMap((file) => found(read("wasm/src", file), /Failure::new\(\s*"([a-z_]+)"/g)));
  assert.ok(said.length > 50, `${said.length} are few`);
  assert.deepEqual(said.filter((code) => !named.has(code)), []);
});

test("the README says of each what to do", () => {
  const told = new Set(found(read("wasm/js/README.md"), /`([a-z_]+)`/g));
  assert.deepEqual([...named].filter((code) => !told.has(code)), []);
});
