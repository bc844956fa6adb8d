/**
 * What requests under way have taken between their decision and their ledger entry. Everything here is taken
 * synchronously with the decision, so two at once can never both find the same key, name, token or address free; it is
 * given back when the entry was applied (the state holds it then) or could not be written (nobody holds it then).
 */
import type { WireGuardKey } from '../core/wireguard/key.ts'

export class Reservations {
  readonly keys = new Set<WireGuardKey>()
  private readonly takenNames = new Map<string, Promise<void>>()
  readonly identities = new Set<string>()
  /** Identities and names whose revocation is being written: nothing may be issued past it. */
  private readonly blocked = new Map<string, number>()
  private turn: Promise<unknown> = Promise.resolve()
  /** Requests by what makes them the same request: the hash of the CSR. */
  private readonly running = new Map<string, Promise<unknown>>()
  /** Tokens being spent: jti → hash of the CSR that spends it. */
  readonly tokens = new Map<string, string>()

  hasName(nameKey: string): boolean {
    return this.takenNames.has(nameKey)
  }

  /** Names of requests under way. */
  get names(): readonly string[] {
    return [...this.takenNames.keys()]
  }

  takeName(nameKey: string): () => void {
    const { promise, resolve } = withResolvers()
    this.takenNames.set(nameKey, promise)
    return () => {
      this.takenNames.delete(nameKey)
      resolve()
    }
  }

  /** Resolves when the request that has the name now is through, whatever came of it. */
  async whenNameFree(nameKey: string): Promise<void> {
    await this.takenNames.get(nameKey)
  }

  /** Runs `work` after all that was queued before it. */
  inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.turn.then(work)
    this.turn = result.catch(() => undefined)
    return result
  }

  block(what: string): () => void {
    this.blocked.set(what, (this.blocked.get(what) ?? 0) + 1)
    return () => {
      const left = (this.blocked.get(what) ?? 1) - 1
      if (left > 0) this.blocked.set(what, left)
      else this.blocked.delete(what)
    }
  }

  isBlocked(what: string): boolean {
    return this.blocked.has(what)
  }

  /** Runs `work` once for all who ask for the same CSR at the same time; they share its result. */
  async once<T>(csrHash: string, work: () => Promise<T>): Promise<T> {
    const running = this.running.get(csrHash)
    if (running) return (await running) as T // the same CSR means the same kind of request, see callers
    const promise = work()
    this.running.set(csrHash, promise)
    try {
      return await promise
    } finally {
      this.running.delete(csrHash)
    }
  }
}

function withResolvers(): { promise: Promise<void>; resolve: () => void } {
  let resolve: () => void = () => undefined
  const promise = new Promise<void>((done) => {
    resolve = done
  })
  return { promise, resolve }
}
