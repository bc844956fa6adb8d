import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { lifetimeSeconds, parseProfile } from '../../../src/core/policy/profile.ts'

const DEVICE = {
  name: 'device',
  description: 'a device',
  kind: 'leaf',
  role: 'device',
  keyTypes: ['P-256'],
  keyUsage: ['digitalSignature'],
  extendedKeyUsage: ['clientAuth', 'role'],
  lifetimeSeconds: { default: 86_400, min: 30, max: 604_800 },
  backdateSeconds: 300,
  san: 'identity',
  extensions: [
    'authorityKeyIdentifier',
    'subjectKeyIdentifier',
    'keyUsage',
    'extendedKeyUsage',
    'subjectAltName',
    'ipAddrBlocks',
    'wireGuardKey',
  ],
}
const CA = {
  ...DEVICE,
  name: 'device-ca',
  kind: 'ca',
  role: undefined,
  keyUsage: ['keyCertSign', 'cRLSign'],
  extendedKeyUsage: ['clientAuth', 'role:device'],
  pathLength: 0,
  lifetimeSeconds: { default: 86_400 * 1826, min: 86_400, max: 86_400 * 1826 },
  san: 'none',
  extensions: ['subjectKeyIdentifier', 'basicConstraints', 'keyUsage', 'extendedKeyUsage', 'ipAddrBlocks'],
}
const without = (name: string) => DEVICE.extensions.filter((extension) => extension !== name)

test('good profiles are read as they are', () => {
  assert.deepEqual(parseProfile(DEVICE), DEVICE)
  assert.equal(parseProfile(CA).pathLength, 0)
})

describe('refused as config_invalid', () => {
  for (const [name, json] of [
    ['nothing', undefined],
    ['an unknown field', { ...DEVICE, keyUsages: [] }],
    ['an unknown extension', { ...DEVICE, extensions: [...DEVICE.extensions, 'qcStatements'] }],
    ['an unknown purpose', { ...DEVICE, extendedKeyUsage: ['clientAuth', 'role', 'anyExtendedKeyUsage'] }],
    ['an unknown role', { ...DEVICE, role: 'root' }],
    ['an extension twice', { ...DEVICE, extensions: [...DEVICE.extensions, 'keyUsage'] }],
    ['RSA', { ...DEVICE, keyTypes: ['RSA-2048'] }],
    ['backdated by more than 5 minutes', { ...DEVICE, backdateSeconds: 301 }],
    ['min above default', { ...DEVICE, lifetimeSeconds: { default: 10, min: 30, max: 60 } }],
    ['default above max', { ...DEVICE, lifetimeSeconds: { default: 90, min: 30, max: 60 } }],
    ['a leaf of more than 7 days', { ...DEVICE, lifetimeSeconds: { default: 60, min: 30, max: 604_801 } }],
    ['a CA of more than 20 years', { ...CA, lifetimeSeconds: { default: 60, min: 30, max: 640_000_000 } }],
    ['a leaf that signs certificates', { ...DEVICE, keyUsage: ['digitalSignature', 'keyCertSign'] }],
    ['a leaf that agrees keys', { ...DEVICE, keyUsage: ['digitalSignature', 'keyAgreement'] }],
    ['a leaf with a path length', { ...DEVICE, pathLength: 0 }],
    ['a leaf with the roles of others', { ...DEVICE, extendedKeyUsage: ['clientAuth', 'role', 'role:authority'] }],
    ['a role without its purpose', { ...DEVICE, extendedKeyUsage: ['clientAuth'] }],
    ['a purpose without its role', { ...DEVICE, role: undefined }],
    ['a device without its key', { ...DEVICE, extensions: without('wireGuardKey') }],
    ['a device without addresses', { ...DEVICE, extensions: without('ipAddrBlocks') }],
    ['an operator with a WireGuard key', { ...DEVICE, role: 'operator-admin' }],
    ['a leaf without an identity', { ...DEVICE, extensions: without('subjectAltName') }],
    ['a leaf without authorityKeyIdentifier', { ...DEVICE, extensions: without('authorityKeyIdentifier') }],
    ['a leaf with name constraints', { ...DEVICE, extensions: [...DEVICE.extensions, 'nameConstraints'] }],
    [
      'an OCSP signer that is a device too',
      {
        ...DEVICE,
        extendedKeyUsage: ['clientAuth', 'role', 'OCSPSigning'],
        extensions: [...DEVICE.extensions, 'ocspNoCheck'],
      },
    ],
    [
      'a CA that answers OCSP for the root',
      { ...CA, extendedKeyUsage: ['clientAuth', 'OCSPSigning'], extensions: [...CA.extensions, 'ocspNoCheck'] },
    ],
    ['a CA that cannot sign certificates', { ...CA, keyUsage: ['cRLSign'] }],
    ['a CA that cannot sign CRLs', { ...CA, keyUsage: ['keyCertSign'] }],
    ['a CA with a role', { ...CA, role: 'device' }],
    ['a CA without a block', { ...CA, extensions: CA.extensions.filter((name) => name !== 'ipAddrBlocks') }],
  ] as const) {
    test(name, () => assert.throws(() => parseProfile(json), { code: 'config_invalid' }))
  }
})

test('lifetimes: the default, what was asked, and nothing outside of the bounds', () => {
  const profile = parseProfile(DEVICE)
  assert.equal(lifetimeSeconds(profile, undefined), 86_400)
  for (const seconds of [30, 3600, 604_800]) assert.equal(lifetimeSeconds(profile, seconds), seconds)
  for (const seconds of [29, 604_801, 60.5, NaN, -1]) {
    assert.throws(() => lifetimeSeconds(profile, seconds), { code: 'policy_denied' })
  }
})
