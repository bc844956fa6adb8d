/** The real openssl as second opinion: what we write it reads and verifies, and it refuses what it is able to refuse. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { createPublicKey, randomBytes, sign, X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { parseCertificate, type Certificate } from '../../../src/core/x509/certificate.ts'
import {
  assembleSigned,
  encodeName,
  encodeTbsCertificate,
  signatureAlgorithmFor,
} from '../../../src/core/x509/encode.ts'
import {
  authorityInfoAccess,
  basicConstraints,
  crlDistributionPoints,
  extendedKeyUsage,
  ipAddrBlocks,
  keyUsage,
  subjectAltName,
  subjectKeyIdentifier,
} from '../../../src/core/x509/extensions.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { readDevice, verifyCertificate } from '../../../src/core/x509/path.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { newSerial } from '../../../src/core/x509/serial.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeRoot,
  newKeyPair,
  NOW,
  OIDS,
  spkiOf,
  TRUST_DOMAIN,
  WIREGUARD_KEY,
  type Authority,
} from '../../support/certificates.ts'
import { vectorCertificate, vectorPath } from '../../support/vectors.ts'

const directory = mkdtempSync(join(tmpdir(), 'certpeer-openssl-'))
after(() => rmSync(directory, { recursive: true }))

function write(name: string, certificate: Certificate): string {
  const path = join(directory, `${name}.pem`)
  writeFileSync(path, derToPem(certificate.der))
  return path
}

function openssl(...args: readonly string[]): string {
  return execFileSync('openssl', args, { encoding: 'utf8' })
}

/** `openssl x509 -text` on one line, in one spelling: OpenSSL 3.2 dropped the blanks around the = of names. */
function opensslText(name: string, certificate: Certificate): string {
  const text = openssl('x509', '-noout', '-text', '-in', write(name, certificate))
  return text.replaceAll(/\s+/g, ' ').replaceAll(' = ', '=')
}

/** `openssl verify` at the tests' instant; the text it prints tells why it refuses. */
function opensslVerify(
  chain: { root: Certificate; issuer: Certificate; leaf: Certificate },
  ...options: readonly string[]
): { ok: boolean; text: string } {
  const { status, stdout, stderr } = spawnSync(
    'openssl',
    [
      'verify',
      ...['-attime', String(NOW.getTime() / 1000)],
      ...['-x509_strict', '-purpose', 'sslclient'],
      ...['-CAfile', write('root', chain.root), '-untrusted', write('issuer', chain.issuer)],
      ...options,
      write('leaf', chain.leaf),
    ],
    { encoding: 'utf8' },
  )
  return { ok: status === 0, text: stdout + stderr }
}

/** A root on P-384: what ceremonies make, beside the P-256 of everything hot. */
function makeP384Root(): Authority {
  const pair = newKeyPair('P-384')
  const algorithm = signatureAlgorithmFor(pair.publicKey)
  const spki = spkiOf(pair.publicKey)
  const name = encodeName('ceremony root', 'certpeer')
  const tbs = encodeTbsCertificate({
    serial: newSerial(randomBytes(20)),
    signatureAlgorithm: algorithm.der,
    issuerDer: name,
    notBefore: NOW,
    notAfter: new Date('2056-01-01T00:00:00Z'),
    subjectDer: name,
    spki,
    extensions: [
      basicConstraints(true),
      keyUsage(['keyCertSign', 'cRLSign']),
      subjectKeyIdentifier(spki),
      ipAddrBlocks([parsePrefix('0.0.0.0/0'), parsePrefix('::/0')]),
    ],
  })
  const der = assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, pair.privateKey))
  return { ...pair, certificate: parseCertificate(der) }
}

const root = makeP384Root()
const ca = makeDeviceCa(root)
const device = makeDevice(ca, {
  extensions: {
    crlDistributionPoints: crlDistributionPoints(['http://pki.test/crl/default.crl']),
    authorityInfoAccess: authorityInfoAccess({
      ocsp: 'http://pki.test/ocsp/default',
      caIssuers: 'http://pki.test/certs/default.crt',
    }),
  },
})

test('openssl reads every part of a device certificate as it was meant', () => {
  const text = opensslText('device', device)
  for (const part of [
    'Version: 3 (0x2)',
    'Signature Algorithm: ecdsa-with-SHA256',
    'Issuer: CN=default devices',
    'Not Before: Nov 20 11:55:00 2026 GMT Not After : Nov 21 12:00:00 2026 GMT',
    'Subject: CN=laptop',
    'NIST CURVE: P-256',
    'X509v3 Key Usage: critical Digital Signature',
    `X509v3 Extended Key Usage: TLS Web Client Authentication, ${OIDS.roles.device}`,
    `X509v3 Subject Alternative Name: URI:spiffe://default.${TRUST_DOMAIN}/network/default/device/d1`,
    'sbgp-ipAddrBlock: IPv4: 10.88.0.2/32 IPv6: fd00:0:0:1:0:0:0:2/128 fd00:0:0:ff:9ed4:d8e9:3902:bc9e/128',
    'X509v3 CRL Distribution Points: Full Name: URI:http://pki.test/crl/default.crl',
    'OCSP - URI:http://pki.test/ocsp/default CA Issuers - URI:http://pki.test/certs/default.crt',
    `${OIDS.wireGuardKey}:`,
    `${OIDS.accessGroups}: 0...admins..staff`,
  ]) {
    assert.ok(text.includes(part), `${part} is missing in ${text}`)
  }
  const printed = openssl('x509', '-noout', '-serial', '-in', write('device', device))
  assert.equal(printed.trim(), `serial=${device.serial.toUpperCase()}`)
})

test('openssl reads the extensions of the root and the issuing CA as they were meant', () => {
  const rootText = opensslText('root', root.certificate)
  for (const part of [
    'Issuer: O=certpeer, CN=ceremony root',
    'Not After : Jan 1 00:00:00 2056 GMT',
    'ecdsa-with-SHA384',
    'sbgp-ipAddrBlock: IPv4: 0.0.0.0/0 IPv6: ::/0',
  ]) {
    assert.ok(rootText.includes(part), part)
  }
  const text = opensslText('ca', ca.certificate)
  for (const part of [
    'X509v3 Basic Constraints: critical CA:TRUE, pathlen:0',
    'X509v3 Key Usage: critical Certificate Sign, CRL Sign',
    `X509v3 Name Constraints: critical Permitted: URI:default.${TRUST_DOMAIN}`,
    'sbgp-ipAddrBlock: IPv4: 10.88.0.0/16 IPv6: fd00:0:0:1::/64 fd00:0:0:ff::/64',
  ]) {
    assert.ok(text.includes(part), `${part} in ${text}`)
  }
})

test('every byte of our DER survives openssl asn1parse, which finds no error', () => {
  for (const certificate of [root.certificate, ca.certificate, device]) {
    assert.doesNotMatch(
      openssl('asn1parse', '-in', write('any', certificate)),
      /Error in encoding|BAD (INTEGER|ENUMERATED|OBJECT|BOOLEAN)/,
    )
    assert.deepEqual(new X509Certificate(certificate.der).raw, certificate.der)
  }
})

test('openssl verifies what path.ts verifies', () => {
  const { ok, text } = opensslVerify({ root: root.certificate, issuer: ca.certificate, leaf: device })
  assert.ok(ok, text)
  const verified = verifyCertificate({
    certificate: device,
    issuers: [ca.certificate],
    root: root.certificate,
    now: NOW,
    oids: OIDS,
    trustDomain: TRUST_DOMAIN,
  })
  assert.equal(readDevice(verified, OIDS).key, WIREGUARD_KEY)
  const node = new X509Certificate(device.der)
  assert.ok(node.verify(createPublicKey({ key: ca.certificate.spki, format: 'der', type: 'spki' })))
  assert.ok(node.checkIssued(new X509Certificate(ca.certificate.der)))
})

test('the chain that openssl itself issued is believed by path.ts and by openssl', () => {
  const [pinned, issuer, leaf] = ['root', 'issuing', 'device'].map((name) => parseCertificate(vectorCertificate(name)))
  assert.ok(pinned && issuer && leaf)
  const now = new Date(leaf.notBefore.getTime() + 1000)
  const verified = verifyCertificate({
    certificate: leaf,
    issuers: [issuer],
    root: pinned,
    now,
    oids: OIDS,
    trustDomain: TRUST_DOMAIN,
  })
  assert.equal(readDevice(verified, OIDS).possession, true)
  const path = (name: string) => vectorPath('certificates', `${name}.pem`)
  const at = String(now.getTime() / 1000)
  const answer = openssl(
    'verify',
    '-attime',
    at,
    '-CAfile',
    path('root'),
    '-untrusted',
    path('issuing'),
    path('device'),
  )
  assert.match(answer, /: OK/)
})

const infrastructure = makeInfrastructureCa(root)
const plainRoot = makeRoot({ extensions: { ipAddrBlocks: ipAddrBlocks([parsePrefix('10.0.0.0/9')]) } })
const plainCa = makeDeviceCa(plainRoot)
const shallowRoot = makeRoot({ extensions: { basicConstraints: basicConstraints(true, 0) } })
const shallowCa = makeDeviceCa(shallowRoot)
const weakCa = makeDeviceCa(root, {
  extensions: { extendedKeyUsage: extendedKeyUsage([OID.serverAuth, OIDS.roles.device]) },
})
const opinions: readonly {
  name: string
  chain: { root: Certificate; issuer: Certificate; leaf: Certificate }
  /** What openssl says; undefined where it takes what path.ts refuses, so that path.ts stands alone. */
  refusal?: RegExp
}[] = [
  {
    name: "a leaf outside its CA's block",
    chain: {
      root: root.certificate,
      issuer: ca.certificate,
      leaf: makeDevice(ca, { addresses: [parsePrefix('10.99.0.2/32')] }),
    },
    refusal: /RFC 3779/,
  },
  {
    name: "a CA outside its root's block",
    chain: { root: plainRoot.certificate, issuer: plainCa.certificate, leaf: makeDevice(plainCa) },
    refusal: /RFC 3779/,
  },
  {
    name: 'a leaf of another tenant',
    chain: {
      root: root.certificate,
      issuer: ca.certificate,
      leaf: makeDevice(ca, { uri: `spiffe://acme.${TRUST_DOMAIN}/network/default/device/d1` }),
    },
    refusal: /permitted subtree violation/,
  },
  {
    name: 'a CA without clientAuth',
    chain: { root: root.certificate, issuer: weakCa.certificate, leaf: makeDevice(weakCa) },
    refusal: /unsuitable certificate purpose|unsupported certificate purpose/,
  },
  {
    name: 'a root whose path length allows no CA',
    chain: { root: shallowRoot.certificate, issuer: shallowCa.certificate, leaf: makeDevice(shallowCa) },
    refusal: /path length constraint exceeded/,
  },
  {
    name: 'an expired leaf',
    chain: {
      root: root.certificate,
      issuer: ca.certificate,
      leaf: makeDevice(ca, { notAfter: new Date(NOW.getTime() - 1000) }),
    },
    refusal: /has expired/,
  },
  {
    name: 'a leaf without a block',
    chain: {
      root: root.certificate,
      issuer: ca.certificate,
      leaf: makeDevice(ca, { extensions: { ipAddrBlocks: null } }),
    },
  },
  {
    name: 'a role that its CA may not issue',
    chain: { root: root.certificate, issuer: infrastructure.certificate, leaf: makeDevice(infrastructure) },
  },
  {
    name: 'two identities of one tenant',
    chain: {
      root: root.certificate,
      issuer: ca.certificate,
      leaf: makeDevice(ca, {
        extensions: {
          subjectAltName: subjectAltName({
            uris: ['d1', 'd2'].map((id) => `spiffe://default.${TRUST_DOMAIN}/network/default/device/${id}`),
          }),
        },
      }),
    },
  },
]
for (const { name, chain, refusal } of opinions) {
  test(`${name}: path.ts refuses it, openssl ${refusal ? 'as well' : 'does not'}`, () => {
    assert.throws(() =>
      verifyCertificate({
        certificate: chain.leaf,
        issuers: [chain.issuer],
        root: chain.root,
        now: NOW,
        oids: OIDS,
        trustDomain: TRUST_DOMAIN,
      }),
    )
    const { ok, text } = opensslVerify(chain)
    assert.equal(ok, refusal === undefined, text)
    if (refusal) assert.match(text, refusal)
  })
}
