import assert from 'node:assert/strict'
import { sign } from 'node:crypto'
import { describe, test } from 'node:test'
import { encodeJws } from '../../../src/core/messages/jws.ts'
import {
  NETWORK_DOCUMENT_TYPE,
  encodeNetworkDocument,
  requireNotOlder,
  verifyNetworkDocument,
} from '../../../src/core/messages/network-document.ts'
import { networkSettingsSchema } from '../../../src/core/messages/network.ts'
import type { NetworkDocument } from '../../../src/core/messages/network.ts'
import { formatPrefix } from '../../../src/core/ipam/prefix.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import {
  NOW,
  OIDS,
  TRUST_DOMAIN,
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
} from '../../support/certificates.ts'
import type { Authority } from '../../support/certificates.ts'

const DAY_MS = 86_400_000
const root = makeRoot()
const infrastructure = makeInfrastructureCa(root)
const keys = newKeyPair()
const authority = makeInfrastructureLeaf(infrastructure, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`, {
  publicKey: keys.publicKey,
})

const DOCUMENT: NetworkDocument = {
  ...networkSettingsSchema.parse({
    pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
    keyPrefix: 'fd00:0:0:ff::/64',
    reserved: ['10.88.0.0/28'],
    routes: ['10.1.0.0/16'],
    dns: { servers: ['10.88.0.1'], search: ['corp.example'] },
  }),
  trustDomain: TRUST_DOMAIN,
  number: 7,
  issuedAt: NOW.toISOString(),
}

const signWith = (document: unknown, leaf: Certificate = authority, issuer: Authority = infrastructure) =>
  encodeJws({
    payload: Buffer.from(typeof document === 'string' ? document : JSON.stringify(document)),
    typ: NETWORK_DOCUMENT_TYPE,
    certificates: [leaf.der, issuer.certificate.der],
    sign: (data) => sign('sha256', data, keys.privateKey),
  })
const verify = (jws: string, more: Partial<Parameters<typeof verifyNetworkDocument>[0]> = {}) =>
  verifyNetworkDocument({ jws, root: root.certificate, now: NOW, oids: OIDS, trustDomain: TRUST_DOMAIN, ...more })

test('a document by the authority verifies and reads back typed', async () => {
  const jws = await encodeNetworkDocument({
    document: DOCUMENT,
    certificates: [authority.der, infrastructure.certificate.der],
    sign: (data) => sign('sha256', data, keys.privateKey),
  })
  const verified = verify(jws)
  assert.deepEqual(verified.document, DOCUMENT)
  assert.equal(verified.jws, jws)
  assert.equal(verified.signer.role, 'authority')
  assert.deepEqual(verified.pools.map(formatPrefix), ['10.88.0.0/16', 'fd00:0:0:1::/64'])
  assert.deepEqual(verified.reserved.map(formatPrefix), ['10.88.0.0/28'])
  assert.deepEqual(verified.routes.map(formatPrefix), ['10.1.0.0/16'])
  assert.equal(formatPrefix(verified.keyPrefix), 'fd00:0:0:ff::/64')
})

test('what is signed is canonical whatever was given', async () => {
  const jws = await encodeNetworkDocument({
    document: { ...DOCUMENT, pools: ['FD00:0:0:1:0::/64', '10.88.0.0/16'], reserved: ['10.88.0.3', '10.88.0.1'] },
    certificates: [authority.der, infrastructure.certificate.der],
    sign: (data) => sign('sha256', data, keys.privateKey),
  })
  const { document } = verify(jws)
  assert.deepEqual(document.pools, ['10.88.0.0/16', 'fd00:0:0:1::/64'])
  assert.deepEqual(document.reserved, ['10.88.0.1/32', '10.88.0.3/32'])
})

describe('who may sign', () => {
  test('a document outlives the certificate that signed it', async () => {
    const jws = await signWith(DOCUMENT)
    const later = new Date(NOW.getTime() + 100 * DAY_MS)
    assert.ok(authority.notAfter < later)
    assert.equal(verify(jws, { now: later }).document.number, 7)
  })

  test('an expired certificate signs nothing new', async () => {
    const late = new Date(authority.notAfter.getTime() + 1000)
    const jws = await signWith({ ...DOCUMENT, issuedAt: late.toISOString() })
    assert.throws(() => verify(jws, { now: late }), { code: 'certificate_expired' })
  })

  test('a document from before its certificate', async () => {
    const early = new Date(authority.notBefore.getTime() - 1000)
    const jws = await signWith({ ...DOCUMENT, issuedAt: early.toISOString() })
    assert.throws(() => verify(jws), { code: 'certificate_expired' })
  })

  for (const role of ['operator-admin', 'operator-security', 'server'] as const) {
    test(`not ${role}`, async () => {
      const name = role === 'server' ? 'server/s1' : 'operator/alice'
      const leaf = makeInfrastructureLeaf(infrastructure, role, `spiffe://${TRUST_DOMAIN}/${name}`, {
        publicKey: keys.publicKey,
      })
      const jws = await signWith(DOCUMENT, leaf)
      assert.throws(() => verify(jws), { code: 'bad_client_certificate' })
    })
  }

  test('not a device', async () => {
    const deviceCa = makeDeviceCa(root)
    const jws = await signWith(DOCUMENT, makeDevice(deviceCa, { publicKey: keys.publicKey }), deviceCa)
    assert.throws(() => verify(jws), { code: 'bad_client_certificate' })
  })

  test('not an authority made by a device CA', async () => {
    const deviceCa = makeDeviceCa(root)
    const leaf = makeInfrastructureLeaf(deviceCa, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`, {
      publicKey: keys.publicKey,
    })
    const jws = await signWith(DOCUMENT, leaf, deviceCa)
    assert.throws(() => verify(jws), { code: 'certificate_untrusted' })
  })

  test('not an authority under another root', async () => {
    const jws = await signWith(DOCUMENT)
    assert.throws(() => verify(jws, { root: makeRoot().certificate }), { code: 'certificate_untrusted' })
  })

  test('not a revoked one', async () => {
    const jws = await signWith(DOCUMENT)
    const isRevoked = (serial: string, issuerKeyId: string) =>
      serial === authority.serial && issuerKeyId === infrastructure.certificate.keyId
    assert.throws(() => verify(jws, { isRevoked }), { code: 'certificate_revoked' })
    assert.equal(verify(jws, { isRevoked: () => false }).document.number, 7)
  })

  test('not one whose key did not sign', async () => {
    const other = makeInfrastructureLeaf(infrastructure, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`)
    const jws = await signWith(DOCUMENT, other)
    assert.throws(() => verify(jws), { code: 'malformed_message' })
  })
})

describe('refused', async () => {
  for (const [name, document, code] of [
    [
      'from the future',
      { ...DOCUMENT, issuedAt: new Date(NOW.getTime() + 301_000).toISOString() },
      'network_document_invalid',
    ],
    ['another trust domain', { ...DOCUMENT, trustDomain: 'other.test' }, 'network_document_invalid'],
    ['no number', { ...DOCUMENT, number: undefined }, 'network_document_invalid'],
    ['number 0', { ...DOCUMENT, number: 0 }, 'network_document_invalid'],
    ['a broken number', { ...DOCUMENT, number: 1.5 }, 'network_document_invalid'],
    ['an unknown member', { ...DOCUMENT, allow: 'all' }, 'network_document_invalid'],
    ['no JSON', '{', 'network_document_invalid'],
    [
      'a pool in another spelling',
      { ...DOCUMENT, pools: ['10.88.0.0/16', 'FD00:0:0:1::/64'] },
      'network_document_invalid',
    ],
    ['pools in another order', { ...DOCUMENT, pools: [...DOCUMENT.pools].reverse() }, 'network_document_invalid'],
    ['a pool with host bits', { ...DOCUMENT, pools: ['10.88.0.1/16'] }, 'network_document_invalid'],
    ['a pool outside of the CA', { ...DOCUMENT, pools: ['172.16.0.0/16'], reserved: [] }, 'network_document_invalid'],
    ['a route outside of the CA', { ...DOCUMENT, routes: ['192.168.0.0/16'] }, 'network_document_invalid'],
    ['a key prefix outside of the CA', { ...DOCUMENT, keyPrefix: '2001:db8::/64' }, 'network_document_invalid'],
  ] as const) {
    const jws = await signWith(document)
    test(name, () => assert.throws(() => verify(jws), { code }))
  }

  const good = await signWith(DOCUMENT)
  test('changed after it was signed', () => {
    const [header = '', , signature = ''] = good.split('.')
    const payload = Buffer.from(JSON.stringify({ ...DOCUMENT, number: 8 })).toString('base64url')
    assert.throws(() => verify(`${header}.${payload}.${signature}`), { code: 'malformed_message' })
  })

  const foreign = await encodeJws({
    payload: Buffer.from(JSON.stringify(DOCUMENT)),
    typ: 'certpeer-checkpoint+jws',
    certificates: [authority.der, infrastructure.certificate.der],
    sign: (data) => sign('sha256', data, keys.privateKey),
  })
  test('signed as something else', () => assert.throws(() => verify(foreign), { code: 'malformed_message' }))
})

test('clocks may differ by five minutes', async () => {
  const jws = await signWith({ ...DOCUMENT, issuedAt: new Date(NOW.getTime() + 299_000).toISOString() })
  assert.equal(verify(jws).document.number, 7)
})

test('a lower number is stale, the same must be the same, a higher one must not be from before', async () => {
  const minute = (minutes: number) => new Date(NOW.getTime() + minutes * 60_000).toISOString()
  const held = verify(await signWith(DOCUMENT))
  for (const [document, outcome] of [
    [DOCUMENT, 'same'],
    [{ ...DOCUMENT, number: 8 }, 'newer'],
    [{ ...DOCUMENT, number: 8, issuedAt: minute(1) }, 'newer'],
    [{ ...DOCUMENT, number: 6, issuedAt: minute(1) }, 'network_document_stale'],
    [{ ...DOCUMENT, number: 9, issuedAt: minute(-1) }, 'network_document_stale'],
    [{ ...DOCUMENT, mtu: 1300 }, 'network_document_invalid'],
  ] as const) {
    const offered = verify(await signWith(document))
    if (outcome === 'same' || outcome === 'newer') assert.equal(requireNotOlder(held, offered), outcome)
    else assert.throws(() => requireNotOlder(held, offered), { code: outcome })
  }
})
