import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { AddressPool } from '../../../src/core/ipam/pool.ts'
import { formatPrefix, hostPrefix, parseAddress, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import type { Prefix } from '../../../src/core/ipam/prefix.ts'

const pool = (prefix: string, ...reserved: string[]) =>
  new AddressPool({ prefix: parsePrefix(prefix), reserved: reserved.map(parsePrefix) })
const take = (from: AddressPool, count: number) => Array.from({ length: count }, () => formatPrefix(from.allocate()))

describe('both families, one behaviour', () => {
  for (const { family, prefix, all, reserved, rest, outside } of [
    {
      family: 'IPv4',
      prefix: '10.0.0.0/29',
      all: ['10.0.0.1/32', '10.0.0.2/32', '10.0.0.3/32', '10.0.0.4/32', '10.0.0.5/32', '10.0.0.6/32'],
      reserved: ['10.0.0.2/31', '10.0.0.6/32'],
      rest: ['10.0.0.1/32', '10.0.0.4/32', '10.0.0.5/32'],
      outside: '10.0.0.8/32',
    },
    {
      family: 'IPv6',
      prefix: 'fd00::/125',
      all: ['fd00::1/128', 'fd00::2/128', 'fd00::3/128', 'fd00::4/128', 'fd00::5/128', 'fd00::6/128', 'fd00::7/128'],
      reserved: ['fd00::2/127', 'fd00::6/128'],
      rest: ['fd00::1/128', 'fd00::4/128', 'fd00::5/128', 'fd00::7/128'],
      outside: 'fd00::8/128',
    },
  ]) {
    test(`${family}: every address that may be given is given once, in order, then pool_exhausted`, () => {
      const addresses = pool(prefix)
      assert.equal(addresses.capacity, BigInt(all.length))
      assert.deepEqual(take(addresses, all.length), all)
      assert.equal(addresses.free, 0n)
      assert.throws(() => addresses.allocate(), { code: 'pool_exhausted', message: new RegExp(`pool ${prefix}`) })
      assert.equal(addresses.taken, all.length)
    })

    test(`${family}: reserved addresses are never given, and cannot be claimed`, () => {
      const addresses = pool(prefix, ...reserved, '192.0.2.0/24', '2001:db8::/32')
      assert.equal(addresses.capacity, BigInt(rest.length))
      assert.deepEqual(take(addresses, rest.length), rest)
      assert.throws(() => addresses.allocate(), { code: 'pool_exhausted' })
      for (const text of [...reserved.filter((r) => !/\/(31|127)$/.test(r)), prefix, outside]) {
        assert.throws(() => addresses.claim(parsePrefix(text)), { code: 'address_conflict' })
      }
      assert.equal(addresses.taken, rest.length)
    })

    test(`${family}: freed addresses return when the rest is used up, the longest free first`, () => {
      const addresses = pool(prefix)
      take(addresses, 3)
      for (const index of [1, 0]) assert.equal(addresses.release(parsePrefix(all[index] ?? '')), true)
      assert.deepEqual(take(addresses, all.length - 3), all.slice(3))
      assert.deepEqual(take(addresses, 2), [all[1], all[0]])
      assert.throws(() => addresses.allocate(), { code: 'pool_exhausted' })
    })

    test(`${family}: a claimed address is not given, and is free again after release`, () => {
      const addresses = pool(prefix)
      const wanted = parsePrefix(all[1] ?? '')
      addresses.claim(wanted)
      assert.throws(() => addresses.claim(wanted), { code: 'address_conflict' })
      assert.deepEqual(take(addresses, 2), [all[0], all[2]])
      assert.equal(addresses.release(wanted), true)
      assert.equal(addresses.release(wanted), false)
      assert.equal(addresses.isFree(wanted), true)
      addresses.claim(wanted)
      assert.equal(addresses.isFree(wanted), false)
      assert.equal(addresses.taken, 3)
    })

    test(`${family}: hold takes what an earlier document gave, and release of it gives it to nobody`, () => {
      const addresses = pool(prefix, ...reserved)
      const old = parsePrefix(reserved[1] ?? '')
      assert.equal(addresses.hold(old), true)
      assert.equal(addresses.hold(old), false)
      assert.equal(addresses.hold(parsePrefix(outside)), false)
      assert.deepEqual(take(addresses, rest.length), rest)
      assert.equal(addresses.release(old), true)
      assert.throws(() => addresses.allocate(), { code: 'pool_exhausted' })
    })
  }

  test('families do not mix', () => {
    const addresses = pool('0.0.0.0/8')
    assert.throws(() => addresses.claim(parseAddress('::1')), { code: 'address_conflict' })
    assert.equal(addresses.release(parseAddress('::1')), false)
    assert.equal(addresses.hold(parseAddress('::1')), false)
  })

  test('a pool that is reserved as a whole has nothing', () => {
    const addresses = pool('10.0.0.0/24', '10.0.0.0/8')
    assert.equal(addresses.capacity, 0n)
    assert.throws(() => addresses.allocate(), { code: 'pool_exhausted' })
  })

  test('reserved prefixes may lie in and beside each other', () => {
    const addresses = pool('10.0.0.0/28', '10.0.0.0/29', '10.0.0.4/30', '10.0.0.8/32', '10.0.0.15/32')
    assert.deepEqual(
      take(addresses, 6),
      ['9', '10', '11', '12', '13', '14'].map((last) => `10.0.0.${last}/32`),
    )
    assert.throws(() => addresses.allocate(), { code: 'pool_exhausted' })
  })
})

test('against a model: never two at once, never reserved, never exhausted while something is free', () => {
  const setups = [
    { prefix: '10.0.0.0/28', reserved: ['10.0.0.4/30', '10.0.0.14/32'] },
    { prefix: 'fd00::/124', reserved: ['fd00::4/126', 'fd00::f/128'] },
  ]
  const step = fc.record({ act: fc.constantFrom('allocate', 'allocate', 'release', 'claim', 'hold'), at: fc.nat(15) })
  fc.assert(
    fc.property(fc.constantFrom(...setups), fc.array(step, { maxLength: 200 }), (setup, steps) => {
      const prefix = parsePrefix(setup.prefix)
      const reserved = setup.reserved.map(parsePrefix)
      const subject = new AddressPool({ prefix, reserved })
      const forbidden = new Set(forbiddenOf(prefix, reserved))
      const taken = new Set<bigint>()
      for (const { act, at } of steps) {
        const bits = prefix.bits + BigInt(at)
        const address = hostPrefix(prefix.family, bits)
        const free = !taken.has(bits) && !forbidden.has(bits)
        assert.equal(subject.isFree(address), free)
        if (act === 'release') {
          assert.equal(subject.release(address), taken.delete(bits))
        } else if (act === 'hold') {
          assert.equal(subject.hold(address), !taken.has(bits))
          taken.add(bits)
        } else if (act === 'claim') {
          if (free) subject.claim(address)
          else assert.throws(() => subject.claim(address), { code: 'address_conflict' })
          if (free) taken.add(bits)
        } else if (freeCount(taken, forbidden) > 0) {
          const given = subject.allocate()
          assert.ok(!taken.has(given.bits) && !forbidden.has(given.bits), formatPrefix(given))
          taken.add(given.bits)
        } else {
          assert.throws(() => subject.allocate(), { code: 'pool_exhausted' })
        }
        assert.equal(subject.taken, taken.size)
      }
    }),
    { numRuns: 200 },
  )
})

/** Of the 16 addresses in the model's pools. */
function freeCount(taken: ReadonlySet<bigint>, forbidden: ReadonlySet<bigint>): number {
  return 16 - new Set([...taken, ...forbidden]).size
}

function forbiddenOf(prefix: Prefix, reserved: readonly Prefix[]): bigint[] {
  const addresses = Array.from({ length: 16 }, (_, index) => prefix.bits + BigInt(index))
  return addresses.filter(
    (bits, index) =>
      index === 0 ||
      (index === 15 && prefix.family === 4) ||
      reserved.some((r) => bits >= r.bits && bits < r.bits + (1n << BigInt((r.family === 4 ? 32 : 128) - r.length))),
  )
}

test('a large pool costs what is in use: churn neither grows nor slows it', () => {
  const addresses = pool('fd00::/64')
  const held: Prefix[] = []
  for (let index = 0; index < 50_000; index += 1) {
    held.push(addresses.allocate())
    if (held.length > 100) {
      const oldest = held.shift()
      assert.ok(oldest !== undefined && addresses.release(oldest))
    }
  }
  assert.equal(addresses.taken, 100)
  // A released address that is claimed again and again leaves nothing behind.
  const one = parseAddress('fd00::5')
  for (let index = 0; index < 20_000; index += 1) {
    addresses.claim(one)
    addresses.release(one)
  }
  assert.equal(addresses.isFree(one), true)
})
