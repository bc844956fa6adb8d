import assert from 'node:assert/strict'
import { randomBytes, sign, X509Certificate } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  derBoolean,
  derContext,
  derEnumerated,
  derGeneralizedTime,
  derInteger,
  derNull,
  derOctetString,
  derOid,
  derSequence,
  derTime,
} from '../../../src/core/der/writer.ts'
import { CertpeerError } from '../../../src/core/errors.ts'
import { REVOCATION_REASONS } from '../../../src/core/messages/common.ts'
import { scanCrl } from '../../../src/core/x509/crl-scan.ts'
import { encodeCrlEntry, encodeTbsCertList, parseCrl, verifyCrl } from '../../../src/core/x509/crl.ts'
import { assembleSigned, encodeExtension, signatureAlgorithmFor } from '../../../src/core/x509/encode.ts'
import { authorityKeyIdentifier, keyUsage } from '../../../src/core/x509/extensions.ts'
import { OID } from '../../../src/core/x509/oids.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { newSerial, parseSerial, type Serial } from '../../../src/core/x509/serial.ts'
import { makeDevice, makeDeviceCa, makeRoot, newKeyPair, OIDS, type Authority } from '../../support/certificates.ts'
import { OpensslFolder } from '../../support/openssl.ts'

const REFUSED = { name: 'CertpeerError', code: 'malformed_crl' }
const ROOT = makeRoot()
const CA = makeDeviceCa(ROOT)
const THIS_UPDATE = new Date('2026-11-20T12:00:00Z')
const NEXT_UPDATE = new Date('2026-11-21T12:00:00Z')
const NUMBER = 1_795_176_000_000n
const HEAD = { size: 42, rootHash: Buffer.alloc(32, 9) }
const S1 = parseSerial('0102030405060708090a0b0c0d0e0f10')
const S2 = parseSerial('ff02030405060708090a0b0c0d0e0f10')

function signed(tbs: Buffer, by: Authority = CA): Buffer {
  const algorithm = signatureAlgorithmFor(by.publicKey)
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, by.privateKey))
}

function crl(entries: readonly Buffer[], by: Authority = CA): Buffer {
  return signed(
    encodeTbsCertList({
      issuer: by.certificate,
      thisUpdate: THIS_UPDATE,
      nextUpdate: NEXT_UPDATE,
      number: NUMBER,
      entries: Buffer.concat(entries),
      ledgerHead: HEAD,
      oids: OIDS,
    }),
    by,
  )
}

const ENTRY_1 = encodeCrlEntry({ serial: S1, revokedAt: THIS_UPDATE, reason: 'keyCompromise' })
const ENTRY_2 = encodeCrlEntry({ serial: S2, revokedAt: THIS_UPDATE, reason: 'unspecified' })
const GOOD = crl([ENTRY_1, ENTRY_2])

test('a CRL is read as it was written, and verifies', () => {
  const parsed = parseCrl(GOOD, OIDS)
  assert.deepEqual(parsed.thisUpdate, THIS_UPDATE)
  assert.deepEqual(parsed.nextUpdate, NEXT_UPDATE)
  assert.equal(parsed.number, NUMBER)
  assert.equal(parsed.authorityKeyId, CA.certificate.subjectKeyId)
  assert.deepEqual(parsed.ledgerHead, HEAD)
  assert.deepEqual(
    [...parsed.entries],
    [
      [S1, { revokedAt: THIS_UPDATE, reason: 'keyCompromise' }],
      [S2, { revokedAt: THIS_UPDATE, reason: 'unspecified' }],
    ],
  )
  verifyCrl(parsed, CA.certificate)
})

test('a CRL without entries has no list of them', () => {
  const parsed = parseCrl(crl([]), OIDS)
  assert.equal(parsed.entries.size, 0)
  verifyCrl(parsed, CA.certificate)
  assert.equal(scanCrl(parsed.der).entryCount, 0)
})

test('without the OIDs the ledger head is just an extension that is not critical', () => {
  assert.equal(parseCrl(GOOD).ledgerHead, undefined)
})

for (const reason of REVOCATION_REASONS) {
  test(`the reason ${reason} survives`, () => {
    const parsed = parseCrl(crl([encodeCrlEntry({ serial: S1, revokedAt: THIS_UPDATE, reason })]))
    assert.equal(parsed.entries.get(S1)?.reason, reason)
  })
}

test('the second reader finds the same, by other code', () => {
  const serials: string[] = []
  const scan = scanCrl(GOOD, (serial) => serials.push(serial.toString('hex')))
  assert.deepEqual(serials, [S1, `00${S2}`])
  assert.equal(scan.entryCount, 2)
  assert.equal(scan.number, NUMBER)
  assert.deepEqual(scan.thisUpdate, THIS_UPDATE)
  assert.deepEqual(scan.nextUpdate, NEXT_UPDATE)
  const parsed = parseCrl(GOOD)
  assert.deepEqual(GOOD.subarray(scan.tbs.start, scan.tbs.end), parsed.tbs)
  assert.deepEqual(GOOD.subarray(scan.signature.start, scan.signature.end), parsed.signature)
})

const otherCa = makeDeviceCa(ROOT)
const sameNameCa = { ...newKeyPair() }
const sameKeyOtherName = makeDeviceCa(ROOT, {}, 'other')
const noCrlSign = makeDeviceCa(ROOT, { extensions: { keyUsage: keyUsage(['keyCertSign']) } })

for (const { name, der, issuer } of [
  { name: 'of another CA with the same name', der: crl([], otherCa), issuer: CA },
  { name: 'of a CA with another name', der: crl([], sameKeyOtherName), issuer: CA },
  { name: 'whose signature is by another key', der: signed(parseCrl(GOOD).tbs, { ...CA, ...sameNameCa }), issuer: CA },
  { name: 'of a CA that may not sign CRLs', der: crl([], noCrlSign), issuer: noCrlSign },
]) {
  test(`a CRL ${name} does not verify`, () => {
    assert.throws(() => verifyCrl(parseCrl(der), issuer.certificate), REFUSED)
  })
}

test('a device certificate is no issuer of CRLs', () => {
  const pair = newKeyPair()
  const device = makeDevice(CA, { publicKey: pair.publicKey })
  const der = crl([], { certificate: device, ...pair })
  assert.throws(() => verifyCrl(parseCrl(der), device), REFUSED)
})

interface CrlParts {
  readonly version?: readonly Buffer[]
  readonly algorithm?: Buffer
  readonly thisUpdate?: Buffer
  readonly nextUpdate?: readonly Buffer[]
  readonly revoked?: readonly Buffer[]
  readonly extensions?: readonly Buffer[] | null
  readonly after?: readonly Buffer[]
}

const ALGORITHM = signatureAlgorithmFor(CA.publicKey).der
const AKI = authorityKeyIdentifier(CA.certificate)
const CRL_NUMBER = encodeExtension(OID.crlNumber, false, derInteger(NUMBER))

/** A CRL by hand: each part can be wrong while the signature is right. */
function handMade(parts: CrlParts): Buffer {
  const extensions = parts.extensions === undefined ? [AKI, CRL_NUMBER] : parts.extensions
  return signed(
    derSequence(
      ...(parts.version ?? [derInteger(1)]),
      parts.algorithm ?? ALGORITHM,
      CA.certificate.subjectDer,
      parts.thisUpdate ?? derTime(THIS_UPDATE),
      ...(parts.nextUpdate ?? [derTime(NEXT_UPDATE)]),
      ...(parts.revoked ?? [derSequence(ENTRY_1)]),
      ...(extensions === null ? [] : [derContext(0, derSequence(...extensions), true)]),
      ...(parts.after ?? []),
    ),
  )
}

/** One entry with these entry extensions. */
function entryWith(...extensions: Buffer[]): Buffer {
  return derSequence(derSequence(derInteger(Buffer.from(S1, 'hex')), derTime(THIS_UPDATE), derSequence(...extensions)))
}

const reasonCode = (number: number) => encodeExtension(OID.crlReason, false, derEnumerated(number))

test('the hand-made CRL is good when nothing in it is replaced', () => {
  verifyCrl(parseCrl(handMade({})), CA.certificate)
})

for (const { name, der } of [
  { name: 'nothing', der: Buffer.alloc(0) },
  { name: 'a byte behind the end', der: Buffer.concat([GOOD, Buffer.of(0)]) },
  { name: 'a byte missing', der: GOOD.subarray(0, -1) },
  { name: 'no version', der: handMade({ version: [] }) },
  { name: 'version 1 spelled out', der: handMade({ version: [derInteger(0)] }) },
  { name: 'two signature algorithms', der: handMade({ algorithm: derSequence(derOid(OID.ecdsaWithSha384)) }) },
  { name: 'no nextUpdate', der: handMade({ nextUpdate: [] }) },
  { name: 'a nextUpdate that is not after thisUpdate', der: handMade({ nextUpdate: [derTime(THIS_UPDATE)] }) },
  { name: 'GeneralizedTime before 2050', der: handMade({ thisUpdate: derGeneralizedTime(THIS_UPDATE) }) },
  { name: 'an empty list of entries', der: handMade({ revoked: [derSequence()] }) },
  { name: 'a serial twice', der: handMade({ revoked: [derSequence(ENTRY_1, ENTRY_1)] }) },
  {
    name: 'a serial of zero',
    der: handMade({ revoked: [derSequence(derSequence(derInteger(0), derTime(THIS_UPDATE)))] }),
  },
  {
    name: 'a negative serial',
    der: handMade({ revoked: [derSequence(derSequence(derInteger(-1), derTime(THIS_UPDATE)))] }),
  },
  {
    name: 'a serial of 21 octets',
    der: handMade({ revoked: [derSequence(derSequence(derInteger(Buffer.alloc(21, 1)), derTime(THIS_UPDATE)))] }),
  },
  {
    name: 'an entry without a date',
    der: handMade({ revoked: [derSequence(derSequence(derInteger(5)))] }),
  },
  { name: 'an entry with an empty list of extensions', der: handMade({ revoked: [entryWith()] }) },
  { name: 'removeFromCRL', der: handMade({ revoked: [entryWith(reasonCode(8))] }) },
  { name: 'certificateHold', der: handMade({ revoked: [entryWith(reasonCode(6))] }) },
  { name: 'a reason that is none', der: handMade({ revoked: [entryWith(reasonCode(7))] }) },
  { name: 'a reason twice', der: handMade({ revoked: [entryWith(reasonCode(1), reasonCode(1))] }) },
  {
    name: 'an indirect entry',
    der: handMade({ revoked: [entryWith(encodeExtension(OID.certificateIssuer, true, derSequence()))] }),
  },
  {
    name: 'an indirect entry that does not say critical',
    der: handMade({ revoked: [entryWith(encodeExtension(OID.certificateIssuer, false, derSequence()))] }),
  },
  {
    name: 'an unknown critical extension in an entry',
    der: handMade({ revoked: [entryWith(encodeExtension('1.2.3.4', true, derNull()))] }),
  },
  { name: 'no extensions', der: handMade({ extensions: null }) },
  { name: 'no CRL number', der: handMade({ extensions: [AKI] }) },
  { name: 'no authority key identifier', der: handMade({ extensions: [CRL_NUMBER] }) },
  { name: 'a CRL number twice', der: handMade({ extensions: [AKI, CRL_NUMBER, CRL_NUMBER] }) },
  {
    name: 'a negative CRL number',
    der: handMade({ extensions: [AKI, encodeExtension(OID.crlNumber, false, derInteger(-1))] }),
  },
  {
    name: 'a CRL number of 21 octets',
    der: handMade({ extensions: [AKI, encodeExtension(OID.crlNumber, false, derInteger(Buffer.alloc(21, 1)))] }),
  },
  {
    name: 'an issuing distribution point',
    der: handMade({
      extensions: [AKI, CRL_NUMBER, encodeExtension(OID.issuingDistributionPoint, true, derSequence())],
    }),
  },
  {
    name: 'an issuing distribution point that does not say critical',
    der: handMade({
      extensions: [AKI, CRL_NUMBER, encodeExtension(OID.issuingDistributionPoint, false, derSequence())],
    }),
  },
  {
    name: 'a delta indicator',
    der: handMade({ extensions: [AKI, CRL_NUMBER, encodeExtension(OID.deltaCrlIndicator, true, derInteger(1))] }),
  },
  {
    name: 'an unknown critical extension',
    der: handMade({ extensions: [AKI, CRL_NUMBER, encodeExtension('1.2.3.4', true, derNull())] }),
  },
  {
    name: 'a critical that is spelled out as false',
    der: handMade({
      extensions: [AKI, CRL_NUMBER, derSequence(derOid('1.2.3.4'), derBoolean(false), derOctetString(derNull()))],
    }),
  },
  {
    name: 'an authority key identifier with an issuer and serial beside it',
    der: handMade({
      extensions: [
        encodeExtension(
          OID.authorityKeyIdentifier,
          false,
          derSequence(derContext(0, Buffer.alloc(20), false), derContext(2, Buffer.of(1), false)),
        ),
        CRL_NUMBER,
      ],
    }),
  },
  { name: 'something behind the extensions', der: handMade({ after: [derNull()] }) },
]) {
  test(`a CRL with ${name} is refused`, () => assert.throws(() => parseCrl(der, OIDS), REFUSED))
}

for (const { name, value } of [
  { name: 'a short root hash', value: derSequence(derInteger(1), derOctetString(Buffer.alloc(31))) },
  { name: 'a negative size', value: derSequence(derInteger(-1), derOctetString(Buffer.alloc(32))) },
  { name: 'something more', value: derSequence(derInteger(1), derOctetString(Buffer.alloc(32)), derNull()) },
]) {
  test(`a ledger head with ${name} is refused`, () => {
    const der = handMade({ extensions: [AKI, CRL_NUMBER, encodeExtension(OIDS.ledgerHead, false, value)] })
    assert.throws(() => parseCrl(der, OIDS), REFUSED)
  })
}

test('invalidityDate and other extensions that are not critical may be there', () => {
  const revoked = [
    entryWith(reasonCode(1), encodeExtension(OID.invalidityDate, false, derGeneralizedTime(THIS_UPDATE))),
  ]
  const extensions = [AKI, CRL_NUMBER, encodeExtension('1.2.3.4', false, derNull())]
  assert.equal(parseCrl(handMade({ revoked, extensions })).entries.get(S1)?.reason, 'keyCompromise')
})

test('openssl reads the CRL as we meant it', () => {
  using folder = new OpensslFolder()
  folder.write('crl.der', GOOD)
  folder.write('ca.pem', derToPem(CA.certificate.der))
  const verified = folder.run(['crl', '-inform', 'DER', '-in', 'crl.der', '-noout', '-text', '-CAfile', 'ca.pem'])
  const text = verified.stdout.toString('utf8')
  assert.match(verified.stderr, /verify OK/)
  for (const part of [
    'Version 2',
    'Last Update: Nov 20 12:00:00 2026 GMT',
    'Next Update: Nov 21 12:00:00 2026 GMT',
    `Serial Number: ${S1.toUpperCase()}`,
    `Serial Number: ${S2.toUpperCase()}`,
    'Key Compromise',
    OIDS.ledgerHead,
  ]) {
    assert.ok(text.includes(part), `${part} in ${text}`)
  }
  const number = folder.ok(['crl', '-inform', 'DER', '-in', 'crl.der', '-noout', '-crlnumber']).toString('utf8')
  assert.match(number, new RegExp(`0x0*${NUMBER.toString(16)}`, 'i'))
})

test('openssl verify refuses exactly the revoked certificate under our CRLs', () => {
  using folder = new OpensslFolder()
  const revoked = makeDevice(CA)
  const good = makeDevice(CA)
  const entry = encodeCrlEntry({ serial: revoked.serial, revokedAt: THIS_UPDATE, reason: 'privilegeWithdrawn' })
  folder.write('root.pem', derToPem(ROOT.certificate.der))
  folder.write('ca.pem', derToPem(CA.certificate.der))
  folder.write('crls.pem', derToPem(crl([entry]), 'X509 CRL') + derToPem(crl([], ROOT), 'X509 CRL'))
  folder.write('good.pem', derToPem(good.der))
  folder.write('revoked.pem', derToPem(revoked.der))
  const attime = String(THIS_UPDATE.getTime() / 1000 + 60)
  const args = [
    'verify',
    '-attime',
    attime,
    '-crl_check_all',
    '-CRLfile',
    'crls.pem',
    '-CAfile',
    'root.pem',
    '-untrusted',
    'ca.pem',
  ]
  assert.equal(folder.run([...args, 'good.pem']).code, 0)
  const refused = folder.run([...args, 'revoked.pem'])
  assert.notEqual(refused.code, 0)
  assert.match(refused.stderr, /certificate revoked/)
})

test('a CRL that openssl made is read', () => {
  using folder = new OpensslFolder()
  folder.write('ca.pem', derToPem(CA.certificate.der))
  folder.write('ca.key', CA.privateKey.export({ type: 'pkcs8', format: 'pem' }))
  folder.write('index.txt', `R\t301120120000Z\t261120120000Z,keyCompromise\t${S1.toUpperCase()}\tunknown\t/CN=x\n`)
  folder.write('number', '0ABC\n')
  folder.write(
    'ca.cnf',
    '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=1\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n',
  )
  folder.ok(['ca', '-config', 'ca.cnf', '-gencrl', '-cert', 'ca.pem', '-keyfile', 'ca.key', '-out', 'crl.pem'])
  const der = folder.ok(['crl', '-in', 'crl.pem', '-outform', 'DER'])
  const parsed = parseCrl(der)
  verifyCrl(parsed, CA.certificate)
  assert.equal(parsed.number, 0xabcn)
  assert.deepEqual(parsed.entries.get(S1), { revokedAt: THIS_UPDATE, reason: 'keyCompromise' })
  assert.equal(scanCrl(der).entryCount, 1)
})

function manyEntries(count: number): Buffer {
  const random = randomBytes(16 * count)
  const entries: Buffer[] = []
  for (let index = 0; index < count; index++) {
    const serial: Serial = newSerial(random.subarray(index * 16, index * 16 + 16))
    entries.push(encodeCrlEntry({ serial, revokedAt: THIS_UPDATE, reason: 'superseded' }))
  }
  return Buffer.concat(entries)
}

/** Best of a few runs, so that a busy machine does not decide. */
function bestMs(work: () => void): number {
  let best = Infinity
  for (let run = 0; run < 3; run++) {
    const startedAt = performance.now()
    work()
    best = Math.min(best, performance.now() - startedAt)
  }
  return best
}

test('100 000 entries: encoded, parsed and scanned in time that grows with their number, not faster', (t) => {
  const times = [10_000, 100_000].map((count) => {
    const entries = manyEntries(count)
    const input = {
      issuer: CA.certificate,
      thisUpdate: THIS_UPDATE,
      nextUpdate: NEXT_UPDATE,
      number: NUMBER,
      oids: OIDS,
    }
    const der = signed(encodeTbsCertList({ ...input, entries }))
    assert.equal(parseCrl(der).entries.size, count)
    assert.equal(scanCrl(der).entryCount, count)
    return {
      encode: bestMs(() => encodeTbsCertList({ ...input, entries })),
      parse: bestMs(() => parseCrl(der)),
      scan: bestMs(() => scanCrl(der)),
    }
  })
  const [small, large] = times
  assert.ok(small !== undefined && large !== undefined)
  t.diagnostic(`parse ${small.parse.toFixed(1)} → ${large.parse.toFixed(1)} ms, scan ${large.scan.toFixed(1)} ms`)
  // Ten times the entries: quadratic would be a hundred times the time. Generous, because the machine is shared.
  assert.ok(large.parse < 40 * small.parse, `parse ${small.parse} → ${large.parse} ms`)
  assert.ok(large.scan < 40 * Math.max(small.scan, 1), `scan ${small.scan} → ${large.scan} ms`)
  assert.ok(large.encode < 1000, `encode ${large.encode} ms`)
})

test('whatever is changed in a CRL: refused, or it no longer verifies', () => {
  fc.assert(
    fc.property(fc.nat(GOOD.length - 1), fc.nat(255), fc.constantFrom('set', 'insert', 'drop'), (at, octet, how) => {
      const tail = GOOD.subarray(how === 'insert' ? at : at + 1)
      const changed = Buffer.concat([GOOD.subarray(0, at), how === 'drop' ? Buffer.alloc(0) : Buffer.of(octet), tail])
      if (changed.equals(GOOD)) return
      assert.throws(
        () => verifyCrl(parseCrl(changed, OIDS), CA.certificate),
        (error) => error instanceof CertpeerError && error.code === 'malformed_crl',
      )
    }),
    { numRuns: 1500 },
  )
})

test('whatever is changed in a CRL: both readers agree on what they read, or the second says malformed_crl', () => {
  fc.assert(
    fc.property(fc.nat(GOOD.length - 1), fc.nat(255), (at, octet) => {
      const changed = Buffer.from(GOOD)
      changed.writeUInt8(octet, at)
      const first = outcome(() => {
        const { entries, number } = parseCrl(changed)
        return `${entries.size} ${number}`
      })
      const second = outcome(() => {
        const { entryCount, number } = scanCrl(changed)
        return `${entryCount} ${number}`
      })
      // The scan is the laxer one: it may read what the parser refuses, never something else.
      if (first !== undefined) assert.equal(second, first)
    }),
    { numRuns: 1500 },
  )
})

function outcome(read: () => string): string | undefined {
  try {
    return read()
  } catch (error) {
    assert.ok(error instanceof CertpeerError && error.code === 'malformed_crl', String(error))
    return undefined
  }
}

test('node reads the issuer that the CRL names', () => {
  const issuer = new X509Certificate(CA.certificate.der)
  assert.equal(issuer.subject, 'CN=default devices')
  assert.deepEqual(parseCrl(GOOD).issuerDer, CA.certificate.subjectDer)
})
