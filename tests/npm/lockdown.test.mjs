// A browser in Lockdown Mode has no WebAssembly.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

test("without WebAssembly every entry loads, and what needs it says so by a code", () => {
  const code = `
    delete globalThis.WebAssembly;
    const codes = [];
    const note = (error) => codes.push(error.code);
    const { Wallet, init } = await import("quorate");
    const { init: initVerifier } = await import("quorate/verify");
    const recover = await import("quorate/recover");
    await init().catch(note);
    await initVerifier().catch(note);
    await recover.init().catch(note);
    await Wallet.create({ bridge: "ws://127.0.0.1:1", federation: "00".repeat(32), storage: "memory" }).catch(note);
    process.stdout.write(JSON.stringify(codes));`;
  const told = execFileSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(told), Array(4).fill("webassembly_unavailable"));
});
