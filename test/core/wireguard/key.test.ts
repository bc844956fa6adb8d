import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import {
  parseWireGuardKey,
  reportedWireGuardKey,
  wireGuardKeyFromBytes,
  wireGuardKeyToBytes,
  wireGuardKeyToHex,
} from '../../../src/core/wireguard/key.ts'
import { x25519, x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'

const P = 2n ** 255n - 19n
const REFUSED = { name: 'CertpeerError', code: 'bad_wireguard_key' }

function littleEndian(value: bigint): Buffer {
  return Buffer.from(value.toString(16).padStart(64, '0'), 'hex').reverse()
}

function hex(text: string): Buffer {
  return Buffer.from(text, 'hex')
}

// RFC 7748 section 6.1
const ALICE_PRIVATE = hex('77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a')
const ALICE_PUBLIC = hex('8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a')
const BOB_PRIVATE = hex('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb')
const BOB_PUBLIC = hex('de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f')
const SHARED = '4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742'

for (const { name, scalar, u, result } of [
  {
    name: 'first',
    scalar: 'a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4',
    u: 'e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c',
    result: 'c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552',
  },
  {
    name: 'second, whose bit 255 the function itself ignores',
    scalar: '4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d',
    u: 'e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493',
    result: '95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957',
  },
]) {
  test(`X25519, RFC 7748 section 5.2: ${name}`, () => {
    assert.equal(x25519(hex(scalar), hex(u)).toString('hex'), result)
  })
}

test('X25519, RFC 7748 section 5.2: one and a thousand iterations', () => {
  let k: Buffer = hex('09'.padEnd(64, '0'))
  let u = k
  for (let round = 1; round <= 1000; round++) {
    ;[k, u] = [x25519(k, u), k]
    if (round === 1) {
      assert.equal(k.toString('hex'), '422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079')
    }
  }
  assert.equal(k.toString('hex'), '684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51')
})

test('X25519, RFC 7748 section 6.1: public keys and the secret both sides get', () => {
  assert.deepEqual(x25519PublicFromPrivate(ALICE_PRIVATE), ALICE_PUBLIC)
  assert.deepEqual(x25519PublicFromPrivate(BOB_PRIVATE), BOB_PUBLIC)
  assert.equal(x25519(ALICE_PRIVATE, BOB_PUBLIC).toString('hex'), SHARED)
  assert.equal(x25519(BOB_PRIVATE, ALICE_PUBLIC).toString('hex'), SHARED)
})

test('a key keeps its bytes through text and hex', () => {
  const key = wireGuardKeyFromBytes(ALICE_PUBLIC)
  assert.equal(key, 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=')
  assert.equal(parseWireGuardKey(key), key)
  assert.equal(wireGuardKeyToHex(key), ALICE_PUBLIC.toString('hex'))
  assert.deepEqual(wireGuardKeyToBytes(key), ALICE_PUBLIC)
})

const LOW_ORDER: readonly { name: string; value: bigint }[] = [
  { name: '0', value: 0n },
  { name: '1', value: 1n },
  {
    name: 'the first point of order 8',
    value: 325606250916557431795983626356110631294008115727848805560023387167927233504n,
  },
  {
    name: 'the second point of order 8',
    value: 39382357235489614581723060781553021112529911719440698176882885853963445705823n,
  },
  { name: 'p - 1', value: P - 1n },
  { name: 'p', value: P },
  { name: 'p + 1', value: P + 1n },
]
const ALIAS_BIT = 2n ** 255n

for (const { name, value } of [
  ...LOW_ORDER,
  ...LOW_ORDER.map((point) => ({ name: `${point.name} with bit 255`, value: point.value + ALIAS_BIT })),
]) {
  test(`the low-order key ${name} is refused, as a key and as a partner`, () => {
    assert.throws(() => wireGuardKeyFromBytes(littleEndian(value)), REFUSED)
    assert.throws(() => parseWireGuardKey(littleEndian(value).toString('base64')), REFUSED)
    assert.throws(() => x25519(ALICE_PRIVATE, littleEndian(value)), REFUSED)
  })
}

for (let above = 0n; above < 19n; above++) {
  test(`p + ${above} is refused: it is another key's alias`, () => {
    assert.throws(() => wireGuardKeyFromBytes(littleEndian(P + above)), REFUSED)
  })
}

test('p - 2 and 2 are the outermost keys that are accepted', () => {
  assert.equal(wireGuardKeyToHex(wireGuardKeyFromBytes(littleEndian(P - 2n))), `eb${'ff'.repeat(30)}7f`)
  assert.equal(wireGuardKeyToHex(wireGuardKeyFromBytes(littleEndian(2n))), `02${'00'.repeat(31)}`)
})

test('bit 255 is refused though the device would accept it as the same key', () => {
  const alias = Buffer.from(ALICE_PUBLIC)
  alias.writeUInt8(alias.readUInt8(31) | 0x80, 31)
  assert.deepEqual(x25519(BOB_PRIVATE, alias), x25519(BOB_PRIVATE, ALICE_PUBLIC))
  assert.throws(() => wireGuardKeyFromBytes(alias), REFUSED)
})

for (const { name, text } of [
  { name: 'empty', text: '' },
  { name: '43 characters', text: 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo' },
  { name: '31 bytes', text: Buffer.alloc(31, 7).toString('base64') },
  { name: '33 bytes', text: Buffer.alloc(33, 7).toString('base64') },
  { name: 'a bit beyond the 32 bytes', text: 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=' },
  { name: 'base64url', text: 'hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo=' },
  { name: 'a newline', text: 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n' },
  { name: 'a space', text: ' hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo' },
  { name: 'hex', text: ALICE_PUBLIC.toString('hex') },
]) {
  test(`the text of a key: ${name} is refused`, () => assert.throws(() => parseWireGuardKey(text), REFUSED))
}

test('whatever 32 bytes come: the key is theirs exactly, or it is refused', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 40 }), (bytes) => {
      try {
        assert.deepEqual(wireGuardKeyToBytes(wireGuardKeyFromBytes(Buffer.from(bytes))), Buffer.from(bytes))
        assert.equal(bytes.length, 32)
      } catch (error) {
        assert.ok(error instanceof CertpeerError && error.code === 'bad_wireguard_key')
      }
    }),
  )
})

test('every key that wg makes is accepted', () => {
  for (let round = 0; round < 200; round++) {
    const bytes = x25519PublicFromPrivate(randomBytes(32))
    assert.equal(parseWireGuardKey(bytes.toString('base64')), bytes.toString('base64'))
  }
})

test('a key that our own device reports stays nameable, canonical or not', () => {
  const alias = littleEndian(P + 3n)
  assert.equal(reportedWireGuardKey(alias), alias.toString('base64'))
  assert.throws(() => reportedWireGuardKey(Buffer.alloc(31)), { code: 'device_failed' })
})
