import assert from 'node:assert/strict'
import { BlockList, isIPv6 } from 'node:net'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  addressBits,
  addressCount,
  aggregatePrefixes,
  comparePrefixes,
  firstAddress,
  formatAddress,
  formatPrefix,
  hostPrefix,
  lastAddress,
  makePrefix,
  parseAddress,
  parsePrefix,
  parsePrefixOrAddress,
  prefixContains,
  prefixesEqual,
  prefixesOverlap,
} from '../../../src/core/ipam/prefix.ts'
import type { Family, Prefix } from '../../../src/core/ipam/prefix.ts'

/** Prefixes that meet each other often: bits differ in a few places only, half of them in a small corner. */
const anyPrefix = (family: Family): fc.Arbitrary<Prefix> => {
  const width = addressBits(family)
  const bits = fc.oneof(
    fc.bigInt({ min: 0n, max: (1n << BigInt(width)) - 1n }),
    fc.bigInt({ min: 0n, max: 15n }),
    fc.bigInt({ min: 0n, max: 15n }).map((top) => top << BigInt(width - 4)),
  )
  return fc.tuple(bits, fc.integer({ min: 0, max: width })).map(([value, length]) => {
    const shift = BigInt(width - length)
    return makePrefix(family, (value >> shift) << shift, length)
  })
}
const family = fc.constantFrom<Family>(4, 6)
const somePrefix = family.chain(anyPrefix)
const pair = family.chain((value) => fc.tuple(anyPrefix(value), anyPrefix(value)))

/** The same questions asked of plain ranges of integers. */
const range = (prefix: Prefix) => {
  const size = 2n ** BigInt(addressBits(prefix.family) - prefix.length)
  return { first: prefix.bits, last: prefix.bits + size - 1n }
}

describe('text', () => {
  for (const [text, canonical] of [
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['10.88.0.0/16', '10.88.0.0/16'],
    ['255.255.255.255/32', '255.255.255.255/32'],
    ['::/0', '::/0'],
    ['::/128', '::/128'],
    ['::1/128', '::1/128'],
    ['0:0:0:0:0:0:0:1/128', '::1/128'],
    ['FD00:0:0:0001::/64', 'fd00:0:0:1::/64'],
    // RFC 5952 section 4.2.2: one group of zeros is not shortened; 4.2.3: the longest run, and the first of equals.
    ['2001:db8:0:1:1:1:1:1/128', '2001:db8:0:1:1:1:1:1/128'],
    ['2001:db8::0:1/128', '2001:db8::1/128'],
    ['2001:0:0:1:0:0:0:1/128', '2001:0:0:1::1/128'],
    ['2001:db8:0:0:1:0:0:1/128', '2001:db8::1:0:0:1/128'],
    ['1:2:3:4:5:6:7::/128', '1:2:3:4:5:6:7:0/128'],
    ['::2:3:4:5:6:7:8/128', '0:2:3:4:5:6:7:8/128'],
    ['::ffff:192.0.2.1/128', '::ffff:c000:201/128'],
    ['64:ff9b::192.0.2.33/128', '64:ff9b::c000:221/128'],
  ] as const) {
    test(`${text} is ${canonical}`, () => assert.equal(formatPrefix(parsePrefix(text)), canonical))
  }

  for (const text of [
    '',
    '/',
    '10.0.0.0',
    '10.0.0.0/',
    '10.0.0.0/33',
    '10.0.0.0/08',
    '10.0.0.0/+8',
    '10.0.0.0/8 ',
    ' 10.0.0.0/8',
    '10.0.0.0/8/8',
    '10.0.0.1/8',
    '10.0.0/8',
    '10.0.0.0.0/8',
    '10.0.0.256/32',
    '010.0.0.0/8',
    '0x0a.0.0.0/8',
    '167772160/8',
    '10.0.0.-0/32',
    '١.0.0.0/8',
    '::/129',
    'fd00::1/64',
    'fd00:::/64',
    ':fd00::/64',
    'fd00::/64%eth0',
    'fe80::1%lo/128',
    '1:2:3:4:5:6:7/128',
    '1:2:3:4:5:6:7:8:9/128',
    '1:2:3:4:5:6:7:8::/128',
    '::1::/128',
    '12345::/128',
    'g::/128',
    '::1.2.3/128',
    '::1.2.3.4:5/128',
    '1.2.3.4::/128',
    '::01.2.3.4/128',
    '[::1]/128',
  ]) {
    test(`${JSON.stringify(text)} is refused`, () => {
      assert.throws(() => parsePrefix(text), { code: 'malformed_request' })
    })
  }

  test('host bits: the message names the prefix that was meant', () => {
    assert.throws(() => parsePrefix('10.1.2.3/8'), /the prefix is 10\.0\.0\.0\/8/)
    assert.throws(() => parsePrefix('fd00::1/64'), /the prefix is fd00::\/64/)
  })

  test('an address has no length and becomes its host prefix', () => {
    assert.deepEqual(parseAddress('10.0.0.1'), hostPrefix(4, 0x0a00_0001n))
    assert.deepEqual(parseAddress('::1'), hostPrefix(6, 1n))
    assert.throws(() => parseAddress('10.0.0.1/32'), { code: 'malformed_request' })
    assert.equal(formatPrefix(parsePrefixOrAddress('10.0.0.1')), '10.0.0.1/32')
    assert.equal(formatPrefix(parsePrefixOrAddress('10.0.0.0/8')), '10.0.0.0/8')
  })

  test('what is written is read back', () => {
    fc.assert(fc.property(somePrefix, (prefix) => assert.deepEqual(parsePrefix(formatPrefix(prefix)), prefix)))
  })

  test('IPv6 text is what the URL standard writes (RFC 5952)', () => {
    const groups = fc.array(fc.constantFrom(0, 0, 0, 1, 0xab, 0xffff), { minLength: 8, maxLength: 8 })
    fc.assert(
      fc.property(groups, (parts) => {
        const bits = parts.reduce((sum, part) => (sum << 16n) | BigInt(part), 0n)
        const long = parts.map((part) => part.toString(16)).join(':')
        assert.equal(`[${formatAddress(bits, 6)}]`, new URL(`http://[${long}]/`).hostname)
      }),
    )
  })

  test('IPv6 reading agrees with node:net on any text', () => {
    const text = fc
      .array(fc.constantFrom(':', '::', '0', '1', 'ab', 'FFFF', '12345', '1.2.3.4', '.'), { maxLength: 17 })
      .map((parts) => parts.join(''))
      .filter((value) => value.includes(':'))
    fc.assert(
      fc.property(text, (value) => {
        if (isIPv6(value)) assert.equal(`[${formatAddress(parseAddress(value).bits, 6)}]`, hostname(value))
        else assert.throws(() => parseAddress(value), { code: 'malformed_request' })
      }),
      { numRuns: 500 },
    )
  })
})

function hostname(address: string): string {
  return new URL(`http://[${address}]/`).hostname
}

describe('sets of addresses', () => {
  test('containment and overlap are those of plain ranges', () => {
    fc.assert(
      fc.property(pair, ([a, b]) => {
        const [x, y] = [range(a), range(b)]
        assert.equal(prefixContains(a, b), x.first <= y.first && y.last <= x.last)
        assert.equal(prefixesOverlap(a, b), x.first <= y.last && y.first <= x.last)
        assert.equal(prefixesOverlap(a, b), prefixesOverlap(b, a))
      }),
    )
  })

  test('containment of addresses is that of node:net BlockList', () => {
    fc.assert(
      fc.property(pair, ([net, host]) => {
        const list = new BlockList()
        const type = net.family === 4 ? 'ipv4' : 'ipv6'
        list.addSubnet(formatAddress(net.bits, net.family), net.length, type)
        const address = hostPrefix(host.family, host.bits)
        assert.equal(prefixContains(net, address), list.check(formatAddress(host.bits, host.family), type))
      }),
    )
  })

  test('families never meet', () => {
    const [v4, v6] = [parsePrefix('0.0.0.0/0'), parsePrefix('::/0')]
    for (const [a, b] of [
      [v4, v6],
      [v6, v4],
    ] as const) {
      assert.equal(prefixContains(a, b), false)
      assert.equal(prefixesOverlap(a, b), false)
      assert.equal(prefixesEqual(a, b), false)
    }
  })

  test('aggregation: the same addresses in the fewest prefixes', () => {
    const small = fc.tuple(fc.nat(15), fc.integer({ min: 124, max: 128 })).map(([low, length]) => {
      const shift = BigInt(128 - length)
      return makePrefix(6, (BigInt(low) >> shift) << shift, length)
    })
    const addresses = (prefixes: readonly Prefix[]) =>
      Array.from({ length: 16 }, (_, low) =>
        prefixes.some((outer) => prefixContains(outer, hostPrefix(6, BigInt(low)))),
      )
    fc.assert(
      fc.property(fc.array(small, { maxLength: 12 }), (prefixes) => {
        const result = aggregatePrefixes(prefixes)
        assert.deepEqual(addresses(result), addresses(prefixes))
        assert.deepEqual(result, [...result].sort(comparePrefixes))
        // Of the prefixes inside of 16 addresses, exactly those that are full and whose parent is not.
        const full = (prefix: Prefix) =>
          addresses(prefixes)
            .slice(...span(prefix))
            .every(Boolean)
        const maximal = allSmall().filter((prefix) => full(prefix) && !(prefix.length > 124 && full(parentOf(prefix))))
        assert.deepEqual(result, maximal.sort(comparePrefixes))
      }),
    )
    assert.deepEqual(aggregatePrefixes(['0.0.0.0/0', '::/0'].map(parsePrefix)).map(formatPrefix), ['0.0.0.0/0', '::/0'])
    assert.deepEqual(aggregatePrefixes(['0.0.0.0/1', '128.0.0.0/1'].map(parsePrefix)).map(formatPrefix), ['0.0.0.0/0'])
  })

  test('first, last and count agree with plain ranges', () => {
    fc.assert(
      fc.property(somePrefix, (prefix) => {
        const { first, last } = range(prefix)
        assert.equal(firstAddress(prefix), first)
        assert.equal(lastAddress(prefix), last)
        assert.equal(addressCount(prefix), last - first + 1n)
      }),
    )
  })

  test('order: total, families apart, a prefix before what it contains', () => {
    fc.assert(
      fc.property(somePrefix, somePrefix, (a, b) => {
        assert.equal(Math.sign(comparePrefixes(a, b)) + Math.sign(comparePrefixes(b, a)), 0)
        assert.equal(comparePrefixes(a, b) === 0, prefixesEqual(a, b))
        if (prefixContains(a, b) && !prefixesEqual(a, b)) assert.ok(comparePrefixes(a, b) < 0)
      }),
    )
    const sorted = ['10.0.0.0/8', '10.0.0.0/16', '10.1.0.0/16', '::/0', 'fd00::/8'].map(parsePrefix)
    assert.deepEqual([...sorted].reverse().sort(comparePrefixes), sorted)
  })

  for (const [name, make] of [
    ['a length beyond the family', () => makePrefix(4, 0n, 33)],
    ['a negative length', () => makePrefix(6, 0n, -1)],
    ['a broken length', () => makePrefix(6, 0n, 1.5)],
    ['bits beyond the family', () => makePrefix(4, 1n << 32n, 32)],
    ['negative bits', () => makePrefix(6, -1n, 128)],
    ['host bits', () => makePrefix(6, 1n, 64)],
  ] as const) {
    test(`${name} makes no prefix`, () => assert.throws(make, { code: 'malformed_request' }))
  }
})

function span(prefix: Prefix): [number, number] {
  return [Number(firstAddress(prefix)), Number(lastAddress(prefix)) + 1]
}

function parentOf(prefix: Prefix): Prefix {
  const shift = BigInt(129 - prefix.length)
  return makePrefix(6, (prefix.bits >> shift) << shift, prefix.length - 1)
}

/** Every prefix inside of ::/124. */
function allSmall(): Prefix[] {
  return [124, 125, 126, 127, 128].flatMap((length) =>
    Array.from({ length: 1 << (length - 124) }, (_, index) =>
      makePrefix(6, BigInt(index) << BigInt(128 - length), length),
    ),
  )
}
