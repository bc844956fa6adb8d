import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import {
  DerReader,
  readBitString,
  readBoolean,
  readCertificateTime,
  readDer,
  readEnumerated,
  readExplicit,
  readGeneralizedTime,
  readIa5String,
  readInteger,
  readNull,
  readOctetString,
  readOid,
  readPrintableString,
  readSequence,
  readSetOf,
  readSmallInteger,
  readTime,
  readUtcTime,
  readUtf8String,
  type DerValue,
} from '../../../src/core/der/reader.ts'

const bytes = (hex: string) => Buffer.from(hex.replaceAll(' ', ''), 'hex')
const ascii = (text: string) => Buffer.from(text, 'latin1').toString('hex')
const time = (tag: string, text: string) => `${tag} ${text.length.toString(16).padStart(2, '0')} ${ascii(text)}`

/** Reads everything that DER can hold: every value, and constructed ones to their leaves. */
function walk(value: DerValue): void {
  if ((value.tag & 0x20) === 0) return
  const reader = value.tag === 0x30 ? readSequence(value) : new DerReader(value.content)
  while (!reader.atEnd) walk(reader.read())
}

const nested = (levels: number) => {
  let hex = '0500'
  for (let level = 0; level < levels; level += 1) {
    const length = hex.length / 2
    hex = length < 0x80 ? `30${length.toString(16).padStart(2, '0')}${hex}` : `3081${length.toString(16)}${hex}`
  }
  return hex
}

const refused: readonly { name: string; hex: string; read: (value: DerValue) => unknown }[] = [
  { name: 'nothing', hex: '', read: walk },
  { name: 'a tag alone', hex: '30', read: walk },
  { name: 'content cut off', hex: '0403 0102', read: walk },
  { name: 'a trailing byte', hex: '0500 00', read: walk },
  { name: 'a trailing byte inside a SEQUENCE', hex: '3003 0500 00', read: walk },
  { name: 'an inner value that leaves its SEQUENCE', hex: '3004 0403 0102', read: walk },
  { name: 'an indefinite length', hex: '3080 0500 0000', read: walk },
  { name: 'a long length where a short one does', hex: '048101 00', read: walk },
  { name: 'a long length with a leading zero', hex: `04820080 ${'00'.repeat(128)}`, read: walk },
  { name: 'a length of five octets', hex: '048500000000 01 00', read: walk },
  { name: 'a length of 4 GiB', hex: '0484ffffffff 00', read: walk },
  { name: 'the reserved length ff', hex: `04ff${'00'.repeat(127)}`, read: walk },
  { name: 'a length that is cut off', hex: '0482 01', read: walk },
  { name: 'an inner value that takes what follows its SEQUENCE', hex: '3007 3002 0403 010203', read: walk },
  { name: 'a high tag of no length', hex: '1f00', read: walk },
  { name: 'a high tag that reads like a value', hex: 'bf0100', read: walk },
  { name: 'a high tag', hex: '1f20 00', read: walk },
  { name: 'a context-specific high tag', hex: 'bf8001 00', read: walk },
  { name: 'end-of-contents', hex: '0000', read: walk },
  { name: 'a constructed OCTET STRING', hex: '2403 040100', read: walk },
  { name: 'a constructed UTF8String', hex: '2c03 0c0161', read: walk },
  { name: 'a primitive SEQUENCE', hex: '1000', read: walk },
  { name: 'a primitive SET', hex: '1100', read: walk },
  { name: 'values nested deeper than 32', hex: nested(40), read: walk },
  { name: 'another tag than expected', hex: '0500', read: (value) => readInteger(value) },
  { name: 'an empty INTEGER', hex: '0200', read: readInteger },
  { name: 'an INTEGER with a needless 00', hex: '0202007f', read: readInteger },
  { name: 'an INTEGER with a needless ff', hex: '0202ff80', read: readInteger },
  { name: 'a negative small INTEGER', hex: '0201ff', read: (value) => readSmallInteger(value) },
  { name: 'a small INTEGER of seven octets', hex: '020701000000000000', read: (value) => readSmallInteger(value) },
  { name: 'an ENUMERATED with a needless 00', hex: '0a020001', read: readEnumerated },
  { name: 'a BOOLEAN 01', hex: '010101', read: readBoolean },
  { name: 'an empty BOOLEAN', hex: '0100', read: readBoolean },
  { name: 'a BOOLEAN of two octets', hex: '0102ffff', read: readBoolean },
  { name: 'a NULL with content', hex: '050100', read: readNull },
  { name: 'an empty OID', hex: '0600', read: readOid },
  { name: 'an OID with a padded arc', hex: '06032a8001', read: readOid },
  { name: 'an OID with a padded first arc', hex: '0602802a', read: readOid },
  {
    name: 'an OID with a padded arc behind a huge one',
    hex: '060d 69ffffffffffffffffff7f 8001',
    read: readOid,
  },
  { name: 'an OID whose last arc is cut off', hex: '06022a86', read: readOid },
  { name: 'an OID of 65 octets', hex: `0641 2a ${'01'.repeat(64)}`, read: readOid },
  { name: 'an empty BIT STRING', hex: '0300', read: readBitString },
  {
    name: 'an empty BIT STRING before another value',
    hex: '3004 0300 0500',
    read: (value) => readBitString(readSequence(value).read()),
  },
  { name: 'a BIT STRING with 8 unused bits', hex: '03020800', read: readBitString },
  { name: 'a BIT STRING with unused bits of nothing', hex: '030101', read: readBitString },
  { name: 'a BIT STRING with a set unused bit', hex: '03020101', read: readBitString },
  { name: 'a UTF8String that is not UTF-8', hex: '0c02c080', read: readUtf8String },
  { name: 'an IA5String above 7f', hex: '160180', read: readIa5String },
  { name: 'a PrintableString with a star', hex: '13012a', read: readPrintableString },
  { name: 'a SET OF out of order', hex: '3106 020102 020101', read: readSetOf },
  { name: 'two values in an EXPLICIT tag', hex: 'a004 0500 0500', read: (value) => readExplicit(value, 0xa0) },
  { name: 'a UTCTime without seconds', hex: time('17', '2611201200Z'), read: readTime },
  { name: 'a UTCTime with a digit too many', hex: time('17', '2611201200000Z'), read: readTime },
  { name: 'a UTCTime with a colon, the digit after 9', hex: time('17', '260:20120000Z'), read: readTime },
  { name: 'a UTCTime with an offset', hex: time('17', '261120120000+0000'), read: readTime },
  { name: 'a UTCTime that does not end in Z', hex: time('17', '2611201200000'), read: readTime },
  { name: 'a UTCTime with a letter', hex: time('17', '26112O120000Z'), read: readTime },
  { name: 'a UTCTime in month 13', hex: time('17', '261320120000Z'), read: readTime },
  { name: 'a UTCTime in month 0', hex: time('17', '260020120000Z'), read: readTime },
  { name: 'a UTCTime on 30 February', hex: time('17', '260230120000Z'), read: readTime },
  { name: 'a UTCTime at 24:00', hex: time('17', '261120240000Z'), read: readTime },
  { name: 'a UTCTime with a leap second', hex: time('17', '261231235960Z'), read: readTime },
  { name: 'a GeneralizedTime with a fraction', hex: time('18', '20261120120000.5Z'), read: readTime },
  { name: 'a GeneralizedTime in local time', hex: time('18', '20261120120000'), read: readTime },
  {
    name: 'a GeneralizedTime in a certificate before 2050',
    hex: time('18', '20491231235959Z'),
    read: readCertificateTime,
  },
]
for (const { name, hex, read } of refused) {
  test(`DER: ${name} is refused`, () => {
    assert.throws(() => read(readDer(bytes(hex))), { name: 'CertpeerError', code: 'malformed_der' })
  })
}

const read: readonly { name: string; hex: string; read: (value: DerValue) => unknown; value: unknown }[] = [
  { name: 'INTEGER 0', hex: '020100', read: readInteger, value: 0n },
  { name: 'INTEGER 128', hex: '02020080', read: readInteger, value: 128n },
  { name: 'INTEGER -128', hex: '020180', read: readInteger, value: -128n },
  { name: 'INTEGER -129', hex: '0202ff7f', read: readInteger, value: -129n },
  { name: 'INTEGER 2^64', hex: '0209010000000000000000', read: readInteger, value: 1n << 64n },
  { name: 'small INTEGER', hex: '02067fffffffffff', read: (v) => readSmallInteger(v), value: 2 ** 47 - 1 },
  { name: 'ENUMERATED', hex: '0a0105', read: readEnumerated, value: 5 },
  { name: 'BOOLEAN TRUE', hex: '0101ff', read: readBoolean, value: true },
  { name: 'BOOLEAN FALSE', hex: '010100', read: readBoolean, value: false },
  { name: 'NULL', hex: '0500', read: readNull, value: undefined },
  // openssl asn1parse -genstr OID:… , each
  { name: 'OID ecdsa-with-SHA256', hex: '06082a8648ce3d040302', read: readOid, value: '1.2.840.10045.4.3.2' },
  { name: 'OID 2.999', hex: '06028837', read: readOid, value: '2.999' },
  { name: 'OID 0.0', hex: '060100', read: readOid, value: '0.0' },
  { name: 'OID 1.39', hex: '06014f', read: readOid, value: '1.39' },
  {
    name: 'OID under our PEN',
    hex: '060c2b0601040181fd5983946c01',
    read: readOid,
    value: '1.3.6.1.4.1.32473.51820.1',
  },
  {
    name: 'OID 2.25.UUID, which libraries truncate',
    hex: '06146983f09da7ebcfdee0c7a1a7b2c0948cc8f9d776',
    read: readOid,
    value: '2.25.329800735698586629295641978511506172918',
  },
  { name: 'BIT STRING', hex: '03020780', read: readBitString, value: { unusedBits: 7, bytes: bytes('80') } },
  {
    name: 'empty BIT STRING of no bits',
    hex: '030100',
    read: readBitString,
    value: { unusedBits: 0, bytes: bytes('') },
  },
  { name: 'OCTET STRING', hex: '04020102', read: readOctetString, value: bytes('0102') },
  {
    name: 'OCTET STRING of 128 octets',
    hex: `048180${'61'.repeat(128)}`,
    read: (v) => readOctetString(v).length,
    value: 128,
  },
  { name: 'UTF8String', hex: '0c02c3a9', read: readUtf8String, value: 'é' },
  { name: 'IA5String', hex: '160161', read: readIa5String, value: 'a' },
  { name: 'PrintableString', hex: '130161', read: readPrintableString, value: 'a' },
  { name: 'IMPLICIT [6]', hex: '860161', read: (v) => readIa5String(v, 0x86), value: 'a' },
  { name: 'SET OF', hex: '3106 020101 020102', read: (v) => readSetOf(v).length, value: 2 },
  { name: 'EXPLICIT [0]', hex: 'a003020102', read: (v) => readInteger(readExplicit(v, 0xa0)), value: 2n },
  { name: 'UTCTime', hex: time('17', '261120120001Z'), read: readTime, value: new Date('2026-11-20T12:00:01Z') },
  {
    name: 'UTCTime of 1950',
    hex: time('17', '500101000000Z'),
    read: readUtcTime,
    value: new Date('1950-01-01T00:00:00Z'),
  },
  {
    name: 'UTCTime of 2049',
    hex: time('17', '491231235959Z'),
    read: readCertificateTime,
    value: new Date('2049-12-31T23:59:59Z'),
  },
  {
    name: 'GeneralizedTime',
    hex: time('18', '20261120120001Z'),
    read: readGeneralizedTime,
    value: new Date('2026-11-20T12:00:01Z'),
  },
  {
    name: 'GeneralizedTime of year 0001',
    hex: time('18', '00010101000000Z'),
    read: readTime,
    value: new Date('0001-01-01T00:00:00Z'),
  },
  {
    name: 'GeneralizedTime of 29 February',
    hex: time('18', '20520229000000Z'),
    read: readCertificateTime,
    value: new Date('2052-02-29T00:00:00Z'),
  },
]
for (const { name, hex, read: reader, value } of read) {
  test(`DER: ${name} is read`, () => assert.deepEqual(reader(readDer(bytes(hex))), value))
}

test('a reader gives values in order, looks ahead without consuming, and end() names what is left', () => {
  const reader = readSequence(readDer(bytes('3008 020101 0500 040161')))
  assert.equal(reader.peekTag(), 0x02)
  assert.equal(reader.readOptional(0x05), undefined)
  assert.equal(readSmallInteger(reader.read(0x02)), 1)
  assert.throws(() => reader.read(0x04), { code: 'malformed_der' })
  assert.notEqual(reader.readOptional(0x05), undefined)
  assert.throws(() => reader.end(), { code: 'malformed_der' })
  assert.deepEqual(reader.read().bytes, bytes('040161'))
  assert.equal(reader.peekTag(), undefined)
  assert.equal(reader.atEnd, true)
  reader.end()
  assert.throws(() => reader.read(), { code: 'malformed_der' })
})

test('arbitrary bytes never make anything but malformed_der', () => {
  const readers = [...new Set([...refused, ...read].map((entry) => entry.read))]
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(readers.length - 1), (input, index) => {
      try {
        readers[index]?.(readDer(Buffer.from(input)))
      } catch (error) {
        assert.ok(error instanceof CertpeerError)
        assert.equal(error.code, 'malformed_der')
      }
    }),
    { numRuns: 5000 },
  )
})
