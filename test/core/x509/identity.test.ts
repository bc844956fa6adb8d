import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  formatIdentity,
  identityHost,
  networkKey,
  parseIdentity,
  requireTrustDomain,
  tenantHost,
  type Identity,
} from '../../../src/core/x509/identity.ts'

const DOMAIN = 'certpeer.test'

for (const [uri, identity] of [
  ['spiffe://acme.certpeer.test/network/lab/device/d1', { kind: 'device', tenant: 'acme', network: 'lab', id: 'd1' }],
  ['spiffe://certpeer.test/gateway/g1', { kind: 'gateway', name: 'g1' }],
  ['spiffe://certpeer.test/operator/ann', { kind: 'operator', name: 'ann' }],
  ['spiffe://acme.certpeer.test/operator/ann', { kind: 'operator', tenant: 'acme', name: 'ann' }],
  ['spiffe://certpeer.test/authority/a1', { kind: 'authority', name: 'a1' }],
  ['spiffe://certpeer.test/server/s1', { kind: 'server', name: 's1' }],
] as const) {
  test(`${uri} is one identity with one spelling`, () => {
    assert.deepEqual(parseIdentity(uri, DOMAIN), identity)
    assert.equal(formatIdentity(identity, DOMAIN), uri)
  })
}

for (const uri of [
  '',
  'spiffe://certpeer.test',
  'spiffe://certpeer.test/',
  'spiffe://certpeer.test/gateway',
  'spiffe://certpeer.test/gateway/',
  'spiffe://certpeer.test/gateway/g1/',
  'spiffe://certpeer.test/gateway//g1',
  'spiffe://certpeer.test/gateway/g1?x=1',
  'spiffe://certpeer.test/gateway/g1#x',
  'spiffe://certpeer.test/gateway/G1',
  'spiffe://certpeer.test/gateway/g%31',
  'spiffe://certpeer.test/gateway/..',
  'spiffe://certpeer.test/gateway/-g',
  `spiffe://certpeer.test/gateway/${'g'.repeat(64)}`,
  'spiffe://certpeer.test/root/g1',
  'spiffe://certpeer.test/__proto__/g1',
  'spiffe://certpeer.test/network/lab/device/d1',
  'spiffe://certpeer.test/network/lab/gateway/d1',
  'spiffe://acme.certpeer.test/network/lab/device',
  'spiffe://acme.certpeer.test/network/lab/device/d1/x',
  'spiffe://acme.certpeer.test/gateway/g1',
  'spiffe://acme.certpeer.test/authority/a1',
  'spiffe://acme.certpeer.test/server/s1',
  'spiffe://a.b.certpeer.test/network/lab/device/d1',
  'spiffe://.certpeer.test/network/lab/device/d1',
  'spiffe://acmecertpeer.test/network/lab/device/d1',
  'spiffe://acme.certpeer.test.evil.test/network/lab/device/d1',
  'spiffe://acme.certpeer.test:443/network/lab/device/d1',
  'spiffe://x@acme.certpeer.test/network/lab/device/d1',
  'spiffe://Acme.certpeer.test/network/lab/device/d1',
  'SPIFFE://acme.certpeer.test/network/lab/device/d1',
  'https://acme.certpeer.test/network/lab/device/d1',
  'spiffe:/acme.certpeer.test/network/lab/device/d1',
  'spiffe://other.test/gateway/g1',
  ' spiffe://certpeer.test/gateway/g1',
  'spiffe://certpeer.test/gateway/g1\n',
  `spiffe://certpeer.test/gateway/${'/'.repeat(2000)}`,
]) {
  test(`"${uri.slice(0, 70).trim()}" is no identity`, () => {
    assert.throws(() => parseIdentity(uri, DOMAIN), { code: 'malformed_request' })
  })
}

test('names that would make another URI cannot be written', () => {
  for (const name of ['', 'a/b', 'A', 'a b', '..', 'a?b', 'a#b', 'a%2f', 'x'.repeat(64)]) {
    for (const identity of [
      { kind: 'gateway', name },
      { kind: 'operator', tenant: name, name: 'ann' },
      { kind: 'device', tenant: 'acme', network: name, id: 'd1' },
    ] satisfies Identity[]) {
      assert.throws(() => formatIdentity(identity, DOMAIN), { code: 'malformed_request' })
    }
  }
})

test('whatever parses is written back as it was', () => {
  const part = fc.stringMatching(/^[a-z0-9/.:-]{0,12}$/)
  fc.assert(
    fc.property(fc.constantFrom('', 'acme.', 'acme'), part, part, (tenant, first, second) => {
      const uri = `spiffe://${tenant}${DOMAIN}/${first}/${second}`
      let identity: Identity
      try {
        identity = parseIdentity(uri, DOMAIN)
      } catch {
        return
      }
      assert.equal(formatIdentity(identity, DOMAIN), uri)
    }),
    { numRuns: 2000 },
  )
})

test('host, tenant host and network key', () => {
  assert.equal(identityHost('spiffe://acme.certpeer.test/network/lab/device/d1'), 'acme.certpeer.test')
  assert.equal(identityHost('nonsense'), '')
  assert.equal(tenantHost('acme', DOMAIN), 'acme.certpeer.test')
  assert.equal(networkKey('acme', 'lab'), 'acme/lab')
})

test('a trust domain is a lower-case DNS name', () => {
  assert.equal(requireTrustDomain('certpeer.internal'), 'certpeer.internal')
  for (const bad of ['', '.', 'a..b', 'A.test', 'a_b', 'a/b', `${'a.'.repeat(100)}b`]) {
    assert.throws(() => requireTrustDomain(bad), { code: 'config_invalid' })
  }
})
