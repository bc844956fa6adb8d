/**
 * The machine's clock, held by instants that the PKI has signed: it cannot be set back behind the newest verified
 * thisUpdate minus five minutes, and from there on it goes at least as fast as the monotonic clock, which nobody sets.
 * So a gateway that is cut off and whose clock is set back still ends its peers at their notAfter.
 */
import type { Now } from '../../platform/clock.ts'
import { CLOCK_SKEW_MS } from './trust-store.ts'

export class SignedClock {
  readonly #wall: Now
  readonly #monotonicMs: () => number
  #anchor = { atMs: -Infinity, monotonicMs: 0 }

  constructor(wall: Now, monotonicMs: () => number) {
    this.#wall = wall
    this.#monotonicMs = monotonicMs
  }

  now(): Date {
    return new Date(Math.max(this.#wall().getTime(), this.#floorMs()))
  }

  /** Takes note of a signed instant that has been verified. */
  witness(thisUpdate: Date): void {
    const atMs = thisUpdate.getTime() - CLOCK_SKEW_MS
    if (atMs > this.#floorMs()) this.#anchor = { atMs, monotonicMs: this.#monotonicMs() }
  }

  #floorMs(): number {
    return this.#anchor.atMs + (this.#monotonicMs() - this.#anchor.monotonicMs)
  }
}
