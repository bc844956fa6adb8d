import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  readBitString,
  readDer,
  readInteger,
  readOctetString,
  readOid,
  readSetOf,
  readTime,
  readUtf8String,
} from '../../../src/core/der/reader.ts'
import {
  contextTag,
  derBitString,
  derBoolean,
  derContext,
  derEnumerated,
  derGeneralizedTime,
  derIa5String,
  derInteger,
  derNull,
  derOctetString,
  derOid,
  derPrintableString,
  derSequence,
  derSet,
  derTime,
  derUtf8String,
} from '../../../src/core/der/writer.ts'

// Expected bytes: openssl asn1parse -genstr 'INTEGER:128' -noout -out /dev/stdout | xxd -p   (and so on)
const golden: readonly { name: string; der: Buffer; hex: string }[] = [
  { name: 'INTEGER 0', der: derInteger(0), hex: '020100' },
  { name: 'INTEGER 127', der: derInteger(127), hex: '02017f' },
  { name: 'INTEGER 128', der: derInteger(128), hex: '02020080' },
  { name: 'INTEGER -128', der: derInteger(-128), hex: '020180' },
  { name: 'INTEGER -129', der: derInteger(-129n), hex: '0202ff7f' },
  { name: 'INTEGER of a magnitude', der: derInteger(Buffer.from('0000ff', 'hex')), hex: '020200ff' },
  { name: 'INTEGER of the magnitude 0', der: derInteger(Buffer.from('0000', 'hex')), hex: '020100' },
  { name: 'ENUMERATED', der: derEnumerated(5), hex: '0a0105' },
  { name: 'BOOLEAN', der: derBoolean(true), hex: '0101ff' },
  { name: 'NULL', der: derNull(), hex: '0500' },
  { name: 'OID', der: derOid('1.2.840.10045.4.3.2'), hex: '06082a8648ce3d040302' },
  { name: 'OID 2.999', der: derOid('2.999'), hex: '06028837' },
  { name: 'OID under our PEN', der: derOid('1.3.6.1.4.1.32473.51820.1'), hex: '060c2b0601040181fd5983946c01' },
  { name: 'OCTET STRING', der: derOctetString(Buffer.from('01', 'hex')), hex: '040101' },
  { name: 'BIT STRING', der: derBitString(Buffer.from('80', 'hex'), 7), hex: '03020780' },
  { name: 'UTF8String', der: derUtf8String('é'), hex: '0c02c3a9' },
  { name: 'IA5String', der: derIa5String('a'), hex: '160161' },
  { name: 'PrintableString', der: derPrintableString('a'), hex: '130161' },
  { name: 'UTCTime', der: derTime(new Date('2049-12-31T23:59:59.999Z')), hex: '170d3439313233313233353935395a' },
  {
    name: 'GeneralizedTime',
    der: derTime(new Date('2050-01-01T00:00:00Z')),
    hex: '180f32303530303130313030303030305a',
  },
  {
    name: 'GeneralizedTime on purpose',
    der: derGeneralizedTime(new Date('2026-01-01T00:00:00.5Z')),
    hex: '180f32303236303130313030303030305a',
  },
  { name: 'SEQUENCE', der: derSequence(derNull(), derInteger(1)), hex: '30050500020101' },
  { name: 'SET OF, sorted', der: derSet(derInteger(2), derInteger(1)), hex: '3106020101020102' },
  { name: '[0] EXPLICIT', der: derContext(0, derInteger(2), true), hex: 'a003020102' },
  { name: '[6] IMPLICIT', der: derContext(6, Buffer.from('a'), false), hex: '860161' },
]
for (const { name, der, hex } of golden) {
  test(`DER: ${name} is written as openssl writes it`, () => assert.equal(der.toString('hex'), hex))
}

for (const [length, header] of [
  [127, '047f'],
  [128, '048180'],
  [255, '0481ff'],
  [256, '04820100'],
  [65_536, '0483010000'],
  [16_777_216, '048401000000'],
] as const) {
  test(`the length ${length} takes the octets ${header.slice(2)}`, () => {
    const der = derOctetString(Buffer.alloc(length))
    assert.equal(der.subarray(0, header.length / 2).toString('hex'), header)
    assert.equal(der.length, header.length / 2 + length)
    assert.equal(readOctetString(readDer(der)).length, length)
  })
}

for (const [name, write] of [
  ['an OID of one arc', () => derOid('1')],
  ['an OID with a leading zero', () => derOid('1.02')],
  ['an OID 0.40', () => derOid('0.40')],
  ['an OID that begins with 3', () => derOid('3.1')],
  ['a BIT STRING with a set unused bit', () => derBitString(Buffer.of(1), 1)],
  ['unused bits of nothing', () => derBitString(Buffer.alloc(0), 1)],
  ['an INTEGER of no octets', () => derInteger(Buffer.alloc(0))],
  ['an IA5String with an umlaut', () => derIa5String('ä')],
  ['a PrintableString with a star', () => derPrintableString('*')],
  ['a lone surrogate', () => derUtf8String('\ud800')],
  ['a year of five digits', () => derTime(new Date(Date.UTC(10_000, 0)))],
  ['context tag 31', () => contextTag(31, false)],
] as const) {
  test(`${name} cannot be written`, () => assert.throws(write, TypeError))
}

test('what is written is read back', () => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: -(1n << 200n), max: 1n << 200n }),
      fc.uint8Array({ maxLength: 300 }),
      fc.string({ unit: 'grapheme' }),
      fc.tuple(fc.nat(39), fc.array(fc.bigInt({ min: 0n, max: 1n << 100n }), { maxLength: 3 })),
      fc.date({ min: new Date('0000-01-01T00:00:00Z'), max: new Date('9999-12-31T23:59:59Z'), noInvalidDate: true }),
      fc.integer({ min: 0, max: 7 }),
      (integer, octets, text, [second, arcs], date, unused) => {
        assert.equal(readInteger(readDer(derInteger(integer))), integer)
        assert.deepEqual(readOctetString(readDer(derOctetString(Buffer.from(octets)))), Buffer.from(octets))
        assert.equal(readUtf8String(readDer(derUtf8String(text))), text)
        const oid = ['1', second, ...arcs].join('.')
        assert.equal(readOid(readDer(derOid(oid))), oid)
        assert.equal(readTime(readDer(derTime(date))).getTime(), Math.floor(date.getTime() / 1000) * 1000)
        const bits = Buffer.from([...octets, (0xff << unused) & 0xff])
        assert.deepEqual(readBitString(readDer(derBitString(bits, unused))), { unusedBits: unused, bytes: bits })
        const elements = readSetOf(readDer(derSet(derInteger(integer), derUtf8String(text), derOid(oid))))
        assert.equal(elements.length, 3)
      },
    ),
    { numRuns: 300 },
  )
})
