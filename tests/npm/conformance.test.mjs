// Against independent implementations: FROST of @noble/curves, transactions and PSBTs of @scure/btc-signer.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { before, test } from "node:test";
import { schnorr, schnorr_FROST as noble } from "@noble/curves/secp256k1.js";
import { FrostGroup, FrostParty, QuorateError, frostAggregate, init } from "quorate";

const MESSAGE = new TextEncoder().encode("both sides sign this");

before(() => init());

/** A group of noble's, in the forms of both sides. */
function group(min, max) {
  const numbers = Array.from({ length: max }, (_, index) => index + 1);
  const identifiers = numbers.map((number) => noble.Identifier.fromNumber(number));
  const deal = noble.trustedDealer({ min, max }, identifiers);
  const key = deal.public.commitments[0];
  const verifyingShares = new Map(numbers.map((number, index) => [number, deal.public.verifyingShares[identifiers[index]]]));
  const parties = numbers.map((number, index) => {
    const secret = deal.secretShares[identifiers[index]];
    const party = new FrostParty({ identifier: number, secretShare: secret.signingShare, groupKey: key, threshold: min });
    return { number, identifier: identifiers[index], secret, party };
  });
  return { public: deal.public, key, parties, group: new FrostGroup({ key, threshold: min, verifyingShares }) };
}

/** Hands out given bytes as randomness. */
function from(bytes) {
  let at = 0;
  return (length = 32) => bytes.slice(at, (at += length));
}

for (const [min, max] of [[2, 3], [3, 4], [5, 7]]) {
  test(`FROST ${min} of ${max}: commitments, shares and signature are the same bytes on both sides`, () => {
    const made = group(min, max);
    const signers = made.parties.slice(max - min);
    const randomness = signers.map(() => new Uint8Array(randomBytes(64)));
    const ours = signers.map(({ party }, index) => party.commit(randomness[index]));
    const theirs = signers.map(({ secret }, index) => noble.commit(secret, from(randomness[index])));
    theirs.forEach(({ commitments }, index) => {
      assert.deepEqual(ours[index].hiding, commitments.hiding);
      assert.deepEqual(ours[index].binding, commitments.binding);
    });
    const list = theirs.map(({ commitments }) => commitments);
    const round = { message: MESSAGE, commitments: new Map(signers.map(({ number }, index) => [number, ours[index]])) };
    const shares = signers.map(({ secret, party }, index) => {
      const share = party.sign(round);
      assert.deepEqual(share, noble.signShare(secret, made.public, theirs[index].nonces, list, MESSAGE));
      return share;
    });
    const signature = frostAggregate(made.group, round, new Map(signers.map(({ number }, index) => [number, shares[index]])));
    const byIdentifier = Object.fromEntries(signers.map(({ identifier }, index) => [identifier, shares[index]]));
    assert.deepEqual(signature, noble.aggregate(made.public, list, MESSAGE, byIdentifier));
    assert.ok(schnorr.verify(signature, MESSAGE, made.key.slice(1)), "BIP340 under the group's x-only key");
  });
}

test("identifiers and shares that do not fit are refused, not cut", () => {
  const made = group(2, 3);
  const options = { secretShare: made.parties[0].secret.signingShare, groupKey: made.key, threshold: 2 };
  for (const identifier of [0, 65_537, 1.5]) {
    assert.throws(() => new FrostParty({ ...options, identifier }), (error) => error.code === "invalid_argument");
  }
  const short = new Map([[1, made.key.slice(1)], [2, made.key]]);
  assert.throws(() => new FrostGroup({ key: made.key, threshold: 2, verifyingShares: short }), (error) => error.code === "invalid_argument");
});

test("nonces sign once, and a wrong share names its party", () => {
  const made = group(2, 3);
  const signers = made.parties.slice(0, 2);
  const commitments = new Map(signers.map(({ number, party }) => [number, party.commit()]));
  const round = { message: MESSAGE, commitments };
  const shares = new Map(signers.map(({ number, party }) => [number, party.sign(round)]));
  assert.throws(() => signers[0].party.sign(round), (error) => error instanceof QuorateError && error.code === "nonces_used");
  shares.set(2, shares.get(1));
  assert.throws(() => frostAggregate(made.group, round, shares), (error) => error.code === "invalid_share" && /0002/.test(error.message));
});
