import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { Challenges } from '../../src/authority/challenges.ts'

const CREDENTIAL = randomBytes(32)
const AT = new Date('2026-06-01T12:00:00Z')
const later = (seconds: number) => new Date(AT.getTime() + seconds * 1000)

test('a challenge serves once, for its credential, for 120 seconds', () => {
  const challenges = new Challenges({ random: randomBytes })
  const used = challenges.issue(CREDENTIAL, 'a', AT)
  assert.equal(challenges.consume(used.id, CREDENTIAL, later(119)).id, used.id)
  assert.throws(() => challenges.consume(used.id, CREDENTIAL, later(119)), { code: 'challenge_unknown' })
  const other = challenges.issue(CREDENTIAL, 'a', AT)
  assert.throws(() => challenges.consume(other.id, randomBytes(32), AT), { code: 'challenge_unknown' })
  assert.throws(() => challenges.consume(other.id, CREDENTIAL, AT), { code: 'challenge_unknown' })
  const old = challenges.issue(CREDENTIAL, 'a', AT)
  assert.throws(() => challenges.consume(old.id, CREDENTIAL, later(120)), { code: 'challenge_unknown' })
  assert.equal(challenges.size, 0)
})

test('their number is bounded for one address and in all, and time makes room', () => {
  const challenges = new Challenges({ random: randomBytes, maxPerAddress: 2, maxInAll: 3 })
  challenges.issue(CREDENTIAL, 'a', AT)
  challenges.issue(CREDENTIAL, 'a', AT)
  assert.throws(() => challenges.issue(CREDENTIAL, 'a', AT), { code: 'rate_limited' })
  challenges.issue(CREDENTIAL, 'b', AT)
  assert.throws(() => challenges.issue(CREDENTIAL, 'c', AT), { code: 'rate_limited' })
  challenges.issue(CREDENTIAL, 'a', later(120))
  assert.equal(challenges.size, 1)
})

test('an IPv6 caller has one bound for its whole /64', () => {
  const challenges = new Challenges({ random: randomBytes, maxPerAddress: 2 })
  challenges.issue(CREDENTIAL, '2001:db8:1:2::1', AT)
  const { id } = challenges.issue(CREDENTIAL, '2001:db8:1:2:ffff::9', AT)
  assert.throws(() => challenges.issue(CREDENTIAL, '2001:0db8:1:2::3', AT), { code: 'rate_limited' })
  challenges.issue(CREDENTIAL, '2001:db8:1:3::1', AT)
  challenges.consume(id, CREDENTIAL, AT)
  challenges.issue(CREDENTIAL, '2001:db8:1:2::4', AT)
})
