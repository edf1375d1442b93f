import { QuorateError } from "./errors.js";

/** What the passkey's secret is for; another wallet of the same passkey needs another text. */
const PURPOSE = "quorate wallet unlock 1";

/**
 * Makes a passkey that can unlock a wallet, in browsers and with authenticators that have the PRF extension of WebAuthn (level 3). Gives its id, which
 * is not secret, for {@link passkeyKey}.
 *
 * @throws {@link QuorateError} `passkey_unsupported` if browser or authenticator cannot do it: use a password then.
 *
 * @example
 * ```ts no-run
 * import { createPasskey, passkeyKey, Wallet } from "quorate";
 * const id = await createPasskey({ name: "alice", rpName: "My wallet" });
 * const wallet = await Wallet.create({ bridge: "wss://bridge.example", federation: "…", key: await passkeyKey(id) });
 * ```
 */
export async function createPasskey(options: { name: string; rpName: string }): Promise<Uint8Array> {
  const user = { id: crypto.getRandomValues(new Uint8Array(16)), name: options.name, displayName: options.name };
  const made = await ask(() =>
    navigator.credentials.create({
      publicKey: {
        rp: { name: options.rpName },
        user,
        challenge: crypto.getRandomValues(new Uint8Array(32)),
        pubKeyCredParams: [{ type: "public-key", alg: -7 }, { type: "public-key", alg: -257 }],
        authenticatorSelection: { residentKey: "preferred", userVerification: "required" },
        extensions: { prf: {} },
      },
    }),
  );
  if (made.getClientExtensionResults().prf?.enabled !== true) throw unsupported();
  return new Uint8Array(made.rawId);
}

/**
 * Asks a passkey for the key of a wallet. The user confirms it; the same passkey always gives the same 32 bytes.
 *
 * @param id - What {@link createPasskey} gave.
 */
export async function passkeyKey(id: Uint8Array): Promise<Uint8Array> {
  const salt = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(PURPOSE)));
  const shown = await ask(() =>
    navigator.credentials.get({
      publicKey: {
        challenge: crypto.getRandomValues(new Uint8Array(32)),
        allowCredentials: [{ type: "public-key", id: new Uint8Array(id) }],
        userVerification: "required",
        extensions: { prf: { eval: { first: salt } } },
      },
    }),
  );
  const secret = shown.getClientExtensionResults().prf?.results?.first;
  if (secret === undefined) throw unsupported();
  return secret instanceof ArrayBuffer ? new Uint8Array(secret) : new Uint8Array(secret.buffer, secret.byteOffset, secret.byteLength).slice();
}

async function ask(run: () => Promise<Credential | null>): Promise<PublicKeyCredential> {
  if (typeof PublicKeyCredential === "undefined") throw unsupported();
  let credential: Credential | null;
  try {
    credential = await run();
  } catch (cause) {
    throw new QuorateError("passkey_refused", "the passkey was not confirmed", { retryable: true, cause });
  }
  if (!(credential instanceof PublicKeyCredential)) throw unsupported();
  return credential;
}

function unsupported(): QuorateError {
  return new QuorateError("passkey_unsupported", "this browser or authenticator gives no key (WebAuthn PRF); use a password");
}
