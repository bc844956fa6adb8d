/** The heap of ends, and the clock that signed instants hold. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ExpiryHeap } from '../../../src/edge/gateway/expiry.ts'
import { SignedClock } from '../../../src/edge/gateway/signed-clock.ts'

const MINUTE = 60_000

test('the heap gives everything that is due, in order, and nothing else', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(1000)), fc.nat(1000), (instants, now) => {
      const heap = new ExpiryHeap<number>()
      for (const ms of instants) heap.add(new Date(ms), ms)
      const taken: number[] = []
      for (let value = heap.takeDue(new Date(now)); value !== undefined; value = heap.takeDue(new Date(now)))
        taken.push(value)
      assert.deepEqual(
        taken,
        instants.filter((ms) => ms <= now).sort((a, b) => a - b),
      )
      const later = instants.filter((ms) => ms > now)
      assert.equal(heap.nextAtMs, later.length === 0 ? undefined : Math.min(...later))
      assert.equal(heap.size, later.length)
    }),
  )
})

test('a signed instant holds the clock, and from there it goes on by itself', () => {
  let wallMs = 1_000 * MINUTE
  let monotonicMs = 0
  const clock = new SignedClock(
    () => new Date(wallMs),
    () => monotonicMs,
  )
  const minutes = () => clock.now().getTime() / MINUTE
  assert.equal(minutes(), 1000)
  clock.witness(new Date(999 * MINUTE))
  assert.equal(minutes(), 1000)
  wallMs = 10 * MINUTE // set back by hours
  assert.equal(minutes(), 994)
  monotonicMs += 60 * MINUTE // an hour goes by, alone
  assert.equal(minutes(), 1054)
  clock.witness(new Date(1000 * MINUTE)) // older than what is known by now
  assert.equal(minutes(), 1054)
  clock.witness(new Date(2000 * MINUTE))
  assert.equal(minutes(), 1995)
  wallMs = 5000 * MINUTE // set forward: believed, and forgotten when it is set right
  assert.equal(minutes(), 5000)
  wallMs = 2000 * MINUTE
  assert.equal(minutes(), 2000)
})
