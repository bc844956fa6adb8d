/**
 * The addresses of one pool, in memory: which are given, which come next. New addresses are taken in order; only when
 * all have been given once do freed ones return, the longest free first, so that an address rests as long as possible.
 * Everything is O(1) amortised, whatever the size of the pool: an IPv6 /64 costs what is in use.
 */
import { CertpeerError } from '../errors.ts'
import {
  addressCount,
  firstAddress,
  formatAddress,
  formatPrefix,
  hostPrefix,
  isHostPrefix,
  lastAddress,
  prefixContains,
} from './prefix.ts'
import type { Family, Prefix } from './prefix.ts'

interface Range {
  readonly first: bigint
  readonly last: bigint
}

export class AddressPool {
  readonly prefix: Prefix
  /** Number of addresses that may ever be given. */
  readonly capacity: bigint
  /** Ascending, apart from each other. */
  readonly #withheld: readonly Range[]
  readonly #taken = new Set<bigint>()
  readonly #freed = new Set<bigint>()
  /** Freed addresses, oldest first from `#queueHead`. May hold stale ones: `#freed` decides. */
  #queue: bigint[] = []
  #queueHead = 0
  /** Below this every address that may be given is taken or freed. */
  #next: bigint
  /** Index of the first withheld range that does not lie wholly below `#next`. */
  #nextRange = 0

  /** `reserved` prefixes outside of this pool are ignored: a network reserves for both families in one list. */
  constructor(options: { prefix: Prefix; reserved: readonly Prefix[] }) {
    this.prefix = options.prefix
    this.#withheld = withheldRanges(options.prefix, options.reserved)
    this.#next = firstAddress(options.prefix)
    const withheld = this.#withheld.reduce((sum, range) => sum + (range.last - range.first + 1n), 0n)
    this.capacity = addressCount(options.prefix) - withheld
  }

  get taken(): number {
    return this.#taken.size
  }

  get free(): bigint {
    return this.capacity - BigInt(this.#taken.size)
  }

  /** Takes the next address, as /32 or /128. Throws pool_exhausted. */
  allocate(): Prefix {
    const bits = this.#takeNext() ?? this.#takeFreed()
    if (bits === undefined) {
      throw new CertpeerError(
        'pool_exhausted',
        `pool ${formatPrefix(this.prefix)} has no free address: all ${this.capacity} are held; ` +
          'revoke what is not needed, wait for the quarantine to end, or apply a larger pool',
      )
    }
    this.#taken.add(bits)
    return hostPrefix(this.prefix.family, bits)
  }

  /** Takes this very address. Throws address_conflict when it is taken, reserved or not in the pool. */
  claim(address: Prefix): void {
    if (!this.isFree(address)) {
      throw new CertpeerError(
        'address_conflict',
        `address ${formatAddress(address.bits, address.family)} is not free in pool ${formatPrefix(this.prefix)}`,
      )
    }
    this.#freed.delete(address.bits)
    this.#taken.add(address.bits)
  }

  /**
   * Marks an address as taken whatever the rules say now: it was given under an earlier document. Returns false, and
   * does nothing, when it is not in the pool or taken already.
   */
  hold(address: Prefix): boolean {
    if (!isHostPrefix(address) || !prefixContains(this.prefix, address) || this.#taken.has(address.bits)) return false
    this.#freed.delete(address.bits)
    this.#taken.add(address.bits)
    return true
  }

  /** Gives an address back. Returns false when it was not taken. */
  release(address: Prefix): boolean {
    if (address.family !== this.prefix.family || !isHostPrefix(address) || !this.#taken.delete(address.bits)) {
      return false
    }
    // What the counter has not reached yet it will find by itself; what may not be given (see `hold`) just ends.
    if (address.bits < this.#next && !this.#isWithheld(address.bits)) {
      this.#freed.add(address.bits)
      this.#queue.push(address.bits)
      this.#compactQueue()
    }
    return true
  }

  /** True when the address is in the pool, may be given, and is not taken. */
  isFree(address: Prefix): boolean {
    return (
      isHostPrefix(address) &&
      prefixContains(this.prefix, address) &&
      !this.#taken.has(address.bits) &&
      !this.#isWithheld(address.bits)
    )
  }

  #takeNext(): bigint | undefined {
    const last = lastAddress(this.prefix)
    while (this.#next <= last) {
      const range = this.#withheld[this.#nextRange]
      if (range !== undefined && this.#next >= range.first) {
        this.#next = range.last + 1n
        this.#nextRange += 1
        continue
      }
      const bits = this.#next
      this.#next += 1n
      if (!this.#taken.has(bits)) return bits
    }
    return undefined
  }

  #takeFreed(): bigint | undefined {
    while (this.#queueHead < this.#queue.length) {
      const bits = this.#queue[this.#queueHead]
      this.#queueHead += 1
      if (bits !== undefined && this.#freed.delete(bits)) {
        this.#compactQueue()
        return bits
      }
    }
    return undefined
  }

  /** Drops what was popped or has become stale once it is more than half, so that the queue is never larger than its use. */
  #compactQueue(): void {
    if (this.#queue.length <= 1024 || this.#queue.length <= 2 * this.#freed.size) return
    const seen = new Set<bigint>()
    this.#queue = this.#queue.slice(this.#queueHead).filter((bits) => {
      if (!this.#freed.has(bits) || seen.has(bits)) return false
      seen.add(bits)
      return true
    })
    this.#queueHead = 0
  }

  #isWithheld(bits: bigint): boolean {
    let low = 0
    let high = this.#withheld.length
    while (low < high) {
      const middle = (low + high) >> 1
      const range = this.#withheld[middle]
      if (range === undefined || bits < range.first) high = middle
      else if (bits > range.last) low = middle + 1
      else return true
    }
    return false
  }
}

/**
 * Reserved prefixes, and the addresses with a meaning of their own: the network and broadcast address of IPv4, the
 * Subnet-Router anycast address of IPv6 (RFC 4291 section 2.6.1). Merged and in order.
 */
function withheldRanges(pool: Prefix, reserved: readonly Prefix[]): Range[] {
  const ranges: Range[] = reserved
    .filter((prefix) => prefixContains(pool, prefix))
    .map((prefix) => ({ first: firstAddress(prefix), last: lastAddress(prefix) }))
  if (reserved.some((prefix) => prefixContains(prefix, pool))) {
    return [{ first: firstAddress(pool), last: lastAddress(pool) }]
  }
  for (const bits of addressesWithMeaning(pool)) ranges.push({ first: bits, last: bits })
  ranges.sort((a, b) => Number(a.first > b.first) - Number(a.first < b.first))
  const merged: Range[] = []
  for (const range of ranges) {
    const previous = merged.at(-1)
    if (previous !== undefined && range.first <= previous.last + 1n) {
      merged[merged.length - 1] = {
        first: previous.first,
        last: range.last > previous.last ? range.last : previous.last,
      }
    } else {
      merged.push(range)
    }
  }
  return merged
}

function addressesWithMeaning(pool: Prefix): bigint[] {
  const family: Family = pool.family
  return family === 4 ? [firstAddress(pool), lastAddress(pool)] : [firstAddress(pool)]
}
