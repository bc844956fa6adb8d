import assert from 'node:assert/strict'
import { createPublicKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  derBitString,
  derContext,
  derIa5String,
  derInteger,
  derOctetString,
  derOid,
  derPrintableString,
  derSequence,
  derSet,
  derUtf8String,
} from '../../../src/core/der/writer.ts'
import { CertpeerError } from '../../../src/core/errors.ts'
import { wireGuardKeyToBytes } from '../../../src/core/wireguard/key.ts'
import { parseCsr } from '../../../src/core/x509/csr.ts'
import { encodeExtension, encodeName } from '../../../src/core/x509/encode.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { createCsr } from '../../../src/core/x509/request.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeRoot,
  newKeyPair,
  OIDS,
  spkiOf,
  WIREGUARD_KEY,
} from '../../support/certificates.ts'
import { OpensslFolder } from '../../support/openssl.ts'

const REFUSED = { name: 'CertpeerError', code: 'malformed_csr' }
const TLS = newKeyPair()
const TAG_BYTES = Buffer.alloc(32, 0xfb)
const POSSESSION = `chal-_1.${TAG_BYTES.toString('base64url')}`
const KEY_HEX = wireGuardKeyToBytes(WIREGUARD_KEY).toString('hex')

function attribute(type: string, ...values: Buffer[]): Buffer {
  return derSequence(derOid(type), derSet(...values))
}

function extensionRequest(value: Buffer, critical = false): Buffer {
  return attribute(OID.extensionRequest, derSequence(encodeExtension(OIDS.wireGuardKey, critical, value)))
}

const KEY_VALUE = derSequence(derOctetString(wireGuardKeyToBytes(WIREGUARD_KEY)))

interface CsrParts {
  readonly version?: Buffer
  readonly subject?: Buffer
  readonly spki?: Buffer
  /** Written as they stand, in this order. */
  readonly attributes?: readonly Buffer[]
  readonly attributesField?: readonly Buffer[]
  readonly algorithm?: Buffer
  readonly signature?: Buffer
  readonly key?: KeyObject
  readonly after?: Buffer
}

const ECDSA_SHA256 = derSequence(derOid(OID.ecdsaWithSha256))

/** A CSR by hand, so that each part can be wrong while everything else, the signature included, is right. */
function csr(parts: CsrParts = {}): Buffer {
  const attributes = parts.attributes ?? [
    extensionRequest(KEY_VALUE),
    attribute(OIDS.attributes.possession, derUtf8String(POSSESSION)),
  ]
  const info = derSequence(
    parts.version ?? derInteger(0),
    parts.subject ?? encodeName('laptop'),
    parts.spki ?? spkiOf(TLS.publicKey),
    ...(parts.attributesField ?? [derContext(0, Buffer.concat(attributes), true)]),
    ...(parts.after === undefined ? [] : [parts.after]),
  )
  const signature = parts.signature ?? sign('sha256', info, parts.key ?? TLS.privateKey)
  return derSequence(info, parts.algorithm ?? ECDSA_SHA256, derBitString(signature))
}

const sorted = (...attributes: Buffer[]) => attributes.toSorted((a, b) => Buffer.compare(a, b))

test('a CSR gives its key, its name, its WireGuard key and its proof', () => {
  const parsed = parseCsr(
    csr({
      attributes: sorted(extensionRequest(KEY_VALUE), attribute(OIDS.attributes.possession, derUtf8String(POSSESSION))),
    }),
    OIDS,
  )
  assert.equal(parsed.commonName, 'laptop')
  assert.equal(parsed.wireGuardKey, WIREGUARD_KEY)
  assert.deepEqual(parsed.possession, { challengeId: 'chal-_1', tag: TAG_BYTES })
  assert.deepEqual(parsed.spki, spkiOf(TLS.publicKey))
  assert.ok(parsed.publicKey.equals(TLS.publicKey))
  assert.equal(parsed.renewalCertificate, undefined)
  assert.equal(parsed.renewalSignature, undefined)
})

test('a CSR without attributes asks for nothing', () => {
  const parsed = parseCsr(csr({ attributes: [] }), OIDS)
  assert.equal(parsed.wireGuardKey, undefined)
  assert.equal(parsed.possession, undefined)
  assert.equal(parsed.requestedExtensions.size, 0)
})

const P384 = generateKeyPairSync('ec', { namedCurve: 'P-384' })
const RSA = generateKeyPairSync('rsa', { modulusLength: 2048 })
const ED25519 = generateKeyPairSync('ed25519')
const compressed = Buffer.concat([
  Buffer.from('3039301306072a8648ce3d020106082a8648ce3d030107032200', 'hex'),
  Buffer.of(2 + (spkiOf(TLS.publicKey).readUInt8(90) & 1)),
  spkiOf(TLS.publicKey).subarray(27, 59),
])
const offCurve = Buffer.from(spkiOf(TLS.publicKey))
offCurve.writeUInt8(offCurve.readUInt8(90) ^ 1, 90)
const possession = attribute(OIDS.attributes.possession, derUtf8String(POSSESSION))
const request = extensionRequest(KEY_VALUE)
const [first, second] = sorted(possession, request) as [Buffer, Buffer]
const good = csr({ attributes: [first, second] })

test('compressed points are another encoding of the same key for openssl', () => {
  assert.ok(createPublicKey({ key: compressed, format: 'der', type: 'spki' }).equals(TLS.publicKey))
})

for (const { name, der } of [
  { name: 'nothing', der: Buffer.alloc(0) },
  { name: 'a byte behind the end', der: Buffer.concat([good, Buffer.of(0)]) },
  { name: 'a byte missing', der: good.subarray(0, -1) },
  { name: 'more than 16 KiB', der: csr({ attributes: [attribute('1.2.3', derOctetString(Buffer.alloc(16_384)))] }) },
  { name: 'version 2', der: csr({ version: derInteger(1) }) },
  { name: 'no attributes field (RFC 2986 has it always)', der: csr({ attributesField: [] }) },
  { name: 'something behind the attributes', der: csr({ attributes: [], after: derInteger(1) }) },
  { name: 'another key than the one that signed', der: csr({ key: newKeyPair().privateKey }) },
  { name: 'a signature of other bytes', der: csr({ signature: sign('sha256', Buffer.from('x'), TLS.privateKey) }) },
  { name: 'an empty signature', der: csr({ signature: Buffer.alloc(0) }) },
  { name: 'ECDSA with SHA-384', der: csr({ algorithm: derSequence(derOid(OID.ecdsaWithSha384)) }) },
  {
    name: 'ECDSA with parameters',
    der: csr({ algorithm: derSequence(derOid(OID.ecdsaWithSha256), Buffer.from('0500', 'hex')) }),
  },
  { name: 'a P-384 key', der: csr({ spki: spkiOf(P384.publicKey), key: P384.privateKey }) },
  { name: 'an RSA key', der: csr({ spki: spkiOf(RSA.publicKey), key: RSA.privateKey }) },
  {
    name: 'an Ed25519 key',
    der: csr({ spki: spkiOf(ED25519.publicKey), signature: sign(null, Buffer.from('x'), ED25519.privateKey) }),
  },
  { name: 'a compressed point', der: csr({ spki: compressed }) },
  { name: 'a point that is not on the curve', der: csr({ spki: offCurve }) },
  { name: 'attributes out of order', der: csr({ attributes: [second, first] }) },
  {
    name: 'an attribute with two values',
    der: csr({ attributes: [attribute(OIDS.attributes.possession, derUtf8String('a.b'), derUtf8String('c.d'))] }),
  },
  { name: 'an attribute without a value', der: csr({ attributes: [attribute(OIDS.attributes.possession)] }) },
  {
    name: 'an attribute twice',
    der: csr({
      attributes: sorted(possession, attribute(OIDS.attributes.possession, derUtf8String(`x${POSSESSION}`))),
    }),
  },
  {
    name: 'an extension twice',
    der: csr({
      attributes: [
        attribute(
          OID.extensionRequest,
          derSequence(
            encodeExtension(OIDS.wireGuardKey, false, KEY_VALUE),
            encodeExtension(OIDS.wireGuardKey, false, KEY_VALUE),
          ),
        ),
      ],
    }),
  },
  {
    name: 'a WireGuard key with a byte behind it',
    der: csr({ attributes: [extensionRequest(Buffer.concat([KEY_VALUE, Buffer.of(0)]))] }),
  },
  {
    name: 'a proof that is an OCTET STRING',
    der: csr({ attributes: [attribute(OIDS.attributes.possession, derOctetString(Buffer.from(POSSESSION)))] }),
  },
  {
    name: 'a certificate to renew that is none',
    der: csr({ attributes: [attribute(OIDS.attributes.renewalCertificate, derSequence(derInteger(1)))] }),
  },
  {
    name: 'a renewal signature that is not base64',
    der: csr({ attributes: [attribute(OIDS.attributes.renewalSignature, derUtf8String('a*b'))] }),
  },
  {
    name: 'a long-form length',
    der: Buffer.concat([
      Buffer.from('3083', 'hex'),
      Buffer.from([0, good.length >> 8, good.length & 255]),
      good.subarray(4),
    ]),
  },
]) {
  test(`a CSR with ${name} is refused`, () => assert.throws(() => parseCsr(der, OIDS), REFUSED))
}

for (const { name, value } of [
  { name: 'bit 255 set', value: derSequence(derOctetString(Buffer.from(`${'11'.repeat(31)}91`, 'hex'))) },
  { name: 'low order', value: derSequence(derOctetString(Buffer.alloc(32))) },
  { name: '31 bytes', value: derSequence(derOctetString(Buffer.alloc(31, 7))) },
  { name: '31 bytes in base64', value: derUtf8String(Buffer.alloc(31, 7).toString('base64')) },
]) {
  test(`a CSR with a WireGuard key of ${name} is refused as such`, () => {
    assert.throws(() => parseCsr(csr({ attributes: [extensionRequest(value)] }), OIDS), { code: 'bad_wireguard_key' })
  })
}

for (const { name, value } of [
  { name: 'our SEQUENCE', value: KEY_VALUE },
  { name: 'bare base64', value: Buffer.from(WIREGUARD_KEY) },
  { name: 'base64 in a UTF8String', value: derUtf8String(WIREGUARD_KEY) },
  { name: 'base64 in an IA5String', value: derIa5String(WIREGUARD_KEY) },
  { name: 'base64 in an OCTET STRING', value: derOctetString(Buffer.from(WIREGUARD_KEY)) },
  { name: '32 bytes in an OCTET STRING', value: derOctetString(wireGuardKeyToBytes(WIREGUARD_KEY)) },
]) {
  test(`a CSR with the WireGuard key as ${name} is read`, () => {
    assert.equal(parseCsr(csr({ attributes: [extensionRequest(value)] }), OIDS).wireGuardKey, WIREGUARD_KEY)
  })
}

for (const { name, value } of [
  { name: 'UTF8String', value: derUtf8String(POSSESSION) },
  { name: 'IA5String', value: derIa5String(POSSESSION) },
  { name: 'PrintableString', value: derPrintableString(POSSESSION.replaceAll('_', '-')) },
]) {
  test(`the proof is read from a ${name}`, () => {
    const { possession: proof } = parseCsr(csr({ attributes: [attribute(OIDS.attributes.possession, value)] }), OIDS)
    assert.equal(proof?.challengeId.slice(0, 4), 'chal')
  })
}

test('a proof without a tag is refused as such', () => {
  const attributes = [attribute(OIDS.attributes.possession, derUtf8String('chal'))]
  assert.throws(() => parseCsr(csr({ attributes }), OIDS), { code: 'bad_possession_proof' })
})

const ROOT = makeRoot()
const CURRENT = makeDevice(makeDeviceCa(ROOT), { publicKey: TLS.publicKey })
const SIGNATURE = sign('sha256', Buffer.from('renewal'), TLS.privateKey)

for (const { name, signature, certificate } of [
  { name: 'as DER', signature: derOctetString(SIGNATURE), certificate: CURRENT.der },
  {
    name: 'as base64 text, as openssl req can write them',
    signature: derUtf8String(SIGNATURE.toString('base64')),
    certificate: derUtf8String(CURRENT.der.toString('base64')),
  },
  {
    name: 'as base64url text',
    signature: derUtf8String(SIGNATURE.toString('base64url')),
    certificate: derUtf8String(CURRENT.der.toString('base64url')),
  },
]) {
  test(`a renewal's signature and certificate are read ${name}`, () => {
    const attributes = sorted(
      attribute(OIDS.attributes.renewalSignature, signature),
      attribute(OIDS.attributes.renewalCertificate, certificate),
    )
    const parsed = parseCsr(csr({ attributes }), OIDS)
    assert.deepEqual(parsed.renewalSignature, SIGNATURE)
    assert.equal(parsed.renewalCertificate?.fingerprint, CURRENT.fingerprint)
  })
}

for (const { name, text } of [
  { name: 'PEM', text: derToPem(good, 'CERTIFICATE REQUEST') },
  { name: 'PEM with CRLF', text: derToPem(good, 'CERTIFICATE REQUEST').replaceAll('\n', '\r\n') },
  { name: 'PEM that says NEW', text: derToPem(good, 'NEW CERTIFICATE REQUEST') },
  { name: 'base64 in one line', text: good.toString('base64') },
  { name: 'base64 in lines', text: good.toString('base64').replaceAll(/(.{64})/g, '$1\n') },
]) {
  test(`a CSR is read from ${name}`, () => assert.deepEqual(parseCsr(text, OIDS).der, good))
}

for (const { name, text } of [
  { name: 'empty', text: '' },
  { name: 'two blocks', text: derToPem(good, 'CERTIFICATE REQUEST').repeat(2) },
  { name: 'a certificate', text: derToPem(CURRENT.der) },
  { name: 'not base64', text: '***' },
  { name: 'base64 with stray characters', text: `!${good.toString('base64')}` },
  { name: 'base64 of something else', text: Buffer.from('hello').toString('base64') },
  { name: 'too long', text: 'A'.repeat(70_000) },
]) {
  test(`text that is ${name} is refused`, () => assert.throws(() => parseCsr(text, OIDS), REFUSED))
}

/** Configurations as an administrator would write them; the first is the one in docs/enrollment.md. */
for (const { name, extension, lines } of [
  { name: 'DER', extension: `DER:30220420${KEY_HEX}`, lines: 'string_mask = utf8only' },
  { name: 'DER with colons', extension: `DER:${`30220420${KEY_HEX}`.replaceAll(/(..)(?!$)/g, '$1:')}`, lines: '' },
  { name: 'base64 as UTF8String', extension: `ASN1:UTF8String:${WIREGUARD_KEY}`, lines: 'string_mask = utf8only' },
  { name: 'base64 as IA5String', extension: `ASN1:IA5String:${WIREGUARD_KEY}`, lines: 'string_mask = MASK:0x2002' },
  { name: 'an ASN.1 section', extension: 'ASN1:SEQUENCE:wireguard', lines: '' },
]) {
  test(`openssl req makes a CSR that is read: WireGuard key as ${name}`, () => {
    using folder = new OpensslFolder()
    const config = `[req]
prompt = no
${lines}
distinguished_name = dn
req_extensions = ext
attributes = attrs
[dn]
CN = laptop
[ext]
${OIDS.wireGuardKey} = ${extension}
[wireguard]
publicKey = FORMAT:HEX,OCTETSTRING:${KEY_HEX}
[attrs]
challengePassword = not looked at
${OIDS.attributes.possession} = ${POSSESSION}
${OIDS.attributes.renewalSignature} = ${SIGNATURE.toString('base64')}
${OIDS.attributes.renewalCertificate} = ${CURRENT.der.toString('base64')}
`
    folder.write('key.pem', TLS.privateKey.export({ type: 'pkcs8', format: 'pem' }))
    const args = ['req', '-new', '-config', folder.write('req.cnf', config), '-key', 'key.pem']
    const parsed = parseCsr(folder.ok(args).toString('utf8'), OIDS)
    assert.equal(parsed.wireGuardKey, WIREGUARD_KEY)
    assert.equal(parsed.commonName, 'laptop')
    assert.deepEqual(parsed.possession, { challengeId: 'chal-_1', tag: TAG_BYTES })
    assert.deepEqual(parsed.renewalSignature, SIGNATURE)
    assert.equal(parsed.renewalCertificate?.serial, CURRENT.serial)
  })
}

test('the CSR that the CLI makes is read by us and verified by openssl', async () => {
  const der = await createCsr({
    tlsKey: TLS.privateKey,
    commonName: 'laptop',
    wireGuardKey: WIREGUARD_KEY,
    attributes: { possession: POSSESSION, renewalSignature: SIGNATURE, renewalCertificate: CURRENT.der },
    oids: OIDS,
  })
  const parsed = parseCsr(der, OIDS)
  assert.equal(parsed.wireGuardKey, WIREGUARD_KEY)
  assert.equal(parsed.commonName, 'laptop')
  assert.deepEqual(parsed.possession, { challengeId: 'chal-_1', tag: TAG_BYTES })
  assert.deepEqual(parsed.renewalSignature, SIGNATURE)
  assert.equal(parsed.renewalCertificate?.fingerprint, CURRENT.fingerprint)
  using folder = new OpensslFolder()
  folder.write('r.der', der)
  assert.match(folder.run(['req', '-inform', 'DER', '-in', 'r.der', '-noout', '-verify']).stderr, /verify OK/)
  const text = folder.ok(['req', '-inform', 'DER', '-in', 'r.der', '-noout', '-text']).toString('utf8')
  assert.ok(text.includes(`${OIDS.attributes.possession}:${POSSESSION}`))
  assert.ok(text.includes(`${OIDS.wireGuardKey}:`))
})

test('a CSR without a name has an empty subject', async () => {
  const der = await createCsr({ tlsKey: TLS.privateKey, commonName: '', attributes: {}, oids: OIDS })
  const { commonName, subjectDer } = parseCsr(der, OIDS)
  assert.equal(commonName, undefined)
  assert.equal(subjectDer.toString('hex'), '3000')
})

test('the CSR of an operator has neither WireGuard key nor proof', async () => {
  const der = await createCsr({ tlsKey: TLS.privateKey, commonName: 'alice', attributes: {}, oids: OIDS })
  const parsed = parseCsr(der, OIDS)
  assert.equal(parsed.wireGuardKey, undefined)
  assert.equal(parsed.attributes.size, 0)
})

for (const { name, tlsKey } of [
  { name: 'P-384', tlsKey: P384.privateKey },
  { name: 'RSA', tlsKey: RSA.privateKey },
  { name: 'public', tlsKey: TLS.publicKey },
]) {
  test(`no CSR is made with a ${name} key`, async () => {
    await assert.rejects(createCsr({ tlsKey, commonName: 'x', attributes: {}, oids: OIDS }), {
      code: 'malformed_request',
    })
  })
}

test('whatever is changed in a CSR: it is read with the same key or refused by code, never by accident', () => {
  fc.assert(
    fc.property(fc.nat(good.length - 1), fc.nat(255), fc.constantFrom('set', 'insert', 'drop'), (at, octet, how) => {
      const tail = good.subarray(how === 'insert' ? at : at + 1)
      const changed = Buffer.concat([good.subarray(0, at), how === 'drop' ? Buffer.alloc(0) : Buffer.of(octet), tail])
      if (changed.equals(good)) return
      try {
        // The one thing no signature covers is the signature's own encoding.
        assert.deepEqual(parseCsr(changed, OIDS).spki, spkiOf(TLS.publicKey))
        assert.ok(at >= good.length - 75)
      } catch (error) {
        assert.ok(error instanceof CertpeerError, String(error))
      }
    }),
    { numRuns: 1500 },
  )
})

test('whatever comes as text: a CSR or CertpeerError', () => {
  const pem = derToPem(good, 'CERTIFICATE REQUEST')
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.nat(pem.length).map((at) => `${pem.slice(0, at)}A${pem.slice(at)}`),
      ),
      (text) => {
        try {
          parseCsr(text, OIDS)
        } catch (error) {
          assert.ok(error instanceof CertpeerError, String(error))
        }
      },
    ),
    { numRuns: 300 },
  )
})
