import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { readDer } from '../../../src/core/der/reader.ts'
import { newSerial, parseSerial, serialFromDer, serialToDerInteger } from '../../../src/core/x509/serial.ts'

for (const [text, serial] of [
  ['1', '01'],
  ['0a', '0a'],
  ['00000A', '0a'],
  ['80', '80'],
  ['F'.repeat(38), 'f'.repeat(38)],
  [`7f${'00'.repeat(19)}`, `7f${'00'.repeat(19)}`],
] as const) {
  test(`serial number ${text} is ${serial}, through DER and back`, () => {
    assert.equal(parseSerial(text), serial)
    assert.equal(serialFromDer(readDer(serialToDerInteger(parseSerial(text)))), serial)
  })
}

for (const text of ['', '0', '000', 'xyz', '0x1', '-1', ' 1', '1:2', 'f'.repeat(40), '1'.repeat(41), '0'.repeat(65)]) {
  test(`the serial number "${text.slice(0, 10)}" of ${text.length} characters is refused`, () => {
    assert.throws(() => parseSerial(text), { code: 'malformed_request' })
  })
}

for (const [name, hex] of [
  ['zero', '020100'],
  ['negative', '0201ff'],
  ['of 21 octets', `0215${'01'.repeat(21)}`],
  ['of 20 octets and a sign octet', `021500${'ff'.repeat(20)}`],
  ['with a needless zero', '02020001'],
  ['that is no INTEGER', '040101'],
] as const) {
  test(`a serial number ${name} is refused in DER`, () => {
    assert.throws(() => serialFromDer(readDer(Buffer.from(hex, 'hex'))), { code: 'malformed_der' })
  })
}

test('a new serial number keeps every octet drawn, is positive, and fits', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 20 }), (random) => {
      const serial = newSerial(Buffer.from(random))
      assert.equal(serial.length, random.length * 2)
      assert.equal(serial.slice(2), Buffer.from(random).toString('hex').slice(2))
      assert.equal(serialFromDer(readDer(serialToDerInteger(serial))), serial)
      assert.equal(parseSerial(serial.toUpperCase()), serial)
    }),
  )
  assert.equal(newSerial(Buffer.alloc(16)), `01${'00'.repeat(15)}`)
  assert.equal(newSerial(Buffer.alloc(16, 0x80)).slice(0, 4), '0180')
})

test('15 or 21 octets make no serial number', () => {
  assert.throws(() => newSerial(Buffer.alloc(15, 1)), TypeError)
  assert.throws(() => newSerial(Buffer.alloc(21, 1)), TypeError)
})
