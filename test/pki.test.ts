/** The law in pki/ and the code agree: object identifiers, profiles, and what they promise. */
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { ROLES } from '../src/core/messages/common.ts'
import { parseProfile } from '../src/core/policy/profile.ts'
import { DEFAULT_PEN, certpeerOids } from '../src/core/x509/oids.ts'
import { packageRoot } from '../src/platform/package-root.ts'

const PKI = join(packageRoot(), 'pki')
const FILES = readdirSync(join(PKI, 'profiles')).sort()
const PROFILES = FILES.map((file) => parseProfile(JSON.parse(readFileSync(join(PKI, 'profiles', file), 'utf8'))))
const DAY = 86_400

/** Every `name OBJECT IDENTIFIER ::= { parent number … }` of the module, as dotted text. */
function moduleOids(): Map<string, string> {
  const text = readFileSync(join(PKI, 'certpeer.asn1'), 'utf8').replaceAll(/--.*$/gm, '')
  const values = new Map<string, string>()
  for (const [, name = '', body = ''] of text.matchAll(/^([a-z][\w-]*)\s+OBJECT IDENTIFIER ::= \{([^}]*)\}/gm)) {
    const parts = body
      .trim()
      .split(/\s+/)
      .map((part) => {
        const number = /\(([0-9]+)\)$/.exec(part)?.[1] ?? part
        return /^[0-9]+$/.test(number) ? number : values.get(number)
      })
    assert.ok(!parts.includes(undefined), `${name} is defined after its parent`)
    values.set(name, parts.join('.'))
  }
  return values
}

test('the ASN.1 module and the code name the same object identifiers', () => {
  const oids = certpeerOids(DEFAULT_PEN)
  const expected: Record<string, string> = {
    'id-certpeer-wireGuardKey': oids.wireGuardKey,
    'id-certpeer-accessGroups': oids.accessGroups,
    'id-certpeer-servedNetworks': oids.servedNetworks,
    'id-certpeer-ledgerHead': oids.ledgerHead,
    'id-certpeer-possession-v1': oids.possessionV1,
    'id-certpeer-attribute-possession': oids.attributes.possession,
    'id-certpeer-attribute-renewalSignature': oids.attributes.renewalSignature,
    'id-certpeer-attribute-renewalCertificate': oids.attributes.renewalCertificate,
  }
  for (const role of ROLES) expected[`id-certpeer-role-${role}`] = oids.roles[role]
  const arcs = ['enterprise', 'certpeer', 'id-certpeer-role', 'id-certpeer-attribute', 'id-certpeer-possession']
  const defined = Object.fromEntries([...moduleOids()].filter(([name]) => !arcs.includes(name)))
  assert.deepEqual(defined, expected)
})

test('every profile is in the file of its name, and every role has one', () => {
  assert.deepEqual(
    PROFILES.map((profile) => `${profile.name}.json`),
    FILES,
  )
  assert.deepEqual(PROFILES.flatMap((profile) => profile.role ?? []).sort(), [...ROLES].sort())
  for (const profile of PROFILES) if (profile.role !== undefined) assert.equal(profile.name, profile.role)
  assert.deepEqual(
    PROFILES.filter((profile) => profile.role === undefined).map((profile) => profile.name),
    ['device-ca', 'infrastructure-ca', 'ocsp-signer', 'root'],
  )
})

describe('lifetimes', () => {
  const leaves = Object.fromEntries(ROLES.map((role) => [role, { default: 7 * DAY, min: 30, max: 7 * DAY }]))
  const year = 365 * DAY
  const expected: Record<string, { default: number; min: number; max: number }> = {
    ...leaves,
    'ocsp-signer': { default: 7 * DAY, min: 30, max: 7 * DAY },
    device: { default: DAY, min: 30, max: 7 * DAY },
    'device-ca': { default: 5 * year + DAY, min: DAY, max: 5 * year + DAY },
    'infrastructure-ca': { default: 5 * year + DAY, min: DAY, max: 5 * year + DAY },
    root: { default: 20 * year + 5 * DAY, min: DAY, max: 20 * year + 5 * DAY },
  }
  for (const profile of PROFILES) {
    test(profile.name, () => {
      assert.deepEqual(profile.lifetimeSeconds, expected[profile.name])
      assert.ok(profile.backdateSeconds <= 300)
    })
  }
})

test('every role can be issued by exactly one issuing CA, devices and the rest apart', () => {
  const issuers = PROFILES.filter((profile) => profile.kind === 'ca' && profile.name !== 'root')
  for (const role of ROLES) {
    const able = issuers.filter((issuer) => issuer.extendedKeyUsage.includes(`role:${role}`)).map(({ name }) => name)
    assert.deepEqual(able, [role === 'device' ? 'device-ca' : 'infrastructure-ca'])
  }
  for (const issuer of issuers) {
    assert.equal(issuer.pathLength, 0)
    assert.ok(issuer.extensions.includes('nameConstraints'))
    assert.ok(issuer.extensions.includes('ipAddrBlocks'))
    assert.ok(issuer.extendedKeyUsage.includes('clientAuth'))
  }
})

test('who carries what', () => {
  const carriers = (extension: (typeof PROFILES)[number]['extensions'][number]) =>
    PROFILES.filter((profile) => profile.extensions.includes(extension))
      .map((profile) => profile.name)
      .sort()
  assert.deepEqual(carriers('wireGuardKey'), ['device', 'gateway'])
  assert.deepEqual(carriers('servedNetworks'), ['gateway'])
  assert.deepEqual(carriers('ocspNoCheck'), ['ocsp-signer'])
  assert.deepEqual(carriers('ipAddrBlocks'), ['device', 'device-ca', 'gateway', 'infrastructure-ca', 'root'])
  const withServerAuth = PROFILES.filter((profile) => profile.extendedKeyUsage.includes('serverAuth'))
  assert.deepEqual(
    withServerAuth.map((profile) => profile.name),
    ['infrastructure-ca', 'server'],
  )
})
