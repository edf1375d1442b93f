// A wallet as one file: everything that words do not restore.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { readBackup, writeBackup } from "../../wasm/js/dist/backup.js";
import { startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

const FILE = { password: "of the file" };

let devnet, directory;
before(async () => {
  devnet = await startDevnet();
  directory = mkdtempSync(join(tmpdir(), "quorate-backup-"));
});
after(async () => {
  rmSync(directory, { recursive: true, force: true });
  await devnet?.stop();
});

const coded = (code) => (error) => error.code === code || assert.fail(`${error.code}: ${error.message}`);

test("what is written is read, and what is not what was written is refused", async () => {
  const values = new Map([
    ["config", new Uint8Array([1, 2, 3])],
    ["", new Uint8Array()],
    ["ü", new Uint8Array(70_000).fill(7)],
  ]);
  const key = { key: new Uint8Array(32).fill(5) };
  for (const unlock of [FILE, key]) {
    const file = await writeBackup(values, unlock);
    assert.deepEqual(await readBackup(file, unlock), values);
    assert.deepEqual(await readBackup(new Uint8Array([9, ...file]).subarray(1), unlock), values, "wherever it lies in memory");
  }
  assert.deepEqual(await readBackup(await writeBackup(new Map(), key), key), new Map());

  const file = await writeBackup(values, key);
  await assert.rejects(readBackup(file, { key: new Uint8Array(32) }), coded("wrong_password"));
  await assert.rejects(readBackup(file, FILE), coded("wrong_unlock"));
  // Each byte counts, and each cut.
  for (let at = 0; at < file.length; at += at < 600 ? 1 : 1_000) {
    const other = file.slice();
    other[at] ^= 1;
    await assert.rejects(readBackup(other, key), (error) => ["invalid_backup", "wrong_password", "wrong_unlock"].includes(error.code), `byte ${at}`);
    await assert.rejects(readBackup(file.subarray(0, at), key), coded("invalid_backup"), `cut at ${at}`);
  }
  await assert.rejects(readBackup(new TextEncoder().encode("word ".repeat(12)), key), coded("invalid_backup"));
});

test("a wallet goes on from its file on another device, with what words do not restore", { timeout: 120_000 }, async () => {
  const connection = { bridge: devnet.bridge, federation: devnet.federation };
  const first = { directory, name: "first", password: "of the device" };
  const wallet = await Wallet.create({ ...connection, ...first });
  await wallet.ready();
  const words = await wallet.revealWords(first);
  await fund(devnet, await wallet.unusedAddress(), 500_000);
  await spendable(wallet, 500_000n);
  const shop = await Wallet.create({ ...connection, storage: "memory", name: "shop" });
  await shop.ready();
  const to = await shop.nextAddress();
  const paid = await wallet.pay({ to, amount: 100_000n, idempotencyKey: "order 1" });
  await wallet.setLabel({ type: "tx", ref: paid.txid, label: "rent" });
  const [coin] = await wallet.coins();
  await wallet.freeze(coin.outpoint);
  // Shown to a payer who has not paid.
  const shown = await wallet.nextAddress();

  await assert.rejects(wallet.backupFile(FILE, { password: "wrong" }), coded("wrong_password"));
  await assert.rejects(wallet.backupFile({}, { password: "of the device" }), coded("invalid_argument"));
  const file = await wallet.backupFile(FILE, { password: "of the device" });
  for (const secret of [words, paid.txid]) assert.ok(!Buffer.from(file).includes(secret), "nothing is in the clear");
  await wallet.close();

  const second = { directory, name: "second", key: new Uint8Array(32).fill(3) };
  await assert.rejects(Wallet.restore({ ...second, file, fileUnlock: { password: "of the device" } }), coded("wrong_password"));
  await assert.rejects(Wallet.restore({ ...second, file: file.subarray(0, 900), fileUnlock: FILE }), coded("invalid_backup"));
  await assert.rejects(Wallet.restore({ ...second, file: "text", fileUnlock: FILE }), coded("invalid_argument"));
  assert.equal(await Wallet.exists(second), false, "nothing is left behind");
  const restored = await Wallet.restore({ ...second, file, fileUnlock: FILE });
  // Before it has heard of anything.
  assert.equal((await restored.history()).find(({ txid }) => txid === paid.txid)?.label, "rent");
  assert.equal((await restored.coins()).find(({ outpoint }) => outpoint === coin.outpoint)?.frozen, true);
  assert.ok((await restored.proof(paid.txid)) !== undefined);
  assert.notEqual(await restored.nextAddress(), shown, "once it is synced");
  assert.equal(await restored.connection(), "ready");
  const again = await restored.pay({ to, amount: 100_000n, idempotencyKey: "order 1" });
  assert.equal(again.txid, paid.txid, "not a second time");
  await assert.rejects(restored.revealWords(first), coded("wrong_unlock"));
  assert.equal(await restored.revealWords({ key: second.key }), words);
  await restored.unfreeze(coin.outpoint);
  assert.equal((await restored.pay({ to, amount: 50_000n })).finality, "enforced");
  await assert.rejects(Wallet.restore({ ...second, file, fileUnlock: FILE }), coded("wallet_in_use"));
  await restored.close();
  await assert.rejects(Wallet.restore({ ...second, file, fileUnlock: FILE }), coded("wallet_exists"));
  const opened = await Wallet.open(second);
  assert.equal((await opened.history()).length, 3, "from now on it is kept here");
  await opened.close();

  const watching = await Wallet.watch({ ...connection, record: shop.account.record });
  await assert.rejects(watching.backupFile(FILE), coded("watch_only"));
  await Promise.all([watching.close(), shop.close()]);
});
