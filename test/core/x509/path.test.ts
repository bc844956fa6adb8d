/** Attacks on the chain root → issuing CA → leaf. Each case breaks one thing; its guard is the only one that sees it. */
import assert from 'node:assert/strict'
import { sign } from 'node:crypto'
import { test } from 'node:test'
import { readDer, readInteger, readSequence } from '../../../src/core/der/reader.ts'
import { derInteger, derNull, derSequence, derTlv } from '../../../src/core/der/writer.ts'
import type { ErrorCode } from '../../../src/core/errors.ts'
import { keyAddress } from '../../../src/core/ipam/key-address.ts'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { OPERATOR_ROLES, type Role } from '../../../src/core/messages/common.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../../src/core/x509/certificate.ts'
import { assembleSigned, encodeExtension, encodeName, signatureAlgorithmFor } from '../../../src/core/x509/encode.ts'
import {
  accessGroupsExtension,
  authorityKeyIdentifier,
  basicConstraints,
  extendedKeyUsage,
  ipAddrBlocks,
  keyUsage,
  nameConstraintsUri,
  servedNetworksExtension,
  subjectAltName,
  wireGuardKeyExtension,
} from '../../../src/core/x509/extensions.ts'
import { certpeerOids, OID } from '../../../src/core/x509/oids.ts'
import { readDevice, readGateway, verifyCertificate, verifyIssuer } from '../../../src/core/x509/path.ts'
import {
  KEY_PREFIX,
  makeDevice,
  makeDeviceCa,
  makeGateway,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
  NOW,
  OIDS,
  TRUST_DOMAIN,
  WIREGUARD_KEY,
  type Authority,
  type CertificateParts,
  type DeviceParts,
} from '../../support/certificates.ts'

const root = makeRoot()
const deviceCa = makeDeviceCa(root)
const infrastructureCa = makeInfrastructureCa(root)
const DEVICE_URI = `spiffe://default.${TRUST_DOMAIN}/network/default/device/d1`
const UNKNOWN_CRITICAL = encodeExtension('1.2.3.4', true, derNull())
const before = (seconds: number) => new Date(NOW.getTime() - seconds * 1000)
const after = (seconds: number) => before(-seconds)

interface Chain {
  readonly certificate: Certificate
  readonly issuers?: readonly Certificate[]
  readonly root?: Certificate
  readonly now?: Date
  readonly roles?: readonly Role[]
}

function verify(chain: Chain) {
  return verifyCertificate({
    issuers: [infrastructureCa.certificate, deviceCa.certificate],
    root: root.certificate,
    now: NOW,
    oids: OIDS,
    trustDomain: TRUST_DOMAIN,
    ...chain,
  })
}

const under = (issuer: Authority, certificate: Certificate): Chain => ({ certificate, issuers: [issuer.certificate] })
const extension = (name: string, value: Buffer | null): CertificateParts => ({ extensions: { [name]: value } })

/** A device under a device CA that is not as it should be. */
function underCa(parts: CertificateParts, deviceParts: DeviceParts = {}): Chain {
  const ca = makeDeviceCa(root, parts)
  return under(ca, makeDevice(ca, deviceParts))
}

/** A whole hierarchy under a root that is not as it should be. */
function underRoot(parts: CertificateParts): Chain {
  const badRoot = makeRoot(parts)
  const ca = makeDeviceCa(badRoot)
  return { ...under(ca, makeDevice(ca)), root: badRoot.certificate }
}

/** The certificate with its last signature octet changed. */
function withWrongSignature(certificate: Certificate): Certificate {
  const der = Buffer.from(certificate.der)
  der.writeUInt8(der.readUInt8(der.length - 1) ^ 1, der.length - 1)
  return parseCertificate(der)
}

test('a device, a gateway, every operator, the authority and a server are believed for what they are', () => {
  const device = verify({ certificate: makeDevice(deviceCa) })
  assert.equal(device.role, 'device')
  assert.deepEqual(device.identity, { kind: 'device', tenant: 'default', network: 'default', id: 'd1' })
  assert.equal(device.uri, DEVICE_URI)
  assert.equal(device.issuer, deviceCa.certificate)
  assert.equal(device.root, root.certificate)

  assert.equal(verify({ certificate: makeGateway(infrastructureCa) }).role, 'gateway')
  for (const role of [...OPERATOR_ROLES, 'authority', 'server'] as const) {
    const kind = role.startsWith('operator') ? 'operator' : role
    const uri = `spiffe://${TRUST_DOMAIN}/${kind}/x`
    const verified = verify({ certificate: makeInfrastructureLeaf(infrastructureCa, role, uri) })
    assert.equal(verified.role, role)
    assert.deepEqual(verified.identity, { kind, name: 'x' })
  }
  const tenantOperator = makeInfrastructureLeaf(
    infrastructureCa,
    'operator-enroller',
    `spiffe://default.${TRUST_DOMAIN}/operator/x`,
  )
  assert.deepEqual(verify({ certificate: tenantOperator }).identity, { kind: 'operator', tenant: 'default', name: 'x' })
})

const attacks: readonly { name: string; code: ErrorCode; chain: () => Chain }[] = [
  // The leaf's way to its issuer
  {
    name: 'no issuer at all',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(deviceCa), issuers: [] }),
  },
  {
    name: "a wrong signature under the issuer's name",
    code: 'certificate_untrusted',
    chain: () => ({ certificate: withWrongSignature(makeDevice(deviceCa)) }),
  },
  {
    name: "another key under the issuer's name and key identifier",
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice({ ...newKeyPair(), certificate: deviceCa.certificate }) }),
  },
  {
    name: 'another issuer name than the one that signed',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(deviceCa, { issuerDer: encodeName('somebody') }) }),
  },
  {
    name: 'no authority key identifier',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('authorityKeyIdentifier', null)) }),
  },
  {
    name: 'the key identifier of another CA',
    code: 'certificate_untrusted',
    chain: () => ({
      certificate: makeDevice(
        deviceCa,
        extension('authorityKeyIdentifier', authorityKeyIdentifier(infrastructureCa.certificate)),
      ),
    }),
  },
  {
    name: 'neither key identifier, on leaf or CA',
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeDeviceCa(root, extension('subjectKeyIdentifier', null))
      return under(
        ca,
        makeDevice(
          { ...ca, certificate: { ...ca.certificate, subjectKeyId: '00' } },
          extension('authorityKeyIdentifier', null),
        ),
      )
    },
  },
  // The issuing CA
  {
    name: 'a device as issuer (CA:FALSE)',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('basicConstraints', basicConstraints(false))),
  },
  {
    name: 'an issuer without basicConstraints',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('basicConstraints', null)),
  },
  {
    name: 'a real device as issuer',
    code: 'certificate_untrusted',
    chain: () => {
      const pair = newKeyPair()
      const thief = { ...pair, certificate: makeDevice(deviceCa, { publicKey: pair.publicKey }) }
      return { certificate: makeDevice(thief), issuers: [thief.certificate, deviceCa.certificate] }
    },
  },
  {
    name: 'an issuer that may not sign certificates',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('keyUsage', keyUsage(['cRLSign']))),
  },
  {
    name: 'an issuer without key usage',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('keyUsage', null)),
  },
  {
    name: 'an issuer with an unknown critical extension',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('unknown', UNKNOWN_CRITICAL)),
  },
  {
    name: "an issuer of another root with this root's name and key identifier",
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeDeviceCa({ ...newKeyPair(), certificate: root.certificate })
      return under(ca, makeDevice(ca))
    },
  },
  {
    name: 'an issuer that this root signed under another name',
    code: 'certificate_untrusted',
    chain: () => underCa({ issuerDer: encodeName('another root') }),
  },
  {
    name: 'an issuer without authority key identifier',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('authorityKeyIdentifier', null)),
  },
  {
    name: 'an issuer of another root',
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeDeviceCa(makeRoot())
      return under(ca, makeDevice(ca))
    },
  },
  {
    name: 'an issuer signed by another CA',
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeDeviceCa(infrastructureCa)
      return { certificate: makeDevice(ca), issuers: [ca.certificate, infrastructureCa.certificate] }
    },
  },
  {
    name: 'the root itself as issuer',
    code: 'certificate_untrusted',
    chain: () => {
      const purposes = extendedKeyUsage([OID.clientAuth, OIDS.roles.device])
      const all = makeRoot({
        extensions: {
          extendedKeyUsage: purposes,
          nameConstraints: nameConstraintsUri([`default.${TRUST_DOMAIN}`]),
        },
      })
      // A self-signed certificate names itself as its authority, too.
      const self = { ...all.certificate, authorityKeyId: all.certificate.subjectKeyId }
      return { certificate: makeDevice(all), issuers: [self], root: all.certificate }
    },
  },
  // Roles
  {
    name: 'a role that its CA may not issue',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeGateway(deviceCa, { uri: `spiffe://${TRUST_DOMAIN}/gateway/g1` }) }),
  },
  {
    name: 'a device from the infrastructure CA',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(infrastructureCa) }),
  },
  {
    name: "an issuer without the device's role",
    code: 'certificate_untrusted',
    chain: () => underCa(extension('extendedKeyUsage', extendedKeyUsage([OID.clientAuth, OIDS.roles.gateway]))),
  },
  {
    name: 'an issuer without clientAuth',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('extendedKeyUsage', extendedKeyUsage([OID.serverAuth, OIDS.roles.device]))),
  },
  {
    name: 'an issuer that may do anything',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('extendedKeyUsage', extendedKeyUsage([OID.anyExtendedKeyUsage]))),
  },
  {
    name: 'an issuer without extended key usage',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('extendedKeyUsage', null)),
  },
  {
    name: 'a server whose issuer lacks serverAuth',
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeInfrastructureCa(
        root,
        extension('extendedKeyUsage', extendedKeyUsage([OID.clientAuth, OIDS.roles.server])),
      )
      return under(ca, makeInfrastructureLeaf(ca, 'server', `spiffe://${TRUST_DOMAIN}/server/s1`))
    },
  },
  // Name constraints
  {
    name: 'a device of another tenant',
    code: 'certificate_untrusted',
    chain: () => ({
      certificate: makeDevice(deviceCa, { uri: `spiffe://acme.${TRUST_DOMAIN}/network/default/device/d1` }),
    }),
  },
  {
    name: 'a device CA without name constraints',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('nameConstraints', null)),
  },
  {
    name: 'a device CA of two tenants',
    code: 'certificate_untrusted',
    chain: () =>
      underCa(extension('nameConstraints', nameConstraintsUri([`default.${TRUST_DOMAIN}`, `acme.${TRUST_DOMAIN}`]))),
  },
  {
    name: 'a device CA of every tenant',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('nameConstraints', nameConstraintsUri([`.${TRUST_DOMAIN}`]))),
  },
  {
    name: 'a gateway outside the name constraints of its CA',
    code: 'certificate_untrusted',
    chain: () => {
      const ca = makeInfrastructureCa(root, extension('nameConstraints', nameConstraintsUri([`.${TRUST_DOMAIN}`])))
      return under(ca, makeGateway(ca))
    },
  },
  {
    name: 'a device outside the name constraints of the root',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('nameConstraints', nameConstraintsUri([`acme.${TRUST_DOMAIN}`]))),
  },
  // Address blocks
  {
    name: "an address outside the CA's block",
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(deviceCa, { addresses: [parsePrefix('10.89.0.2/32')] }) }),
  },
  {
    name: 'an issuer without a block',
    code: 'certificate_untrusted',
    chain: () => underCa(extension('ipAddrBlocks', null)),
  },
  {
    name: "an issuer whose block is outside the root's",
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('ipAddrBlocks', ipAddrBlocks([parsePrefix('10.0.0.0/9')]))),
  },
  {
    name: 'a root without a block',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('ipAddrBlocks', null)),
  },
  {
    name: 'a device without a block, which OpenSSL takes',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('ipAddrBlocks', null)) }),
  },
  {
    name: 'a gateway without a block',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeGateway(infrastructureCa, extension('ipAddrBlocks', null)) }),
  },
  // The root
  {
    name: 'a root that is no CA',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('basicConstraints', null)),
  },
  {
    name: 'a root that may not sign certificates',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('keyUsage', keyUsage(['cRLSign']))),
  },
  {
    name: 'a root whose path length allows no CA',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('basicConstraints', basicConstraints(true, 0))),
  },
  {
    name: 'a root with an unknown critical extension',
    code: 'certificate_untrusted',
    chain: () => underRoot(extension('unknown', UNKNOWN_CRITICAL)),
  },
  // The leaf itself
  {
    name: 'an unknown critical extension',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('unknown', UNKNOWN_CRITICAL)) }),
  },
  {
    name: 'a critical WireGuard key',
    code: 'certificate_untrusted',
    chain: () => ({
      certificate: makeDevice(
        deviceCa,
        extension('wireGuardKey', encodeExtension(OIDS.wireGuardKey, true, derSequence())),
      ),
    }),
  },
  {
    name: 'a device that is a CA',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('basicConstraints', basicConstraints(true))) }),
  },
  {
    name: 'no key usage',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('keyUsage', null)) }),
  },
  {
    name: 'key usage without digitalSignature',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeDevice(deviceCa, extension('keyUsage', keyUsage(['keyAgreement']))) }),
  },
  {
    name: 'a device that may sign certificates',
    code: 'bad_client_certificate',
    chain: () => ({
      certificate: makeDevice(deviceCa, extension('keyUsage', keyUsage(['digitalSignature', 'keyCertSign']))),
    }),
  },
  {
    name: 'a device that may sign CRLs',
    code: 'bad_client_certificate',
    chain: () => ({
      certificate: makeDevice(deviceCa, extension('keyUsage', keyUsage(['digitalSignature', 'cRLSign']))),
    }),
  },
  ...(
    [
      ['no role', [OID.clientAuth]],
      ['no extended key usage', null],
      ['two roles', [OID.clientAuth, OIDS.roles.device, OIDS.roles.gateway]],
      ['no clientAuth', [OIDS.roles.device]],
      ['serverAuth where clientAuth belongs', [OID.serverAuth, OIDS.roles.device]],
      ["anyExtendedKeyUsage in clientAuth's place", [OID.anyExtendedKeyUsage, OIDS.roles.device]],
      ['OCSPSigning beside its role', [OID.clientAuth, OIDS.roles.device, OID.ocspSigning]],
      ['a role of another enterprise', [OID.clientAuth, certpeerOids(1).roles.device]],
    ] as const
  ).map(([name, purposes]) => ({
    name,
    code: 'bad_client_certificate' as const,
    chain: () => ({
      certificate: makeDevice(deviceCa, extension('extendedKeyUsage', purposes && extendedKeyUsage(purposes))),
    }),
  })),
  {
    name: 'a server without serverAuth',
    code: 'bad_client_certificate',
    chain: () => ({
      certificate: makeInfrastructureLeaf(
        infrastructureCa,
        'server',
        `spiffe://${TRUST_DOMAIN}/server/s1`,
        extension('extendedKeyUsage', extendedKeyUsage([OID.clientAuth, OIDS.roles.server])),
      ),
    }),
  },
  ...(
    [
      ['no alternative name', null],
      ['no URI', subjectAltName({ dns: ['d1.test'] })],
      ['two URIs', subjectAltName({ uris: [DEVICE_URI, DEVICE_URI.replace('d1', 'd2')] })],
      ['the same URI twice', subjectAltName({ uris: [DEVICE_URI, DEVICE_URI] })],
      [
        'a URI of another trust domain',
        subjectAltName({ uris: ['spiffe://default.other.test/network/default/device/d1'] }),
      ],
      ['a URI that is no identity', subjectAltName({ uris: [`spiffe://default.${TRUST_DOMAIN}/device/d1`] })],
      ["an operator's identity", subjectAltName({ uris: [`spiffe://default.${TRUST_DOMAIN}/operator/ann`] })],
      [
        'a mail address beside its URI',
        encodeExtension(
          OID.subjectAltName,
          false,
          derSequence(derTlv(0x86, Buffer.from(DEVICE_URI)), derTlv(0x81, Buffer.from('a@b.test'))),
        ),
      ],
    ] as const
  ).map(([name, value]) => ({
    name,
    code: 'bad_client_certificate' as const,
    chain: () => ({ certificate: makeDevice(deviceCa, extension('subjectAltName', value)) }),
  })),
  {
    name: 'a role that may not ask here',
    code: 'bad_client_certificate',
    chain: () => ({ certificate: makeDevice(deviceCa), roles: ['gateway', 'operator-admin'] }),
  },
  // Validity
  {
    name: 'an expired device',
    code: 'certificate_expired',
    chain: () => ({ certificate: makeDevice(deviceCa, { notAfter: before(1) }) }),
  },
  {
    name: 'a device that is not valid yet',
    code: 'certificate_expired',
    chain: () => ({ certificate: makeDevice(deviceCa, { notBefore: after(1) }) }),
  },
  { name: 'an expired issuer', code: 'certificate_expired', chain: () => underCa({ notAfter: before(1) }) },
  {
    name: 'an issuer that is not valid yet',
    code: 'certificate_expired',
    chain: () => underCa({ notBefore: after(1) }),
  },
  { name: 'an expired root', code: 'certificate_expired', chain: () => underRoot({ notAfter: before(1) }) },
  {
    name: 'a root that is not valid yet',
    code: 'certificate_expired',
    chain: () => underRoot({ notBefore: after(1) }),
  },
  {
    name: 'an instant that is none',
    code: 'certificate_expired',
    chain: () => ({ certificate: makeDevice(deviceCa), now: new Date(Number.NaN) }),
  },
  {
    name: 'an expired device with a wrong signature, which must not be told that time alone is its fault',
    code: 'certificate_untrusted',
    chain: () => ({ certificate: withWrongSignature(makeDevice(deviceCa, { notAfter: before(1) })) }),
  },
]
for (const { name, code, chain } of attacks) {
  test(`path: ${name} is ${code}`, () => {
    const options = chain()
    assert.throws(() => verify(options), { name: 'CertpeerError', code })
    // Asked again with the same parsed certificates, the answer is the same: nothing refused is remembered as proven.
    assert.throws(() => verify(options), { name: 'CertpeerError', code })
  })
}

const unreadable: readonly { name: string; parts: CertificateParts }[] = [
  {
    name: 'two address blocks',
    parts: extension('second', ipAddrBlocks([parsePrefix('10.88.0.9/32')])),
  },
  {
    name: 'an inherited address block',
    parts: extension(
      'ipAddrBlocks',
      encodeExtension(OID.ipAddrBlocks, false, Buffer.from('30083006040200010500', 'hex')),
    ),
  },
  {
    name: 'a range of addresses',
    parts: extension(
      'ipAddrBlocks',
      encodeExtension(
        OID.ipAddrBlocks,
        false,
        Buffer.from('3018301604020001 3010300e0305010a5800020305000a580004'.replace(' ', ''), 'hex'),
      ),
    ),
  },
  {
    name: 'two WireGuard keys',
    parts: extension('second', wireGuardKeyExtension(OIDS, WIREGUARD_KEY, true)),
  },
  {
    name: 'the same extension twice, once critical',
    parts: extension('second', encodeExtension(OID.extendedKeyUsage, true, derSequence())),
  },
]
for (const { name, parts } of unreadable) {
  test(`path: a device with ${name} is not even read`, () => {
    assert.throws(() => makeDevice(deviceCa, parts), { code: 'malformed_certificate' })
  })
}

test('validity includes both of its ends', () => {
  const certificate = makeDevice(deviceCa, { notBefore: before(10), notAfter: after(10) })
  for (const seconds of [-10, 0, 10]) assert.equal(verify({ certificate, now: after(seconds) }).role, 'device')
  for (const seconds of [-11, 11]) {
    assert.throws(() => verify({ certificate, now: after(seconds) }), { code: 'certificate_expired' })
  }
})

test('a proven signature is remembered, an expiry never', () => {
  const certificate = makeDevice(deviceCa)
  assert.equal(verify({ certificate }).role, 'device')
  assert.throws(() => verify({ certificate, now: after(100_000) }), { code: 'certificate_expired' })
  assert.throws(() => verify({ certificate, roles: ['gateway'] }), { code: 'bad_client_certificate' })
  assert.throws(() => verify({ certificate, root: makeRoot().certificate }), { code: 'certificate_untrusted' })
})

test('of two certificates of one CA key the one that holds is found, whatever their order', () => {
  const expired = makeDeviceCa(root, { notAfter: before(1) })
  const renewed = renew(expired)
  const certificate = makeDevice(expired)
  for (const issuers of [
    [expired.certificate, renewed],
    [renewed, expired.certificate],
  ]) {
    assert.equal(verify({ certificate, issuers }).issuer, renewed)
  }
  assert.throws(() => verify({ certificate, issuers: [expired.certificate] }), { code: 'certificate_expired' })
})

/** The CA's certificate once more, for the same key and with a longer life. */
function renew(ca: Authority): Certificate {
  const tbs = readSequence(readDer(ca.certificate.tbs))
  const parts: Buffer[] = []
  while (!tbs.atEnd) parts.push(tbs.read().bytes)
  const validity = readSequence(readDer(root.certificate.tbs))
  for (let i = 0; i < 4; i += 1) validity.read()
  parts[4] = validity.read().bytes
  const algorithm = signatureAlgorithmFor(root.publicKey)
  const renewedTbs = derSequence(...parts)
  return parseCertificate(assembleSigned(renewedTbs, algorithm.der, sign(algorithm.hash, renewedTbs, root.privateKey)))
}

test('a leading dot permits hosts under it and not the host itself; no dot permits the host alone', () => {
  const ca = (hosts: readonly string[]) =>
    makeInfrastructureCa(root, extension('nameConstraints', nameConstraintsUri(hosts)))
  for (const [hosts, host, permitted] of [
    [[TRUST_DOMAIN], TRUST_DOMAIN, true],
    [[TRUST_DOMAIN], `acme.${TRUST_DOMAIN}`, false],
    [[`.${TRUST_DOMAIN}`], `acme.${TRUST_DOMAIN}`, true],
    [[`.${TRUST_DOMAIN}`], TRUST_DOMAIN, false],
    [[TRUST_DOMAIN, `.${TRUST_DOMAIN}`], TRUST_DOMAIN, true],
    [[`e.${TRUST_DOMAIN}`], `acme.${TRUST_DOMAIN}`, false],
  ] as const) {
    const issuer = ca(hosts)
    const certificate = makeInfrastructureLeaf(issuer, 'operator-admin', `spiffe://${host}/operator/ann`)
    const attempt = () => verify(under(issuer, certificate))
    if (permitted) assert.equal(attempt().role, 'operator-admin')
    else assert.throws(attempt, { code: 'certificate_untrusted' })
  }
})

test('a P-256 signature has two forms: another fingerprint, the same serial number and issuer key', () => {
  const certificate = makeDevice(deviceCa)
  const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n
  const reader = readSequence(readDer(certificate.signature))
  const [r, s] = [readInteger(reader.read()), readInteger(reader.read())]
  const other = derSequence(derInteger(r), derInteger(order - s))
  const twin = parseCertificate(assembleSigned(certificate.tbs, signatureAlgorithmFor(deviceCa.publicKey).der, other))

  const [facts, twinFacts] = [certificate, twin].map((leaf) => readDevice(verify({ certificate: leaf }), OIDS))
  assert.notEqual(twin.fingerprint, certificate.fingerprint)
  assert.equal(twinFacts?.serial, facts?.serial)
  assert.equal(twinFacts?.issuerKeyId, facts?.issuerKeyId)
  assert.equal(facts?.issuerKeyId, deviceCa.certificate.keyId)
})

test('verifyIssuer believes a CA below the root and says why it does not', () => {
  const check = (issuer: Certificate, now = NOW, pinned = root.certificate) =>
    verifyIssuer({ issuer, root: pinned, now, oids: OIDS })
  check(deviceCa.certificate)
  check(infrastructureCa.certificate)
  const caWith = (name: string, value: Buffer | null) => makeDeviceCa(root, extension(name, value)).certificate
  for (const issuer of [
    root.certificate,
    makeDevice(deviceCa),
    makeDeviceCa(makeRoot()).certificate,
    makeDeviceCa(deviceCa).certificate,
    withWrongSignature(makeDeviceCa(root).certificate),
    caWith('basicConstraints', basicConstraints(false)),
    caWith('keyUsage', keyUsage(['cRLSign'])),
    caWith('extendedKeyUsage', null),
    caWith('extendedKeyUsage', extendedKeyUsage([OID.clientAuth])),
    caWith('unknown', UNKNOWN_CRITICAL),
  ]) {
    assert.throws(() => check(issuer), { code: 'certificate_untrusted' })
  }
  assert.throws(() => check(makeDeviceCa(root, { notAfter: before(1) }).certificate), { code: 'certificate_expired' })
  assert.throws(() => check(deviceCa.certificate, after(86_400 * 3651)), { code: 'certificate_expired' })
  const shortRoot = makeRoot({ notAfter: after(1) })
  assert.throws(() => check(makeDeviceCa(shortRoot).certificate, after(2), shortRoot.certificate), {
    code: 'certificate_expired',
  })
})

test("a device's facts are those of its certificate", () => {
  const certificate = makeDevice(deviceCa)
  const facts = readDevice(verify({ certificate }), OIDS)
  assert.deepEqual(
    {
      ...facts,
      addresses: facts.addresses.map(formatPrefix),
      keyAddress: formatPrefix(facts.keyAddress),
      allowedIps: facts.allowedIps.map(formatPrefix),
    },
    {
      identity: { kind: 'device', tenant: 'default', network: 'default', id: 'd1' },
      uri: DEVICE_URI,
      tenant: 'default',
      network: 'default',
      id: 'd1',
      key: WIREGUARD_KEY,
      possession: true,
      addresses: ['10.88.0.2/32', 'fd00:0:0:1::2/128'],
      keyAddress: 'fd00::ff:9ed4:d8e9:3902:bc9e/128',
      allowedIps: ['10.88.0.2/32', 'fd00:0:0:1::2/128', 'fd00::ff:9ed4:d8e9:3902:bc9e/128'],
      groups: ['admins', 'staff'],
      serial: certificate.serial,
      issuerKeyId: deviceCa.certificate.keyId,
      notBefore: certificate.notBefore,
      notAfter: certificate.notAfter,
    },
  )
})

test('a device may have one address of either family, and no proof of possession', () => {
  for (const addresses of [['10.88.0.2/32'], ['fd00:0:0:1::2/128']]) {
    const certificate = makeDevice(deviceCa, { addresses: addresses.map(parsePrefix), possession: false })
    const facts = readDevice(verify({ certificate }), OIDS)
    assert.deepEqual(facts.addresses.map(formatPrefix), addresses)
    assert.equal(facts.possession, false)
  }
})

const OTHER_KEY = wireGuardKeyFromBytes(Buffer.from(`09${'00'.repeat(31)}`, 'hex'))
const rawKey = (hex: string) => encodeExtension(OIDS.wireGuardKey, false, Buffer.from(hex.replaceAll(' ', ''), 'hex'))
const texts = (oid: string, hex: string) => encodeExtension(oid, false, Buffer.from(hex.replaceAll(' ', ''), 'hex'))
const blocks = (...prefixes: string[]) => ipAddrBlocks(prefixes.map(parsePrefix))
const KEY_ADDRESS = formatPrefix(keyAddress(KEY_PREFIX, WIREGUARD_KEY))
const badDevices: readonly { name: string; code: ErrorCode; parts: DeviceParts }[] = [
  {
    name: 'the key address of another key',
    code: 'bad_client_certificate',
    parts: extension('wireGuardKey', wireGuardKeyExtension(OIDS, OTHER_KEY, true)),
  },
  {
    name: 'no key address',
    code: 'bad_client_certificate',
    parts: extension('ipAddrBlocks', blocks('10.88.0.2/32', 'fd00:0:0:1::2/128')),
  },
  {
    name: 'two key addresses',
    code: 'bad_client_certificate',
    parts: { addresses: [parsePrefix('10.88.0.2/32'), keyAddress(parsePrefix('fd00:0:0:1::/64'), WIREGUARD_KEY)] },
  },
  { name: 'a key address alone', code: 'bad_client_certificate', parts: { addresses: [] } },
  {
    name: 'two IPv4 addresses',
    code: 'bad_client_certificate',
    parts: { addresses: [parsePrefix('10.88.0.2/32'), parsePrefix('10.88.0.4/32')] },
  },
  {
    name: 'two IPv6 addresses',
    code: 'bad_client_certificate',
    parts: { addresses: [parsePrefix('fd00:0:0:1::2/128'), parsePrefix('fd00:0:0:1::4/128')] },
  },
  {
    name: 'a whole network',
    code: 'bad_client_certificate',
    parts: extension('ipAddrBlocks', blocks('10.88.0.0/24', KEY_ADDRESS)),
  },
  { name: 'no WireGuard key', code: 'bad_client_certificate', parts: extension('wireGuardKey', null) },
  {
    name: 'a key of 31 octets',
    code: 'bad_wireguard_key',
    parts: extension('wireGuardKey', rawKey(`3021 041f ${'09'.repeat(31)}`)),
  },
  {
    name: 'a key with bit 255 set',
    code: 'bad_wireguard_key',
    parts: extension('wireGuardKey', rawKey(`3022 0420 09${'00'.repeat(30)}80`)),
  },
  {
    name: 'a key of low order',
    code: 'bad_wireguard_key',
    parts: extension('wireGuardKey', rawKey(`3022 0420 ${'00'.repeat(32)}`)),
  },
  {
    name: 'a key outside its SEQUENCE',
    code: 'bad_client_certificate',
    parts: extension('wireGuardKey', rawKey(`0420 09${'00'.repeat(31)}`)),
  },
  {
    name: 'a key with a BER length',
    code: 'bad_client_certificate',
    parts: extension('wireGuardKey', rawKey(`308122 0420 09${'00'.repeat(31)}`)),
  },
  {
    name: 'a key with a trailing byte',
    code: 'bad_client_certificate',
    parts: extension('wireGuardKey', rawKey(`3022 0420 09${'00'.repeat(31)} 00`)),
  },
  {
    name: 'a key with a third field',
    code: 'bad_client_certificate',
    parts: extension('wireGuardKey', rawKey(`3024 0420 09${'00'.repeat(31)} 0500`)),
  },
  {
    name: 'an unknown method of possession',
    code: 'bad_client_certificate',
    parts: extension(
      'wireGuardKey',
      rawKey(`3027 0420 ${Buffer.from(WIREGUARD_KEY, 'base64').toString('hex')} 06032a0304`),
    ),
  },
  {
    name: 'a group twice',
    code: 'bad_client_certificate',
    parts: extension('accessGroups', texts(OIDS.accessGroups, '3006 0c0161 0c0161')),
  },
  {
    name: 'groups out of order',
    code: 'bad_client_certificate',
    parts: extension('accessGroups', texts(OIDS.accessGroups, '3006 0c0162 0c0161')),
  },
  {
    name: 'a group in upper case',
    code: 'bad_client_certificate',
    parts: extension('accessGroups', texts(OIDS.accessGroups, '3003 0c0141')),
  },
  {
    name: 'a group that is no UTF8String',
    code: 'bad_client_certificate',
    parts: extension('accessGroups', texts(OIDS.accessGroups, '3003 160161')),
  },
  {
    name: '33 groups',
    code: 'bad_client_certificate',
    parts: extension(
      'accessGroups',
      accessGroupsExtension(
        OIDS,
        Array.from({ length: 33 }, (_, i) => `g${i}`),
      ),
    ),
  },
]
for (const { name, code, parts } of badDevices) {
  test(`a device with ${name} is ${code}`, () => {
    const verified = verify({ certificate: makeDevice(deviceCa, parts) })
    assert.throws(() => readDevice(verified, OIDS), { name: 'CertpeerError', code })
  })
}

test('a device without groups has none', () => {
  const certificate = makeDevice(deviceCa, extension('accessGroups', null))
  assert.deepEqual(readDevice(verify({ certificate }), OIDS).groups, [])
})

test("a gateway's facts are those of its certificate", () => {
  const certificate = makeGateway(infrastructureCa)
  const facts = readGateway(verify({ certificate }), OIDS)
  assert.deepEqual(
    { ...facts, servedPrefixes: facts.servedPrefixes.map(formatPrefix) },
    {
      name: 'g1',
      uri: `spiffe://${TRUST_DOMAIN}/gateway/g1`,
      key: WIREGUARD_KEY,
      tunnelAddresses: ['10.88.0.1', 'fd00:0:0:1::1'],
      servedPrefixes: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
      servedNetworks: ['default/default'],
      serial: certificate.serial,
      issuerKeyId: infrastructureCa.certificate.keyId,
      notBefore: certificate.notBefore,
      notAfter: certificate.notAfter,
    },
  )
})

const san = (...ips: string[]) => subjectAltName({ uris: [`spiffe://${TRUST_DOMAIN}/gateway/g1`], ips })
for (const { name, parts } of [
  { name: 'no tunnel address', parts: extension('subjectAltName', san()) },
  { name: "a tunnel address outside its CA's block", parts: extension('subjectAltName', san('192.0.2.1')) },
  { name: 'no network', parts: extension('servedNetworks', null) },
  { name: 'an empty list of networks', parts: extension('servedNetworks', servedNetworksExtension(OIDS, [])) },
  {
    name: 'a network without a tenant',
    parts: extension('servedNetworks', servedNetworksExtension(OIDS, ['default'])),
  },
  { name: 'a network of three names', parts: extension('servedNetworks', servedNetworksExtension(OIDS, ['a/b/c'])) },
  { name: 'no WireGuard key', parts: extension('wireGuardKey', null) },
]) {
  test(`a gateway with ${name} is bad_client_certificate`, () => {
    const verified = verify({ certificate: makeGateway(infrastructureCa, parts) })
    assert.throws(() => readGateway(verified, OIDS), { name: 'CertpeerError', code: 'bad_client_certificate' })
  })
}

test('a device dressed as a gateway stays a device, and a gateway dressed as a device a gateway', () => {
  const device = makeDevice(deviceCa, {
    extensions: {
      subjectAltName: subjectAltName({ uris: [DEVICE_URI], ips: ['10.88.0.2'] }),
      servedNetworks: servedNetworksExtension(OIDS, ['default/default']),
    },
  })
  const gateway = makeGateway(infrastructureCa, {
    addresses: [parsePrefix('10.88.0.1/32'), keyAddress(KEY_PREFIX, WIREGUARD_KEY)],
  })
  assert.throws(() => readGateway(verify({ certificate: device }), OIDS), { code: 'bad_client_certificate' })
  assert.throws(() => readDevice(verify({ certificate: gateway }), OIDS), { code: 'bad_client_certificate' })
})
