import assert from 'node:assert/strict'
import { randomBytes, sign } from 'node:crypto'
import { describe, test } from 'node:test'
import { createIssuers } from '../../src/control/issuers.ts'
import { createPrincipals } from '../../src/control/principal.ts'
import { createRevocations } from '../../src/control/revocations.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import { newSerial, type Serial } from '../../src/core/x509/serial.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeRoot,
  NOW,
  OIDS,
  TRUST_DOMAIN,
} from '../support/certificates.ts'
import type { Authority } from '../support/certificates.ts'
import { newWireGuardKey } from './stage.ts'

const DAY_MS = 86_400_000
const later = (ms: number): Date => new Date(NOW.getTime() + ms)

function makeCrl(
  authority: Authority,
  number: bigint,
  serials: readonly Serial[] = [],
  options: { thisUpdate?: Date; nextUpdate?: Date; signer?: Authority } = {},
): Buffer {
  const signer = options.signer ?? authority
  const algorithm = signatureAlgorithmFor(signer.publicKey)
  const tbs = encodeTbsCertList({
    issuer: authority.certificate,
    thisUpdate: options.thisUpdate ?? NOW,
    nextUpdate: options.nextUpdate ?? later(DAY_MS),
    number,
    entries: Buffer.concat(serials.map((serial) => encodeCrlEntry({ serial, revokedAt: NOW, reason: 'superseded' }))),
    oids: OIDS,
  })
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, signer.privateKey))
}

function setUp() {
  const root = makeRoot()
  const deviceCa = makeDeviceCa(root)
  const issuers = createIssuers(root.certificate, OIDS)
  issuers.offer(deviceCa.certificate.der, NOW)
  const revocations = createRevocations(issuers)
  return { root, deviceCa, issuers, revocations }
}

describe('issuers', () => {
  test('only what verifies under the root enters, and once', () => {
    const { root, deviceCa, issuers } = setUp()
    assert.equal(issuers.offer(deviceCa.certificate.der, NOW), false)
    const stranger = makeDeviceCa(makeRoot())
    for (const [name, der] of [
      ['under another root', stranger.certificate.der],
      ['a leaf', makeDevice(deviceCa).der],
      ['the root itself', root.certificate.der],
      ['expired', makeDeviceCa(root, { notAfter: later(-1000) }).certificate.der],
      ['garbage', randomBytes(100)],
    ] as const) {
      assert.throws(() => issuers.offer(der, NOW), name)
    }
    assert.deepEqual(
      issuers.list(NOW).map((issuer) => issuer.fingerprint),
      [deviceCa.certificate.fingerprint],
    )
    assert.equal(issuers.list(later(DAY_MS * 4000)).length, 0)
  })
})

describe('revocations', () => {
  test('a CRL counts by its own number and signature, wherever it comes from', () => {
    const { root, deviceCa, revocations } = setUp()
    const [first, second] = [newSerial(randomBytes(20)), newSerial(randomBytes(20))]
    const { keyId } = deviceCa.certificate
    assert.equal(revocations.accept(makeCrl(deviceCa, 5n, [first]), NOW), 'accepted')
    assert.equal(revocations.accept(makeCrl(deviceCa, 4n, [second]), NOW), 'older')
    assert.equal(revocations.accept(makeCrl(deviceCa, 5n, [second]), NOW), 'held')
    assert.deepEqual([revocations.isRevoked(keyId, first), revocations.isRevoked(keyId, second)], [true, false])
    assert.equal(revocations.isRevoked(root.certificate.keyId, first), false)
    // Another CA of the same tenant's name, another root, the wrong signer, the future: nothing of it enters.
    const imposter = makeDeviceCa(makeRoot())
    for (const [name, der] of [
      ['of another root', makeCrl(imposter, 100n, [second])],
      ["under another CA's name", makeCrl(deviceCa, 100n, [second], { signer: imposter })],
      ['from the future', makeCrl(deviceCa, 100n, [second], { thisUpdate: later(600_000) })],
      ['garbage', randomBytes(200)],
    ] as const) {
      assert.throws(() => revocations.accept(der, NOW), name)
    }
    assert.equal(revocations.isRevoked(keyId, second), false)
    assert.equal(revocations.findCrl(keyId)?.number, 5n)
    // What was seen revoked stays so when a later list forgets it.
    assert.equal(revocations.accept(makeCrl(deviceCa, 6n, [second]), NOW), 'accepted')
    assert.deepEqual([revocations.isRevoked(keyId, first), revocations.isRevoked(keyId, second)], [true, true])
    assert.deepEqual([revocations.findFirstNumber(keyId, first), revocations.findFirstNumber(keyId, second)], [5n, 6n])
  })

  test('revoked is known even when the list has ended; not revoked is not', () => {
    const { deviceCa, revocations } = setUp()
    const { keyId } = deviceCa.certificate
    const [bad, good] = [newSerial(randomBytes(20)), newSerial(randomBytes(20))]
    assert.throws(() => revocations.requireNotRevoked({ serial: good }, keyId, NOW), { code: 'revocation_unknown' })
    revocations.accept(makeCrl(deviceCa, 1n, [bad], { nextUpdate: later(1000) }), NOW)
    revocations.requireNotRevoked({ serial: good }, keyId, later(1000))
    assert.throws(() => revocations.requireNotRevoked({ serial: good }, keyId, later(1001)), {
      code: 'revocation_unknown',
    })
    assert.throws(() => revocations.requireNotRevoked({ serial: bad }, keyId, later(1001)), {
      code: 'certificate_revoked',
    })
  })
})

describe('principals', () => {
  test('the cache proves a signature and nothing else, and is bounded', () => {
    const { root, deviceCa, issuers, revocations } = setUp()
    const infrastructureCa = makeInfrastructureCa(root)
    issuers.offer(infrastructureCa.certificate.der, NOW)
    for (const [authority, number] of [
      [root, 1n],
      [deviceCa, 1n],
      [infrastructureCa, 1n],
    ] as const) {
      revocations.accept(makeCrl(authority, number), NOW)
    }
    let now = NOW
    const principals = createPrincipals({
      ...{ issuers, revocations, oids: OIDS, trustDomain: TRUST_DOMAIN },
      now: () => now,
      maxCached: 2,
    })
    const device = makeDevice(deviceCa, { key: newWireGuardKey(), notAfter: later(60_000) })
    const first = principals.authenticate(device.der)
    assert.equal(principals.authenticate(Buffer.from(device.der)), first)
    for (let count = 0; count < 3; count += 1) {
      principals.authenticate(makeDevice(deviceCa, { key: newWireGuardKey() }).der)
    }
    const again = principals.authenticate(device.der)
    assert.notEqual(again, first)
    now = later(60_001)
    assert.throws(() => principals.authenticate(device.der), { code: 'certificate_expired' })
    assert.equal(principals.read(device.der), again)
    now = NOW
    revocations.accept(makeCrl(deviceCa, 2n, [device.serial]), NOW)
    assert.throws(() => principals.authenticate(device.der), { code: 'certificate_revoked' })
    assert.throws(() => principals.requireInForce(again), { code: 'certificate_revoked' })
  })

  test('before any issuing CA is known the answer is "try again", not "untrusted"', () => {
    const { root, deviceCa } = setUp()
    const issuers = createIssuers(root.certificate, OIDS)
    const revocations = createRevocations(issuers)
    const principals = createPrincipals({
      ...{ issuers, revocations, oids: OIDS, trustDomain: TRUST_DOMAIN, now: () => NOW },
    })
    assert.throws(() => principals.authenticate(makeDevice(deviceCa).der), { code: 'unavailable' })
  })
})
