import assert from 'node:assert/strict'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { getDeviceIssuer, getInfrastructureIssuer, type Authority } from '../../../src/authority/authority.ts'
import { lint, RULES, type LintContext } from '../../../src/authority/issuing/lint.ts'
import { prepare, type CertificateFacts } from '../../../src/authority/issuing/prepare.ts'
import type { IssuingCa } from '../../../src/authority/issuing/signer.ts'
import { keyAddress } from '../../../src/core/ipam/key-address.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { newSerial, parseSerial } from '../../../src/core/x509/serial.ts'
import { newKeys, newStage, type Stage } from '../support.ts'

interface Case {
  readonly name: string
  readonly rule: string
  readonly facts?: (stage: Stage) => Partial<CertificateFacts>
  readonly issuer?: (authority: Authority) => IssuingCa
  readonly isSerialUsed?: boolean
  /** For what the encoders cannot be made to write. */
  readonly context?: (context: LintContext) => Partial<LintContext>
}

const HOUR_MS = 3_600_000
const KEY_PREFIX = parsePrefix('fd01:0:0:8::/64')

const CASES: readonly Case[] = [
  {
    name: 'ends before it begins',
    rule: 'validity',
    facts: ({ clock }) => ({ notAfter: new Date(clock.now().getTime() - HOUR_MS) }),
  },
  {
    name: 'begins in the future',
    rule: 'validity',
    facts: ({ clock }) => ({ notBefore: new Date(clock.now().getTime() + 1000) }),
  },
  {
    name: 'lives longer than the profile allows',
    rule: 'validity',
    facts: ({ clock }) => ({ notAfter: new Date(clock.now().getTime() + 8 * 24 * HOUR_MS) }),
  },
  {
    name: 'outlives its issuer',
    rule: 'inside-issuer-validity',
    context: ({ issuer }) => ({ issuer: { ...issuer, notAfter: new Date(0) } }),
  },
  { name: 'serial number of 4 octets', rule: 'serial-entropy', facts: () => ({ serial: parseSerial('01020304') }) },
  { name: 'serial number used before', rule: 'serial-unique', isSerialUsed: true },
  {
    name: 'key of its issuer',
    rule: 'distinct-from-issuer-key',
    facts: ({ authority }) => ({ spki: getDeviceIssuer(authority, 'red').certificate.spki }),
  },
  {
    name: 'P-384 key',
    rule: 'subject-key',
    facts: () => ({
      spki: generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey.export({ type: 'spki', format: 'der' }),
    }),
  },
  {
    name: 'another issuer name',
    rule: 'issuer-name',
    context: ({ issuer }) => ({ issuer: { ...issuer, subjectDer: Buffer.of(0x30, 0x00) } }),
  },
  {
    name: 'another key usage',
    rule: 'key-usage',
    context: ({ profile }) => ({ profile: { ...profile, keyUsage: ['keyCertSign'] } }),
  },
  {
    name: 'a path length',
    rule: 'path-length',
    context: ({ profile }) => ({ profile: { ...profile, pathLength: 0 } }),
  },
  {
    name: 'another purpose',
    rule: 'extended-key-usage',
    context: ({ profile }) => ({ profile: { ...profile, extendedKeyUsage: [OID.serverAuth] } }),
  },
  {
    name: 'role that its CA may not issue',
    rule: 'role-allowed-by-issuer',
    issuer: getInfrastructureIssuer,
  },
  {
    name: 'no identity',
    rule: 'identity',
    context: (context) => ({ certificate: { ...context.certificate, sanUris: [] } }),
  },
  {
    name: 'two identities',
    rule: 'identity',
    context: ({ certificate }) => ({
      certificate: { ...certificate, sanUris: [...certificate.sanUris, ...certificate.sanUris] },
    }),
  },
  { name: "a gateway's identity", rule: 'identity', facts: () => ({ uri: 'spiffe://certpeer.internal/gateway/a' }) },
  {
    name: 'another trust domain',
    rule: 'identity',
    facts: () => ({ uri: 'spiffe://red.example.org/network/lan/device/a' }),
  },
  { name: 'DNS name', rule: 'alternative-names', facts: () => ({ dns: ['example.org'] }) },
  { name: 'IP address', rule: 'alternative-names', facts: () => ({ ips: ['10.1.0.1'] }) },
  {
    name: "another tenant's identity",
    rule: 'name-constraints',
    facts: () => ({ uri: 'spiffe://blue.certpeer.internal/network/lan/device/a' }),
  },
  { name: 'no address block', rule: 'address-block', facts: () => ({ addressBlocks: undefined as never }) },
  {
    name: "address outside of its CA's block",
    rule: 'address-block',
    facts: () => ({ addressBlocks: [parsePrefix('10.3.0.1/32')] }),
  },
  {
    name: 'a prefix for a device',
    rule: 'device-addresses',
    facts: () => ({ addressBlocks: [parsePrefix('10.1.1.0/24')] }),
  },
  {
    name: 'no key address',
    rule: 'device-addresses',
    facts: () => ({ addressBlocks: [parsePrefix('10.1.0.1/32')] }),
  },
  {
    name: 'key address of another key',
    rule: 'device-addresses',
    facts: () => ({ addressBlocks: [parsePrefix('10.1.0.1/32'), keyAddress(KEY_PREFIX, newKeys().wireGuard)] }),
  },
  {
    name: 'an extension too many',
    rule: 'extension-set',
    context: ({ profile }) => ({
      profile: {
        ...profile,
        extensions: profile.extensions.filter((extension) => extension !== 'authorityInfoAccess'),
      },
    }),
  },
  { name: 'no URLs', rule: 'extension-set', facts: () => ({ urls: undefined as never }) },
  {
    name: 'critical where it must not be',
    rule: 'criticality',
    context: ({ certificate, oids }) => {
      const extensions = new Map(certificate.extensions)
      const key = extensions.get(oids.wireGuardKey)
      if (key) extensions.set(oids.wireGuardKey, { ...key, critical: true })
      return { certificate: { ...certificate, extensions } }
    },
  },
]

function build(stage: Stage, issuer: IssuingCa, changes: Partial<CertificateFacts>, isSerialUsed = false) {
  const { authority } = stage
  const keys = newKeys()
  const now = stage.clock.now()
  const facts: CertificateFacts = {
    commonName: 'laptop',
    spki: keys.tls.publicKey.export({ type: 'spki', format: 'der' }),
    serial: newSerial(randomBytes(20)),
    notBefore: new Date(now.getTime() - 60_000),
    notAfter: new Date(now.getTime() + HOUR_MS),
    uri: 'spiffe://red.certpeer.internal/network/lan/device/a',
    wireGuard: { key: keys.wireGuard, possession: true },
    addressBlocks: [parsePrefix('10.1.0.1/32'), keyAddress(KEY_PREFIX, keys.wireGuard)],
    groups: ['staff'],
    urls: { crl: 'http://pki/crl', ocsp: 'http://pki/ocsp', caIssuers: 'http://pki/crt' },
    ...changes,
  }
  const context = {
    profile: authority.profiles.device,
    issuer: issuer.certificate,
    algorithm: issuer.algorithm,
    oids: authority.oids,
    trustDomain: authority.trustDomain,
    now,
    isSerialUsed: () => isSerialUsed,
  }
  return { prepared: prepare(facts, context), context }
}

for (const { name, rule, facts, issuer, isSerialUsed, context } of CASES) {
  test(`lint: ${name} breaks ${rule}`, async (t) => {
    const stage = await newStage(t)
    const ca = (issuer ?? ((authority) => getDeviceIssuer(authority, 'red')))(stage.authority)
    assert.throws(
      () => {
        const made = build(stage, ca, facts?.(stage) ?? {}, isSerialUsed)
        const base: LintContext = { ...made.context, certificate: made.prepared.parsed }
        lint({ ...base, ...context?.(base) })
      },
      (error: { code?: string; message?: string }) =>
        error.code === 'lint_failed' && error.message?.includes(`rule ${rule} `) === true,
    )
  })
}

test('a good certificate passes every rule, and every rule has a section to look up', async (t) => {
  const stage = await newStage(t)
  build(stage, getDeviceIssuer(stage.authority, 'red'), {})
  for (const rule of RULES) assert.match(rule.reference, /RFC \d+|pki\//)
})
