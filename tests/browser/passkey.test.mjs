// A wallet that a passkey unlocks, with an authenticator of the browser's own.
import assert from "node:assert/strict";
import { test } from "node:test";
import { PATIENCE_MS, servePackage, startAll, startBrowser, startDevnet } from "./support.mjs";

const AUTHENTICATOR = { protocol: "ctap2", ctap2Version: "ctap2_1", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true };

test("a passkey unlocks the wallet, and nothing else does", { timeout: 3 * PATIENCE_MS }, async () => {
  let devnet, browser, server;
  try {
    [devnet, browser, server] = await startAll(startDevnet(), startBrowser(), servePackage());
    const page = await browser.context.newPage();
    await page.goto(server.url);
    const cdp = await browser.context.newCDPSession(page);
    await cdp.send("WebAuthn.enable");
    const add = (hasPrf) => cdp.send("WebAuthn.addVirtualAuthenticator", { options: { ...AUTHENTICATOR, hasPrf } });

    // One that has no PRF extension cannot give a key, and says so.
    const { authenticatorId } = await add(false);
    const refused = await page.evaluate(async () => {
      const { createPasskey } = await import("/index.js");
      return createPasskey({ name: "alice", rpName: "test" }).then(() => "a key", ({ code }) => code);
    });
    assert.equal(refused, "passkey_unsupported");
    await cdp.send("WebAuthn.removeVirtualAuthenticator", { authenticatorId });

    await add(true);
    const said = await page.evaluate(
      async (connection) => {
        const { Wallet, createPasskey, passkeyKey } = await import("/index.js");
        const passkey = await createPasskey({ name: "alice", rpName: "test" });
        const wallet = await Wallet.create({ ...connection, name: "passkey", key: await passkeyKey(passkey) });
        const { id } = wallet.account;
        await wallet.close();
        const code = (opening) => opening.then(() => "opened", (error) => error.code);
        const wrong = [
          await code(Wallet.open({ name: "passkey", key: new Uint8Array(32) })),
          await code(Wallet.open({ name: "passkey", password: "a password" })),
        ];
        const again = await Wallet.open({ name: "passkey", key: await passkeyKey(passkey) });
        const same = again.account.id === id;
        await again.close();
        return { wrong, same };
      },
      { bridge: devnet.bridge, federation: devnet.federation },
    );
    assert.deepEqual(said, { wrong: ["wrong_password", "wrong_unlock"], same: true });
  } finally {
    server?.stop();
    await browser?.stop();
    await devnet?.stop();
  }
});
