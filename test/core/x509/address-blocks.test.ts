import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import {
  firstAddress,
  formatPrefix,
  lastAddress,
  makePrefix,
  parsePrefix,
  prefixContains,
  type Prefix,
} from '../../../src/core/ipam/prefix.ts'
import { blocksContain, encodeIpAddrBlocks, parseIpAddrBlocks } from '../../../src/core/x509/address-blocks.ts'

const prefixes = (...texts: string[]) => texts.map(parsePrefix)
const der = (hex: string) => Buffer.from(hex.replaceAll(' ', ''), 'hex')

// Expected bytes: openssl req -x509 … -addext 'sbgp-ipAddrBlock=IPv4:10.88.0.0/16,…' | openssl asn1parse -strparse
const golden: readonly { name: string; input: string[]; hex: string; output?: string[] }[] = [
  {
    name: 'everything',
    input: ['::/0', '0.0.0.0/0'],
    hex: '3016 3009 04020001 3003 030100 3009 04020002 3003 030100',
    output: ['0.0.0.0/0', '::/0'],
  },
  { name: 'a /16', input: ['10.88.0.0/16'], hex: '300d 300b 04020001 3005 0303000a58' },
  { name: 'a /20, four unused bits', input: ['10.88.16.0/20'], hex: '300e 300c 04020001 3006 0304040a5810' },
  { name: 'a host', input: ['10.88.0.2/32'], hex: '300f 300d 04020001 3007 0305000a580002' },
  {
    name: 'halves are joined',
    input: ['10.89.0.0/16', '10.88.0.0/16'],
    hex: '300d 300b 04020001 3005 0303010a58',
    output: ['10.88.0.0/15'],
  },
  {
    name: 'four quarters become one',
    input: ['10.0.2.0/24', '10.0.0.0/24', '10.0.3.0/24', '10.0.1.0/24'],
    hex: '300e 300c 04020001 3006 0304020a0000',
    output: ['10.0.0.0/22'],
  },
  {
    name: 'what is inside is absorbed',
    input: ['10.88.1.0/24', '10.88.0.0/16', '10.88.0.0/16'],
    hex: '300d 300b 04020001 3005 0303000a58',
    output: ['10.88.0.0/16'],
  },
  {
    name: 'the two halves of everything',
    input: ['128.0.0.0/1', '0.0.0.0/1'],
    hex: '300b 3009 04020001 3003 030100',
    output: ['0.0.0.0/0'],
  },
]
for (const { name, input, hex, output } of golden) {
  test(`IPAddrBlocks: ${name}`, () => {
    assert.equal(encodeIpAddrBlocks(prefixes(...input)).toString('hex'), hex.replaceAll(' ', ''))
    assert.deepEqual(parseIpAddrBlocks(der(hex)).map(formatPrefix), output ?? input)
  })
}

for (const { name, hex } of [
  { name: 'no family', hex: '3000' },
  { name: 'a family without prefixes', hex: '3008 3006 04020001 3000' },
  { name: 'inherit', hex: '3008 3006 04020001 0500' },
  { name: 'a range', hex: '3018 3016 04020001 3010 300e 0305010a580002 0305000a580004' },
  { name: 'a SAFI', hex: '300e 300c 0403000101 3005 0303000a58' },
  { name: 'an unknown family', hex: '300d 300b 04020003 3005 0303000a58' },
  { name: 'a family of one octet', hex: '300c 300a 040101 3005 0303000a58' },
  { name: 'a family twice', hex: '301a 300b 04020001 3005 0303000a58 300b 04020001 3005 0303000b58' },
  { name: 'IPv6 before IPv4', hex: '3016 3009 04020002 3003 030100 3009 04020001 3003 030100' },
  { name: 'prefixes out of order', hex: '3012 3010 04020001 300a 0303000a59 0303000a57' },
  { name: 'a prefix twice', hex: '3012 3010 04020001 300a 0303000a58 0303000a58' },
  { name: 'prefixes that overlap', hex: '3011 300f 04020001 3009 0302000a 0303000a58' },
  { name: 'halves that are not joined', hex: '3012 3010 04020001 300a 0303000a58 0303000a59' },
  { name: 'prefixes that touch', hex: '3012 3010 04020001 300a 0303000a59 0303000a5a' },
  { name: 'an IPv4 address of five octets', hex: '3010 300e 04020001 3008 0306000a58000200' },
  { name: 'set padding bits', hex: '300d 300b 04020001 3005 0303010a59' },
  { name: 'a third field', hex: '300f 300d 04020001 3005 0303000a58 0500' },
  { name: 'a trailing byte', hex: '300d 300b 04020001 3005 0303000a58 00' },
]) {
  test(`IPAddrBlocks: ${name} is refused`, () =>
    assert.throws(() => parseIpAddrBlocks(der(hex)), { code: 'malformed_der' }))
}

test('what is refused for a reason that people can change is named', () => {
  assert.throws(() => parseIpAddrBlocks(der('3008 3006 04020001 0500')), { message: /inherits/ })
  assert.throws(() => parseIpAddrBlocks(der('3018 3016 04020001 3010 300e 0305010a580002 0305000a580004')), {
    message: /range/,
  })
})

test('prefixes that touch without being halves cannot be written, and the message says what to do', () => {
  for (const input of [
    ['10.89.0.0/16', '10.90.0.0/16'],
    ['10.0.0.0/24', '10.0.1.0/25'],
    ['fd00::/64', 'fd00:0:0:1::/65'],
  ]) {
    assert.throws(() => encodeIpAddrBlocks(prefixes(...input)), { code: 'malformed_request', message: /leave a gap/ })
  }
  assert.throws(() => encodeIpAddrBlocks([]), { code: 'malformed_request' })
})

test('the last IPv4 address and the first IPv6 address do not touch', () => {
  const both = prefixes('255.255.255.255/32', '::/128')
  assert.deepEqual(parseIpAddrBlocks(encodeIpAddrBlocks(both)), both)
})

for (const [outer, inner, contained] of [
  [['10.88.0.0/16'], ['10.88.1.0/24'], true],
  [['10.88.0.0/16'], ['10.88.0.0/16'], true],
  [['10.88.0.0/16'], ['10.88.0.0/15'], false],
  [['10.88.0.0/16'], ['10.88.1.0/24', '10.89.0.0/32'], false],
  [['10.88.0.0/16'], ['fd00::/64'], false],
  [['0.0.0.0/0'], ['::/128'], false],
  [['10.0.0.0/8', 'fd00::/64'], ['10.1.1.1/32', 'fd00::1/128'], true],
  [[], ['10.88.0.0/16'], false],
  [['10.88.0.0/16'], [], true],
] as const) {
  test(`${outer.join(' ') || 'nothing'} ${contained ? 'contains' : 'does not contain'} ${inner.join(' ') || 'nothing'}`, () => {
    assert.equal(blocksContain(prefixes(...outer), prefixes(...inner)), contained)
  })
}

const anyPrefix = fc
  .tuple(fc.constantFrom(4 as const, 6 as const), fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), fc.nat(128))
  .map(([family, bits, length]): Prefix => {
    const width = family === 4 ? 32 : 128
    const short = length % (width + 1)
    const shift = BigInt(width - short)
    return makePrefix(family, ((bits & ((1n << BigInt(width)) - 1n)) >> shift) << shift, short)
  })

test('one set of addresses has one encoding, which holds exactly its addresses', () => {
  fc.assert(
    fc.property(fc.array(anyPrefix, { minLength: 1, maxLength: 12 }), (input) => {
      let encoded: Buffer
      try {
        encoded = encodeIpAddrBlocks(input)
      } catch (error) {
        assert.ok(error instanceof CertpeerError)
        return
      }
      const output = parseIpAddrBlocks(encoded)
      assert.deepEqual(encodeIpAddrBlocks(output), encoded)
      assert.deepEqual(encodeIpAddrBlocks([...input, ...input].reverse()), encoded)
      assert.ok(blocksContain(output, input))
      for (const prefix of output) {
        for (const edge of [firstAddress(prefix), lastAddress(prefix)]) {
          const host = makePrefix(prefix.family, edge, prefix.family === 4 ? 32 : 128)
          assert.ok(input.some((candidate) => prefixContains(candidate, host)))
        }
      }
    }),
    { numRuns: 300 },
  )
})
