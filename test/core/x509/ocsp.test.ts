import assert from 'node:assert/strict'
import { sign } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import { readDer } from '../../../src/core/der/reader.ts'
import { derContext, derInteger, derNull, derOctetString, derOid, derSequence } from '../../../src/core/der/writer.ts'
import { CertpeerError, type ErrorCode } from '../../../src/core/errors.ts'
import { parseCertificate, type Certificate } from '../../../src/core/x509/certificate.ts'
import {
  encodeExtension,
  encodeName,
  encodeTbsCertificate,
  assembleSigned,
  signatureAlgorithmFor,
} from '../../../src/core/x509/encode.ts'
import {
  authorityKeyIdentifier,
  basicConstraints,
  extendedKeyUsage,
  keyUsage,
  ocspNoCheck,
} from '../../../src/core/x509/extensions.ts'
import {
  certIdMatches,
  encodeOcspError,
  encodeOcspRequest,
  encodeOcspResponse,
  encodeOcspResponseData,
  MAX_OCSP_CERT_IDS,
  parseOcspRequest,
  responderKeyHash,
  verifyOcspResponse,
  type OcspStatus,
  type SingleOcspResponse,
} from '../../../src/core/x509/ocsp.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { newSerial } from '../../../src/core/x509/serial.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeRoot,
  newKeyPair,
  NOW,
  spkiOf,
  type Authority,
} from '../../support/certificates.ts'
import { OpensslFolder } from '../../support/openssl.ts'

/** openssl goes by the real clock, so the CAs are valid whenever the tests run. */
const ALWAYS = { notBefore: new Date('2020-01-01T00:00:00Z'), notAfter: new Date('2049-12-31T00:00:00Z') }
const ROOT = makeRoot(ALWAYS)
const CA = makeDeviceCa(ROOT, ALWAYS)
const OTHER_CA = makeDeviceCa(ROOT, ALWAYS, 'other')
const DEVICE = makeDevice(CA)
const NONCE = Buffer.alloc(32, 0x77)
const MALFORMED = { name: 'CertpeerError', code: 'malformed_ocsp' }

interface SignerParts {
  readonly issuer?: Authority
  readonly notBefore?: Date
  readonly notAfter?: Date
  readonly extensions?: readonly Buffer[]
}

const OCSP_SIGNING = extendedKeyUsage([OID.ocspSigning])
const DIGITAL_SIGNATURE = keyUsage(['digitalSignature'])

/** A delegated OCSP signer as the authority issues it, or with parts that must make it useless. */
function makeSigner(parts: SignerParts = {}): Authority {
  const issuer = parts.issuer ?? CA
  const pair = newKeyPair()
  const algorithm = signatureAlgorithmFor(issuer.publicKey)
  const tbs = encodeTbsCertificate({
    serial: newSerial(Buffer.alloc(16, 5)),
    signatureAlgorithm: algorithm.der,
    issuerDer: issuer.certificate.subjectDer,
    notBefore: parts.notBefore ?? new Date(NOW.getTime() - 3_600_000),
    notAfter: parts.notAfter ?? new Date(NOW.getTime() + 3_600_000),
    subjectDer: encodeName('ocsp'),
    spki: spkiOf(pair.publicKey),
    extensions: [
      authorityKeyIdentifier(issuer.certificate),
      ...(parts.extensions ?? [DIGITAL_SIGNATURE, OCSP_SIGNING, ocspNoCheck()]),
    ],
  })
  const der = assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, issuer.privateKey))
  return { certificate: parseCertificate(der), ...pair }
}

const SIGNER = makeSigner()
const GOOD: OcspStatus = { status: 'good' }

/** The CertID of a question about `certificate`. */
function certIdOf(certificate: Certificate, issuer: Authority, hashAlgorithm: 'sha1' | 'sha256' = 'sha256'): Buffer {
  const request = encodeOcspRequest({ certificate, issuer: issuer.certificate, hashAlgorithm })
  const [certId] = parseOcspRequest(request).certIds
  assert.ok(certId !== undefined)
  return certId.bytes
}

interface ResponseParts {
  readonly status?: OcspStatus
  readonly responses?: readonly SingleOcspResponse[]
  readonly thisUpdate?: Date
  readonly nextUpdate?: Date | null
  readonly nonce?: Buffer
  readonly signer?: Authority
  readonly certificates?: readonly Buffer[]
  readonly signWith?: Authority
  readonly responder?: Certificate
}

function respond(parts: ResponseParts = {}): Buffer {
  const signer = parts.signer ?? SIGNER
  const nextUpdate = parts.nextUpdate === undefined ? new Date(NOW.getTime() + 600_000) : parts.nextUpdate
  const single: SingleOcspResponse = {
    certId: certIdOf(DEVICE, CA),
    ...(parts.status ?? GOOD),
    thisUpdate: parts.thisUpdate ?? NOW,
    ...(nextUpdate === null ? {} : { nextUpdate }),
  }
  const tbs = encodeOcspResponseData({
    responderKeyHash: responderKeyHash(parts.responder ?? signer.certificate),
    producedAt: NOW,
    responses: parts.responses ?? [single],
    ...(parts.nonce === undefined ? {} : { nonce: parts.nonce }),
  })
  return encodeOcspResponse({
    tbs,
    algorithmDer: signatureAlgorithmFor(signer.publicKey).der,
    signature: sign('sha256', tbs, (parts.signWith ?? signer).privateKey),
    certificates: parts.certificates ?? [signer.certificate.der],
  })
}

function verify(response: Buffer, options: { nonce?: Buffer; now?: Date } = {}) {
  return verifyOcspResponse({ response, certificate: DEVICE, issuer: CA.certificate, now: NOW, ...options })
}

for (const hashAlgorithm of ['sha1', 'sha256'] as const) {
  test(`our request with ${hashAlgorithm} is read, and is about this issuer's certificate alone`, () => {
    const request = encodeOcspRequest({ certificate: DEVICE, issuer: CA.certificate, nonce: NONCE, hashAlgorithm })
    const { certIds, nonce } = parseOcspRequest(request)
    assert.deepEqual(nonce, NONCE)
    assert.equal(certIds.length, 1)
    const [certId] = certIds
    assert.ok(certId !== undefined)
    assert.equal(certId.hashAlgorithm, hashAlgorithm)
    assert.equal(certId.serial, DEVICE.serial)
    assert.equal(certIdMatches(certId, CA.certificate), true)
    assert.equal(certIdMatches(certId, OTHER_CA.certificate), false)
    assert.equal(certIdMatches(certId, makeDeviceCa(ROOT).certificate), false, 'same name, other key')
  })

  test(`openssl's request with ${hashAlgorithm} is read`, () => {
    using folder = pki()
    folder.ok(['ocsp', '-issuer', 'ca.pem', `-${hashAlgorithm}`, '-cert', 'device.pem', '-reqout', 'req.der'])
    const { certIds, nonce } = parseOcspRequest(folder.read('req.der'))
    const [certId] = certIds
    assert.ok(certId !== undefined)
    assert.equal(certId.hashAlgorithm, hashAlgorithm)
    assert.equal(certId.serial, DEVICE.serial)
    assert.equal(certIdMatches(certId, CA.certificate), true)
    assert.ok(nonce !== undefined && nonce.length >= 16)
  })
}

/** A folder with the certificates as openssl wants them. */
function pki(): OpensslFolder {
  const folder = new OpensslFolder()
  folder.write('root.pem', derToPem(ROOT.certificate.der))
  folder.write('ca.pem', derToPem(CA.certificate.der))
  folder.write('device.pem', derToPem(DEVICE.der))
  folder.write('ocsp.pem', derToPem(SIGNER.certificate.der))
  folder.write('ocsp.key', SIGNER.privateKey.export({ type: 'pkcs8', format: 'pem' }))
  return folder
}

test('a request about several certificates, some signed ones and a requestor name are read', () => {
  const list = derSequence(derSequence(certIdOf(DEVICE, CA)), derSequence(certIdOf(DEVICE, CA, 'sha1')))
  const requestor = derContext(1, derContext(4, encodeName('asker'), true), true)
  const signature = derContext(0, derSequence(derNull()), true)
  const { certIds, nonce } = parseOcspRequest(derSequence(derSequence(requestor, list), signature))
  assert.deepEqual(
    certIds.map(({ hashAlgorithm }) => hashAlgorithm),
    ['sha256', 'sha1'],
  )
  assert.equal(nonce, undefined)
})

const CERT_ID = certIdOf(DEVICE, CA)
const ONE = derSequence(derSequence(CERT_ID))
const withExtensions = (...extensions: Buffer[]) =>
  derSequence(derSequence(ONE, derContext(2, derSequence(...extensions), true)))
const nonceOf = (value: Buffer) => encodeExtension(OID.ocspNonce, false, value)
const GOOD_REQUEST = encodeOcspRequest({ certificate: DEVICE, issuer: CA.certificate, nonce: NONCE })
const sha256Id = derSequence(derOid(OID.sha256), derNull())

for (const { name, der } of [
  { name: 'nothing', der: Buffer.alloc(0) },
  { name: 'a byte behind the end', der: Buffer.concat([GOOD_REQUEST, Buffer.of(0)]) },
  { name: 'no certificate', der: derSequence(derSequence(derSequence())) },
  {
    name: 'a version that spells out the default',
    der: derSequence(derSequence(derContext(0, derInteger(0), true), ONE)),
  },
  {
    name: 'too many certificates',
    der: derSequence(
      derSequence(derSequence(...Array.from({ length: MAX_OCSP_CERT_IDS + 1 }, () => derSequence(CERT_ID)))),
    ),
  },
  { name: 'more than 16 KiB', der: withExtensions(encodeExtension('1.2.3', false, Buffer.alloc(16_384))) },
  {
    name: 'a hash we do not know',
    der: derSequence(
      derSequence(
        derSequence(
          derSequence(
            derSequence(
              derSequence(derOid('2.16.840.1.101.3.4.2.3')),
              derOctetString(Buffer.alloc(64)),
              derOctetString(Buffer.alloc(64)),
              derInteger(1),
            ),
          ),
        ),
      ),
    ),
  },
  {
    name: 'a hash of the wrong length',
    der: derSequence(
      derSequence(
        derSequence(
          derSequence(
            derSequence(sha256Id, derOctetString(Buffer.alloc(20)), derOctetString(Buffer.alloc(32)), derInteger(1)),
          ),
        ),
      ),
    ),
  },
  {
    name: 'a negative serial',
    der: derSequence(
      derSequence(
        derSequence(
          derSequence(
            derSequence(sha256Id, derOctetString(Buffer.alloc(32)), derOctetString(Buffer.alloc(32)), derInteger(-1)),
          ),
        ),
      ),
    ),
  },
  { name: 'an empty nonce', der: withExtensions(nonceOf(derOctetString(Buffer.alloc(0)))) },
  { name: 'a nonce of 129 octets', der: withExtensions(nonceOf(derOctetString(Buffer.alloc(129)))) },
  { name: 'a nonce that is no OCTET STRING', der: withExtensions(nonceOf(derInteger(7))) },
  { name: 'a nonce twice', der: withExtensions(nonceOf(derOctetString(NONCE)), nonceOf(derOctetString(NONCE))) },
  { name: 'an unknown critical extension', der: withExtensions(encodeExtension('1.2.3', true, derNull())) },
  {
    name: 'an unknown critical extension on one certificate',
    der: derSequence(
      derSequence(
        derSequence(derSequence(CERT_ID, derContext(0, derSequence(encodeExtension('1.2.3', true, derNull())), true))),
      ),
    ),
  },
]) {
  test(`a request with ${name} is refused`, () => assert.throws(() => parseOcspRequest(der), MALFORMED))
}

for (const length of [1, 32, 128]) {
  test(`a nonce of ${length} octets is taken`, () => {
    const { nonce } = parseOcspRequest(withExtensions(nonceOf(derOctetString(Buffer.alloc(length, 1)))))
    assert.equal(nonce?.length, length)
  })
}

const REVOKED: OcspStatus = { status: 'revoked', revokedAt: new Date('2026-11-20T11:59:00Z'), reason: 'keyCompromise' }

for (const { name, status } of [
  { name: 'good', status: GOOD },
  { name: 'revoked', status: REVOKED },
  { name: 'revoked without a reason', status: { ...REVOKED, reason: 'unspecified' as const } },
  { name: 'unknown', status: { status: 'unknown' as const } },
]) {
  test(`our response is verified and says ${name}`, () => {
    const answer = verify(respond({ status, nonce: NONCE }), { nonce: NONCE })
    assert.deepEqual(answer, { ...status, thisUpdate: NOW, nextUpdate: new Date(NOW.getTime() + 600_000) })
  })

  test(`openssl verifies our response and says ${name}`, () => {
    using folder = pki()
    // openssl asks first, so that its own nonce is what we answer.
    folder.ok(['ocsp', '-issuer', 'ca.pem', '-cert', 'device.pem', '-reqout', 'req.der'])
    const asked = parseOcspRequest(folder.read('req.der'))
    const [certId] = asked.certIds
    assert.ok(certId !== undefined && asked.nonce !== undefined)
    const single: SingleOcspResponse = {
      certId: certId.bytes,
      ...status,
      thisUpdate: new Date(),
      nextUpdate: new Date(Date.now() + 600_000),
    }
    const signer = makeSigner({ notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 600_000) })
    folder.write('resp.der', respond({ responses: [single], nonce: asked.nonce, signer }))
    // With -cert openssl would ask anew; so it checks the nonce of the request it made, and prints what it was told.
    const args = ['ocsp', '-reqin', 'req.der', '-respin', 'resp.der', '-no_nonce', '-resp_text']
    const result = folder.run([...args, '-CAfile', 'root.pem', '-verify_other', 'ca.pem'])
    const text = result.stdout.toString('utf8')
    assert.match(result.stderr, /Response verify OK/, result.stderr)
    assert.doesNotMatch(result.stderr, /WARNING|Nonce/i)
    assert.match(text, new RegExp(`Cert Status: ${status.status}`))
    assert.match(text, new RegExp(`Serial Number: ${DEVICE.serial}`, 'i'))
    assert.equal(
      text.includes('Revocation Reason: keyCompromise'),
      status.status === 'revoked' && status.reason !== 'unspecified',
    )
  })

  test(`openssl refuses our response saying ${name} to another request's nonce`, () => {
    using folder = pki()
    folder.ok(['ocsp', '-issuer', 'ca.pem', '-cert', 'device.pem', '-reqout', 'req.der'])
    folder.write('resp.der', respond({ status, nonce: NONCE }))
    const args = ['ocsp', '-reqin', 'req.der', '-respin', 'resp.der', '-no_nonce']
    assert.match(folder.run([...args, '-CAfile', 'root.pem', '-verify_other', 'ca.pem']).stderr, /Nonce Verify error/)
  })
}

function seconds(at: Date): string {
  return String(Math.floor(at.getTime() / 1000))
}

/** openssl's responder has its own clock and an index of its own; certificates here are valid around the real now. */
test("openssl's own responder: its answers are verified by us, by SHA-1 and SHA-256, with our nonce", () => {
  const now = new Date()
  const signer = makeSigner({
    notBefore: new Date(now.getTime() - 60_000),
    notAfter: new Date(now.getTime() + 600_000),
  })
  using folder = pki()
  folder.write('ocsp.pem', derToPem(signer.certificate.der))
  folder.write('ocsp.key', signer.privateKey.export({ type: 'pkcs8', format: 'pem' }))
  const hex = DEVICE.serial.toUpperCase()
  for (const { line, expected } of [
    { line: `V\t361120120000Z\t\t${hex}\tunknown\t/CN=x\n`, expected: 'good' },
    { line: `R\t361120120000Z\t261120110000Z,keyCompromise\t${hex}\tunknown\t/CN=x\n`, expected: 'revoked' },
    { line: '', expected: 'unknown' },
  ]) {
    folder.write('index.txt', line)
    for (const hashAlgorithm of ['sha1', 'sha256'] as const) {
      const request = encodeOcspRequest({ certificate: DEVICE, issuer: CA.certificate, nonce: NONCE, hashAlgorithm })
      folder.write('req.der', request)
      const args = ['ocsp', '-index', 'index.txt', '-rsigner', 'ocsp.pem', '-rkey', 'ocsp.key', '-CA', 'ca.pem']
      folder.ok([...args, '-reqin', 'req.der', '-respout', 'resp.der', '-nmin', '5'])
      const response = folder.read('resp.der')
      const answer = verify(response, { nonce: NONCE, now })
      assert.equal(answer.status, expected)
      if (answer.status === 'revoked') {
        assert.equal(answer.reason, 'keyCompromise')
        assert.deepEqual(answer.revokedAt, new Date('2026-11-20T11:00:00Z'))
      }
    }
  }
})

test('the issuer itself may sign', () => {
  assert.equal(verify(respond({ signer: CA, certificates: [] })).status, 'good')
})

test('another certificate of the responder beside the signer does no harm', () => {
  assert.equal(verify(respond({ certificates: [CA.certificate.der, SIGNER.certificate.der] })).status, 'good')
})

const otherSigner = makeSigner({ issuer: OTHER_CA })
const deviceSigner = makeSigner({ extensions: [DIGITAL_SIGNATURE, extendedKeyUsage([OID.clientAuth]), ocspNoCheck()] })
const anyPurpose = makeSigner({
  extensions: [DIGITAL_SIGNATURE, extendedKeyUsage([OID.anyExtendedKeyUsage]), ocspNoCheck()],
})
const noPurpose = makeSigner({ extensions: [DIGITAL_SIGNATURE, ocspNoCheck()] })
const noNoCheck = makeSigner({ extensions: [DIGITAL_SIGNATURE, OCSP_SIGNING] })
const noSignature = makeSigner({ extensions: [keyUsage(['keyAgreement']), OCSP_SIGNING, ocspNoCheck()] })
const subCa = makeSigner({
  extensions: [basicConstraints(true), keyUsage(['keyCertSign']), OCSP_SIGNING, ocspNoCheck()],
})
const critical = makeSigner({
  extensions: [DIGITAL_SIGNATURE, OCSP_SIGNING, ocspNoCheck(), encodeExtension('1.2.3', true, derNull())],
})
const expired = makeSigner({ notAfter: new Date(NOW.getTime() - 1000) })
const early = makeSigner({ notBefore: new Date(NOW.getTime() + 1000) })
const selfMade = makeSigner({ issuer: { ...CA, ...newKeyPair() } })
const minutes = (count: number) => new Date(NOW.getTime() + count * 60_000)
const answerFor = (certId: Buffer): SingleOcspResponse => ({
  certId,
  ...GOOD,
  thisUpdate: NOW,
  nextUpdate: minutes(10),
})

const WRONG: readonly { name: string; response: Buffer; code: ErrorCode; nonce?: Buffer }[] = [
  { name: 'nothing', response: Buffer.alloc(0), code: 'malformed_ocsp' },
  { name: 'a byte behind the end', response: Buffer.concat([respond(), Buffer.of(0)]), code: 'malformed_ocsp' },
  { name: 'a signer of another CA', response: respond({ signer: otherSigner }), code: 'malformed_ocsp' },
  { name: 'a signer that is just a device', response: respond({ signer: deviceSigner }), code: 'malformed_ocsp' },
  { name: 'a signer for any purpose', response: respond({ signer: anyPurpose }), code: 'malformed_ocsp' },
  { name: 'a signer without purposes', response: respond({ signer: noPurpose }), code: 'malformed_ocsp' },
  { name: 'a signer without ocsp-nocheck', response: respond({ signer: noNoCheck }), code: 'malformed_ocsp' },
  { name: 'a signer that may not sign', response: respond({ signer: noSignature }), code: 'malformed_ocsp' },
  { name: 'a signer that is a CA', response: respond({ signer: subCa }), code: 'malformed_ocsp' },
  {
    name: 'a signer with an unknown critical extension',
    response: respond({ signer: critical }),
    code: 'malformed_ocsp',
  },
  { name: 'a signer that has expired', response: respond({ signer: expired }), code: 'malformed_ocsp' },
  { name: 'a signer that is not valid yet', response: respond({ signer: early }), code: 'malformed_ocsp' },
  { name: 'a signer that the CA never signed', response: respond({ signer: selfMade }), code: 'malformed_ocsp' },
  { name: 'no signer certificate', response: respond({ certificates: [] }), code: 'malformed_ocsp' },
  { name: 'a signature by another key', response: respond({ signWith: otherSigner }), code: 'malformed_ocsp' },
  {
    name: "the issuer's name on a stranger's signature",
    response: respond({ responder: CA.certificate }),
    code: 'malformed_ocsp',
  },
  {
    name: 'the other CA as signer',
    response: respond({ signer: OTHER_CA, certificates: [OTHER_CA.certificate.der] }),
    code: 'malformed_ocsp',
  },
  {
    name: 'two answers about the certificate',
    response: respond({ responses: [answerFor(CERT_ID), answerFor(certIdOf(DEVICE, CA, 'sha1'))] }),
    code: 'malformed_ocsp',
  },
  { name: 'a nextUpdate before thisUpdate', response: respond({ nextUpdate: minutes(-1) }), code: 'malformed_ocsp' },
  {
    name: 'another serial',
    response: respond({ responses: [answerFor(certIdOf(makeDevice(CA), CA))] }),
    code: 'revocation_unknown',
  },
  {
    name: 'the same serial of another CA',
    response: respond({ responses: [answerFor(certIdOf(DEVICE, OTHER_CA))] }),
    code: 'revocation_unknown',
  },
  { name: 'no answer', response: respond({ responses: [] }), code: 'revocation_unknown' },
  { name: 'no nonce where one was sent', response: respond(), nonce: NONCE, code: 'revocation_unknown' },
  {
    name: 'another nonce',
    response: respond({ nonce: Buffer.alloc(32, 1) }),
    nonce: NONCE,
    code: 'revocation_unknown',
  },
  { name: 'a thisUpdate in the future', response: respond({ thisUpdate: minutes(6) }), code: 'revocation_unknown' },
  {
    name: 'a nextUpdate in the past',
    response: respond({ thisUpdate: minutes(-60), nextUpdate: minutes(-6) }),
    code: 'revocation_unknown',
  },
  {
    name: 'no nextUpdate and an old thisUpdate',
    response: respond({ thisUpdate: minutes(-6), nextUpdate: null }),
    code: 'revocation_unknown',
  },
  { name: 'malformedRequest', response: encodeOcspError('malformedRequest'), code: 'revocation_unknown' },
  { name: 'internalError', response: encodeOcspError('internalError'), code: 'revocation_unknown' },
  { name: 'tryLater', response: encodeOcspError('tryLater'), code: 'revocation_unknown' },
  { name: 'unauthorized', response: encodeOcspError('unauthorized'), code: 'revocation_unknown' },
]

for (const { name, response, code, nonce } of WRONG) {
  test(`a response with ${name} is not believed`, () => {
    assert.throws(() => verify(response, nonce === undefined ? {} : { nonce }), { name: 'CertpeerError', code })
  })
}

test('clocks may differ by less than five minutes', () => {
  assert.equal(verify(respond({ thisUpdate: minutes(4) })).status, 'good')
  assert.equal(verify(respond({ thisUpdate: minutes(-60), nextUpdate: minutes(-4) })).status, 'good')
  assert.equal(verify(respond({ thisUpdate: minutes(-4), nextUpdate: null })).status, 'good')
})

test('openssl refuses the signer of another CA as we do', () => {
  using folder = pki()
  folder.write('resp.der', respond({ signer: otherSigner }))
  const args = [
    'ocsp',
    '-respin',
    'resp.der',
    '-issuer',
    'ca.pem',
    '-sha256',
    '-cert',
    'device.pem',
    '-CAfile',
    'root.pem',
  ]
  const { stderr } = folder.run([...args, '-verify_other', 'ca.pem', '-attime', seconds(NOW)])
  assert.match(stderr, /Response Verify Failure/i)
})

test('times are whole seconds: RFC 6960 forbids fractions', () => {
  const thisUpdate = new Date(NOW.getTime() + 123)
  const answer = verify(respond({ thisUpdate }))
  assert.deepEqual(answer.thisUpdate, NOW)
})

test('what we encode is DER from end to end', () => {
  for (const der of [respond({ nonce: NONCE }), GOOD_REQUEST, encodeOcspError('tryLater')]) readDer(der)
})

function mutated(good: Buffer, at: number, octet: number, how: string): Buffer {
  const tail = good.subarray(how === 'insert' ? at : at + 1)
  return Buffer.concat([good.subarray(0, at), how === 'drop' ? Buffer.alloc(0) : Buffer.of(octet), tail])
}
const mutation = (length: number) =>
  [fc.nat(length - 1), fc.nat(255), fc.constantFrom('set', 'insert', 'drop')] as const

test('whatever is changed in a request: read, or malformed_ocsp', () => {
  fc.assert(
    fc.property(...mutation(GOOD_REQUEST.length), (at, octet, how) => {
      try {
        parseOcspRequest(mutated(GOOD_REQUEST, at, octet, how))
      } catch (error) {
        assert.ok(error instanceof CertpeerError && error.code === 'malformed_ocsp', String(error))
      }
    }),
    { numRuns: 1500 },
  )
})

const GOOD_RESPONSE = respond({ nonce: NONCE, status: REVOKED })
test('whatever is changed in a response: never another answer', () => {
  const answer = verify(GOOD_RESPONSE, { nonce: NONCE })
  fc.assert(
    fc.property(...mutation(GOOD_RESPONSE.length), (at, octet, how) => {
      try {
        assert.deepEqual(verify(mutated(GOOD_RESPONSE, at, octet, how), { nonce: NONCE }), answer)
      } catch (error) {
        assert.ok(error instanceof CertpeerError, String(error))
        assert.ok(error.code === 'malformed_ocsp' || error.code === 'revocation_unknown', error.code)
      }
    }),
    { numRuns: 1500 },
  )
})
