import assert from 'node:assert/strict'
import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign, X509Certificate } from 'node:crypto'
import { test } from 'node:test'
import { AsnConvert } from '@peculiar/asn1-schema'
import { Certificate as AsnCertificate } from '@peculiar/asn1-x509'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import {
  derBitString,
  derBoolean,
  derContext,
  derInteger,
  derNull,
  derOctetString,
  derOid,
  derSequence,
  derSet,
  derTime,
  derTlv,
  derUtf8String,
} from '../../../src/core/der/writer.ts'
import { formatPrefix } from '../../../src/core/ipam/prefix.ts'
import {
  isP256Spki,
  MAX_CERTIFICATE_BYTES,
  parseCertificate,
  publicKeyFromSpki,
  publicKeyOf,
  verifySignature,
} from '../../../src/core/x509/certificate.ts'
import { encodeExtension, encodeName } from '../../../src/core/x509/encode.ts'
import {
  authorityInfoAccess,
  basicConstraints,
  crlDistributionPoints,
  extendedKeyUsage,
  keyUsage,
  ocspNoCheck,
  subjectAltName,
} from '../../../src/core/x509/extensions.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { makeDevice, makeDeviceCa, makeRoot, newKeyPair, spkiOf } from '../../support/certificates.ts'
import { vectorCertificate } from '../../support/vectors.ts'

const EC_SHA256 = derSequence(derOid(OID.ecdsaWithSha256))
const SPKI = spkiOf(newKeyPair().publicKey)
const EXTENSION = keyUsage(['digitalSignature'])

/** A certificate of which a test replaces one part; its signature is noise, because parsing does not look at it. */
function build(part: Record<string, Buffer | readonly Buffer[]> = {}): Buffer {
  const parts = {
    version: derContext(0, derInteger(2), true),
    serial: derInteger(0x1234),
    inner: EC_SHA256,
    issuer: encodeName('issuer'),
    validity: derSequence(derTime(new Date('2026-01-01T00:00:00Z')), derTime(new Date('2027-01-01T00:00:00Z'))),
    subject: encodeName('subject'),
    spki: SPKI,
    unique: [] as readonly Buffer[],
    extensions: derContext(3, derSequence(EXTENSION), true),
    after: [] as readonly Buffer[],
    outer: EC_SHA256,
    signature: derBitString(Buffer.from('3006020101020101', 'hex')),
    last: [] as readonly Buffer[],
    ...part,
  }
  const { version, serial, inner, issuer, validity, subject, spki, unique, extensions, after, outer, signature, last } =
    parts
  const tbs = [version, serial, inner, issuer, validity, subject, spki, unique, extensions, after].flat()
  return derSequence(derSequence(...tbs), ...[outer, signature, last].flat())
}
const withExtensions = (...extensions: readonly Buffer[]) =>
  build({ extensions: derContext(3, derSequence(...extensions), true) })
const withExtension = (oid: string, value: Buffer) => withExtensions(encodeExtension(oid, false, value))

test('what openssl issued is read as openssl says it', () => {
  const device = parseCertificate(vectorCertificate('device'))
  const issuing = parseCertificate(vectorCertificate('issuing'))
  const root = parseCertificate(vectorCertificate('root'))

  assert.equal(device.commonName, 'laptop')
  assert.deepEqual(device.sanUris, ['spiffe://default.certpeer.test/network/default/device/d1'])
  assert.deepEqual([...(device.keyUsage ?? [])], ['digitalSignature'])
  assert.deepEqual(device.extendedKeyUsage, [OID.clientAuth, '1.3.6.1.4.1.32473.51820.3.1'])
  assert.deepEqual(device.addressBlocks?.map(formatPrefix), [
    '10.88.0.2/32',
    'fd00:0:0:1::2/128',
    'fd00::ff:9ed4:d8e9:3902:bc9e/128',
  ])
  assert.deepEqual(device.crlUrls, ['http://pki.certpeer.test/crl/default.crl'])
  assert.deepEqual(device.ocspUrls, ['http://pki.certpeer.test/ocsp/default'])
  assert.deepEqual(device.caIssuersUrls, ['http://pki.certpeer.test/certs/default.crt'])
  assert.equal(device.isCa, false)
  assert.equal(device.pathLength, undefined)
  assert.equal(device.permittedUriHosts, undefined)
  assert.deepEqual(device.unknownCriticalExtensions, [])
  assert.equal(device.extensions.size, 10)
  assert.deepEqual(device.issuerDer, issuing.subjectDer)
  assert.equal(device.authorityKeyId, issuing.subjectKeyId)

  assert.equal(issuing.isCa, true)
  assert.equal(issuing.pathLength, 0)
  assert.deepEqual([...(issuing.keyUsage ?? [])], ['keyCertSign', 'cRLSign'])
  assert.deepEqual(issuing.permittedUriHosts, ['default.certpeer.test'])
  assert.equal(issuing.commonName, 'vector devices')
  assert.deepEqual(root.addressBlocks?.map(formatPrefix), ['0.0.0.0/0', '::/0'])

  assert.ok(verifySignature(device.tbs, device.signatureAlgorithm, device.signature, publicKeyOf(issuing)))
  assert.equal(issuing.signatureAlgorithm, OID.ecdsaWithSha384)
  assert.ok(verifySignature(issuing.tbs, issuing.signatureAlgorithm, issuing.signature, publicKeyOf(root)))
  assert.equal(verifySignature(device.tbs, device.signatureAlgorithm, device.signature, publicKeyOf(root)), false)
})

for (const name of ['root', 'issuing', 'device'] as const) {
  test(`node:crypto and @peculiar/asn1-x509 read the same of ${name}.pem`, () => {
    const der = vectorCertificate(name)
    const ours = parseCertificate(der)
    const node = new X509Certificate(der)
    const asn = AsnConvert.parse(der, AsnCertificate)
    assert.equal(ours.serial, node.serialNumber.toLowerCase())
    assert.equal(ours.notBefore.getTime(), new Date(node.validFrom).getTime())
    assert.equal(ours.notAfter.getTime(), new Date(node.validTo).getTime())
    assert.equal(ours.fingerprint, node.fingerprint256.replaceAll(':', '').toLowerCase())
    assert.equal(ours.isCa, node.ca)
    assert.deepEqual(publicKeyOf(ours).export({ format: 'jwk' }), node.publicKey.export({ format: 'jwk' }))
    assert.equal(ours.keyId, createHash('sha256').update(ours.spki).digest('hex'))
    assert.equal(ours.serial, Buffer.from(asn.tbsCertificate.serialNumber).toString('hex').replace(/^00/, ''))
    assert.deepEqual(
      [...ours.extensions.keys()],
      Array.from(asn.tbsCertificate.extensions ?? [], ({ extnID }) => extnID),
    )
  })
}

for (const name of ['inherit', 'range', 'safi', 'excluded', 'permitted-dns']) {
  test(`${name}.pem, which openssl takes, is refused`, () => {
    assert.doesNotThrow(() => new X509Certificate(vectorCertificate(name)))
    assert.throws(() => parseCertificate(vectorCertificate(name)), { code: 'malformed_certificate' })
  })
}

test('the parts that tests replace make a certificate when left alone', () => {
  assert.equal(parseCertificate(build()).serial, '1234')
})

const NAME = OID.commonName
const uri = (text: string) => derTlv(0x86, Buffer.from(text))
const refused: readonly (readonly [string, Buffer])[] = [
  ['nothing', Buffer.alloc(0)],
  ['a trailing byte', Buffer.concat([build(), Buffer.of(0)])],
  ['a cut-off end', build().subarray(0, -1)],
  ['a fourth part', build({ last: [derNull()] })],
  ['more than 16 KiB', withExtension('1.2.3', Buffer.alloc(MAX_CERTIFICATE_BYTES))],
  ['version 1', build({ version: [] })],
  ['version 2', build({ version: derContext(0, derInteger(1), true) })],
  ['version 4', build({ version: derContext(0, derInteger(3), true) })],
  ['serial number zero', build({ serial: derInteger(0) })],
  ['a negative serial number', build({ serial: derInteger(-5) })],
  ['a serial number of 21 octets', build({ serial: derInteger(Buffer.alloc(21, 1)) })],
  ['a padded serial number', build({ serial: Buffer.from('02020001', 'hex') })],
  ['two signature algorithms', build({ outer: derSequence(derOid(OID.ecdsaWithSha384)) })],
  [
    'ECDSA parameters',
    build({
      inner: derSequence(derOid(OID.ecdsaWithSha256), derNull()),
      outer: derSequence(derOid(OID.ecdsaWithSha256), derNull()),
    }),
  ],
  ['signature bits that are no octets', build({ signature: derBitString(Buffer.of(0x80), 7) })],
  ['a name with an empty part', build({ subject: derSequence(derSet()) })],
  ['a name with a part of one field', build({ subject: derSequence(derSet(derSequence(derOid(NAME)))) })],
  [
    'a name whose part is out of order',
    build({
      subject: derSequence(
        derTlv(
          0x31,
          derSequence(derOid('2.5.4.10'), derUtf8String('a')),
          derSequence(derOid('2.5.4.3'), derUtf8String('a')),
        ),
      ),
    }),
  ],
  [
    'a name that is not UTF-8',
    build({ subject: derSequence(derSet(derSequence(derOid(NAME), derTlv(0x0c, Buffer.of(0xff))))) }),
  ],
  ['one instant as validity', build({ validity: derSequence(derTime(new Date(0))) })],
  [
    'three instants as validity',
    build({ validity: derSequence(derTime(new Date(0)), derTime(new Date(0)), derTime(new Date(0))) }),
  ],
  [
    'a fractional instant',
    build({ validity: derSequence(derTlv(0x18, Buffer.from('20510101000000.5Z')), derTime(new Date(0))) }),
  ],
  [
    'GeneralizedTime before 2050',
    build({ validity: derSequence(derTlv(0x18, Buffer.from('20260101000000Z')), derTime(new Date(0))) }),
  ],
  [
    'a key without bits',
    build({ spki: derSequence(derSequence(derOid(OID.ecPublicKey)), derBitString(Buffer.alloc(0))) }),
  ],
  [
    'a key with a third part',
    build({ spki: derSequence(derSequence(derOid(OID.ecPublicKey)), derBitString(Buffer.of(4)), derNull()) }),
  ],
  ['a unique identifier', build({ unique: [derTlv(0x81, Buffer.of(0, 1))] })],
  ['no extensions', build({ extensions: [] })],
  ['an empty list of extensions', build({ extensions: derContext(3, derSequence(), true) })],
  ['something after the extensions', build({ after: [derNull()] })],
  ['an extension twice', withExtensions(EXTENSION, EXTENSION)],
  [
    'a private extension twice',
    withExtensions(encodeExtension('1.2.3', false, derNull()), EXTENSION, encodeExtension('1.2.3', true, derNull())),
  ],
  [
    'an extension that is critical FALSE',
    withExtensions(derSequence(derOid('1.2.3'), derBoolean(false), derOctetString(derNull()))),
  ],
  [
    'an extension that is critical 01',
    withExtensions(derSequence(derOid('1.2.3'), Buffer.from('010101', 'hex'), derOctetString(derNull()))),
  ],
  [
    'an extension with a fourth field',
    withExtensions(derSequence(derOid('1.2.3'), derOctetString(derNull()), derNull())),
  ],
  ['basicConstraints FALSE', withExtension(OID.basicConstraints, derSequence(derBoolean(false)))],
  ['a path length without CA', withExtension(OID.basicConstraints, derSequence(derInteger(0)))],
  ['a negative path length', withExtension(OID.basicConstraints, derSequence(derBoolean(true), derInteger(-1)))],
  [
    'basicConstraints with more',
    withExtension(OID.basicConstraints, derSequence(derBoolean(true), derInteger(0), derNull())),
  ],
  ['basicConstraints and a trailing byte', withExtension(OID.basicConstraints, Buffer.from('300000', 'hex'))],
  ['an empty keyUsage', withExtension(OID.keyUsage, derBitString(Buffer.alloc(0)))],
  ['keyUsage with trailing zero bits', withExtension(OID.keyUsage, derBitString(Buffer.of(0x80), 0))],
  ['keyUsage of ten bits', withExtension(OID.keyUsage, derBitString(Buffer.of(0x80, 0x40), 6))],
  ['an empty extended key usage', withExtension(OID.extendedKeyUsage, derSequence())],
  ['an extended key usage twice', withExtensions(extendedKeyUsage([OID.clientAuth, OID.clientAuth]))],
  ['33 extended key usages', withExtensions(extendedKeyUsage(Array.from({ length: 33 }, (_, i) => `1.2.3.${i}`)))],
  ['no alternative name', withExtension(OID.subjectAltName, derSequence())],
  ['an alternative name of no kind', withExtension(OID.subjectAltName, derSequence(derUtf8String('a')))],
  ['an alternative URI above 7f', withExtension(OID.subjectAltName, derSequence(derTlv(0x86, Buffer.of(0xe9))))],
  ['an IP address of five octets', withExtension(OID.subjectAltName, derSequence(derTlv(0x87, Buffer.alloc(5))))],
  ['an empty subject key identifier', withExtension(OID.subjectKeyIdentifier, derOctetString(Buffer.alloc(0)))],
  ['a subject key identifier of 65 octets', withExtension(OID.subjectKeyIdentifier, derOctetString(Buffer.alloc(65)))],
  [
    'an authority key identifier with more',
    withExtension(OID.authorityKeyIdentifier, derSequence(derTlv(0x80, Buffer.of(1)), derNull())),
  ],
  ['name constraints of nothing', withExtension(OID.nameConstraints, derSequence())],
  [
    'a permitted mail address',
    withExtension(OID.nameConstraints, derSequence(derContext(0, derSequence(derTlv(0x81, Buffer.from('a'))), true))),
  ],
  [
    'a name constraint with a maximum',
    withExtension(
      OID.nameConstraints,
      derSequence(derContext(0, derSequence(uri('a'), derTlv(0x81, Buffer.of(1))), true)),
    ),
  ],
  [
    'permitted and excluded names',
    withExtension(
      OID.nameConstraints,
      derSequence(derContext(0, derSequence(uri('a')), true), derContext(1, derSequence(uri('b')), true)),
    ),
  ],
  [
    'an access description of two places',
    withExtension(OID.authorityInfoAccess, derSequence(derSequence(derOid(OID.accessOcsp), uri('a'), uri('b')))),
  ],
  ['no distribution point', withExtension(OID.crlDistributionPoints, derSequence())],
]
for (const [name, der] of refused) {
  test(`a certificate with ${name} is refused`, () => {
    assert.throws(() => parseCertificate(der), { name: 'CertpeerError', code: 'malformed_certificate' })
  })
}

test('alternative names of every kind are read or counted', () => {
  const { sanUris, sanDnsNames, sanIpAddresses, sanOtherCount } = parseCertificate(
    withExtension(
      OID.subjectAltName,
      derSequence(
        uri('spiffe://a/b'),
        derTlv(0x82, Buffer.from('a.test')),
        derTlv(0x87, Buffer.of(10, 0, 0, 1)),
        derTlv(0x87, Buffer.from(`fd${'00'.repeat(14)}01`, 'hex')),
        derTlv(0x81, Buffer.from('a@b')),
        derTlv(0xa4, encodeName('x')),
      ),
    ),
  )
  assert.deepEqual([sanUris, sanDnsNames, sanIpAddresses], [['spiffe://a/b'], ['a.test'], ['10.0.0.1', 'fd00::1']])
  assert.equal(sanOtherCount, 2)
})

test('what we write is what we read: access, distribution points, names, usages', () => {
  const certificate = parseCertificate(
    withExtensions(
      basicConstraints(false),
      keyUsage(['digitalSignature', 'decipherOnly']),
      subjectAltName({ uris: ['spiffe://a/b'], dns: ['localhost'], ips: ['127.0.0.1', '::1'] }),
      crlDistributionPoints(['http://a/1.crl', 'http://b/1.crl']),
      authorityInfoAccess({ ocsp: 'http://a/ocsp', caIssuers: 'http://a/ca.crt' }),
      ocspNoCheck(),
    ),
  )
  assert.equal(certificate.isCa, false)
  assert.deepEqual([...(certificate.keyUsage ?? [])], ['digitalSignature', 'decipherOnly'])
  assert.deepEqual(certificate.sanIpAddresses, ['127.0.0.1', '::1'])
  assert.deepEqual(certificate.sanDnsNames, ['localhost'])
  assert.deepEqual(certificate.crlUrls, ['http://a/1.crl', 'http://b/1.crl'])
  assert.deepEqual([certificate.ocspUrls, certificate.caIssuersUrls], [['http://a/ocsp'], ['http://a/ca.crt']])
  assert.deepEqual(certificate.extensions.get(OID.ocspNoCheck), { critical: false, value: derNull() })
})

test('the URL of a distribution point with partial reasons or another issuer is not taken for a whole CRL', () => {
  const name = derContext(0, derContext(0, uri('http://a/1.crl'), true), true)
  for (const more of [derTlv(0x81, Buffer.of(6, 0x40)), derTlv(0xa2, derTlv(0xa4, encodeName('x')))]) {
    const der = withExtension(OID.crlDistributionPoints, derSequence(derSequence(name, more)))
    assert.deepEqual(parseCertificate(der).crlUrls, [])
  }
})

test('critical extensions that the parser does not process are recorded', () => {
  const der = withExtensions(
    EXTENSION,
    encodeExtension('1.2.3', true, derNull()),
    encodeExtension('1.2.4', false, derNull()),
    encodeExtension(
      OID.crlDistributionPoints,
      true,
      derSequence(derSequence(derContext(0, derContext(0, uri('a'), true), true))),
    ),
  )
  assert.deepEqual(parseCertificate(der).unknownCriticalExtensions, ['1.2.3', OID.crlDistributionPoints])
})

test('a parsed certificate does not change when the bytes it came from do', () => {
  const der = vectorCertificate('device')
  const certificate = parseCertificate(der)
  const { fingerprint } = certificate
  der.fill(0)
  assert.equal(parseCertificate(certificate.der).fingerprint, fingerprint)
})

test('keys: P-256 goes through JWK, others through SPKI, and what is no key is refused', () => {
  for (const curve of ['P-256', 'P-384']) {
    const spki = spkiOf(newKeyPair(curve).publicKey)
    assert.equal(isP256Spki(spki), curve === 'P-256')
    const expected = createPublicKey({ key: spki, format: 'der', type: 'spki' })
    assert.ok(publicKeyFromSpki(spki).equals(expected))
  }
  const offCurve = Buffer.from(SPKI)
  offCurve.writeUInt8(offCurve.readUInt8(90) ^ 1, 90)
  for (const spki of [
    offCurve,
    SPKI.subarray(0, 90),
    derSequence(derSequence(derOid('1.2.3')), derBitString(Buffer.of(1))),
  ]) {
    assert.throws(() => publicKeyFromSpki(spki), { code: 'malformed_certificate' })
  }
  const certificate = parseCertificate(vectorCertificate('device'))
  assert.equal(publicKeyOf(certificate), publicKeyOf(certificate))
})

test('signatures: only ECDSA with SHA-256 or SHA-384 on P-256 or P-384 holds', () => {
  const data = randomBytes(64)
  for (const { curve, hash, oid, holds } of [
    { curve: 'P-256', hash: 'sha256', oid: OID.ecdsaWithSha256, holds: true },
    { curve: 'P-256', hash: 'sha384', oid: OID.ecdsaWithSha384, holds: true },
    { curve: 'P-384', hash: 'sha384', oid: OID.ecdsaWithSha384, holds: true },
    { curve: 'P-384', hash: 'sha256', oid: OID.ecdsaWithSha256, holds: true },
    { curve: 'P-256', hash: 'sha256', oid: OID.ecdsaWithSha384, holds: false },
    { curve: 'P-256', hash: 'sha1', oid: '1.2.840.10045.4.1', holds: false },
    { curve: 'P-521', hash: 'sha256', oid: OID.ecdsaWithSha256, holds: false },
    { curve: 'secp256k1', hash: 'sha256', oid: OID.ecdsaWithSha256, holds: false },
  ]) {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: curve })
    assert.equal(verifySignature(data, oid, sign(hash, data, privateKey), publicKey), holds, `${curve} ${hash}`)
  }
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
  assert.equal(verifySignature(data, OID.ecdsaWithSha256, sign('sha256', data, rsa.privateKey), rsa.publicKey), false)
  assert.equal(verifySignature(data, OID.ecdsaWithSha256, Buffer.alloc(0), newKeyPair().publicKey), false)
})

/** Changes, inserts, drops or repeats bytes of a real certificate. */
const mutated = (der: Buffer) =>
  fc
    .array(fc.tuple(fc.nat(der.length - 1), fc.constantFrom('set', 'insert', 'drop', 'repeat'), fc.nat(255)), {
      minLength: 1,
      maxLength: 4,
    })
    .map((changes) => {
      const octets = [...der]
      for (const [at, kind, octet] of changes) {
        if (kind === 'set') octets[at] = octet
        else if (kind === 'insert') octets.splice(at, 0, octet)
        else if (kind === 'drop') octets.splice(at, 1)
        else octets.splice(at, 0, ...octets.slice(at, at + (octet % 16)))
      }
      return Buffer.from(octets)
    })

test('fuzz: nothing but malformed_certificate; what we accept, node:crypto and @peculiar accept with equal fields', () => {
  const root = makeRoot()
  const ca = makeDeviceCa(root)
  const originals = [
    makeDevice(ca).der,
    ca.certificate.der,
    vectorCertificate('device'),
    vectorCertificate('root'),
    build({ signature: derBitString(randomBytes(70)) }),
  ]
  let accepted = 0
  fc.assert(
    fc.property(fc.oneof(...originals.map(mutated)), (der) => {
      let ours
      try {
        ours = parseCertificate(der)
        publicKeyOf(ours)
      } catch (error) {
        assert.ok(error instanceof CertpeerError)
        assert.equal(error.code, 'malformed_certificate')
        return
      }
      accepted += 1
      const node = new X509Certificate(der)
      assert.equal(ours.serial, node.serialNumber.toLowerCase())
      assert.equal(ours.notBefore.getTime(), new Date(node.validFrom).getTime())
      assert.equal(ours.notAfter.getTime(), new Date(node.validTo).getTime())
      const asn = AsnConvert.parse(der, AsnCertificate)
      assert.equal(asn.tbsCertificate.extensions?.length, ours.extensions.size)
      assert.equal(asn.tbsCertificate.validity.notAfter.getTime().getTime(), ours.notAfter.getTime())
    }),
    { numRuns: 6000 },
  )
  assert.ok(accepted > 100, `only ${accepted} mutations were accepted: the comparison says nothing`)
})

test('fuzz: arbitrary bytes make malformed_certificate', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (input) => {
      assert.throws(() => parseCertificate(Buffer.from(input)), { code: 'malformed_certificate' })
    }),
    { numRuns: 2000 },
  )
})
