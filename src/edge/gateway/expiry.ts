/** What ends when: a binary heap by instant. Entries that no longer hold are skipped when they come up. */

export interface Expiry<T> {
  readonly atMs: number
  readonly value: T
}

export class ExpiryHeap<T> {
  readonly #entries: Expiry<T>[] = []

  get size(): number {
    return this.#entries.length
  }

  /** Milliseconds since the epoch of the next end; undefined when nothing will end. */
  get nextAtMs(): number | undefined {
    return this.#entries[0]?.atMs
  }

  add(at: Date, value: T): void {
    const entries = this.#entries
    const entry = { atMs: at.getTime(), value }
    let index = entries.length
    entries.push(entry)
    while (index > 0) {
      const parentIndex = (index - 1) >> 1
      const parent = entries[parentIndex]
      if (parent === undefined || parent.atMs <= entry.atMs) break
      entries[index] = parent
      index = parentIndex
    }
    entries[index] = entry
  }

  /** Takes out the first entry whose instant has come; undefined when there is none. */
  takeDue(now: Date): T | undefined {
    const first = this.#entries[0]
    if (first === undefined || first.atMs > now.getTime()) return undefined
    const last = this.#entries.pop()
    if (last !== undefined && last !== first) this.#sink(last)
    return first.value
  }

  #sink(entry: Expiry<T>): void {
    const entries = this.#entries
    let index = 0
    for (;;) {
      const leftIndex = 2 * index + 1
      const left = entries[leftIndex]
      if (left === undefined) break
      const right = entries[leftIndex + 1]
      const isRight = right !== undefined && right.atMs < left.atMs
      const child = isRight ? right : left
      if (child.atMs >= entry.atMs) break
      entries[index] = child
      index = isRight ? leftIndex + 1 : leftIndex
    }
    entries[index] = entry
  }
}
