/**
 * IPv4 and IPv6 prefixes as values: address bits as a bigint and a length. One code path serves both families.
 * Text is read as RFC 4291 section 2.2 and RFC 4632 allow and always written as RFC 5952 says, so two equal prefixes
 * have one text.
 */
import { CertpeerError } from '../errors.ts'

export type Family = 4 | 6

/** `bits` is the whole address (32 or 128 bits) with every bit behind `length` clear. */
export interface Prefix {
  readonly family: Family
  readonly bits: bigint
  readonly length: number
}

/** Number of bits in an address of the family. */
export function addressBits(family: Family): 32 | 128 {
  return family === 4 ? 32 : 128
}

/** Makes a prefix; throws malformed_request when a host bit is set or a number is out of range. */
export function makePrefix(family: Family, bits: bigint, length: number): Prefix {
  const width = addressBits(family)
  if (!Number.isInteger(length) || length < 0 || length > width) {
    throw new CertpeerError('malformed_request', `prefix length ${length} is not between 0 and ${width}`)
  }
  if (bits < 0n || bits >> BigInt(width) !== 0n) {
    throw new CertpeerError('malformed_request', `address is not one of ${width} bits`)
  }
  if ((bits & hostMask(family, length)) !== 0n) {
    throw new CertpeerError(
      'malformed_request',
      `${formatAddress(bits, family)}/${length} has bits set behind its length; ` +
        `the prefix is ${formatAddress(bits & ~hostMask(family, length), family)}/${length}`,
    )
  }
  return { family, bits, length }
}

/** The /32 or /128 of one address. */
export function hostPrefix(family: Family, bits: bigint): Prefix {
  return makePrefix(family, bits, addressBits(family))
}

/** Reads `ADDRESS/LENGTH`; throws malformed_request, also when a host bit is set. */
export function parsePrefix(text: string): Prefix {
  const slash = text.indexOf('/')
  if (slash === -1) throw refused(text, 'must be ADDRESS/LENGTH')
  const lengthText = text.slice(slash + 1)
  if (!/^(0|[1-9][0-9]{0,2})$/.test(lengthText)) throw refused(text, 'has no length between 0 and 128')
  const { family, bits } = readAddress(text.slice(0, slash))
  return makePrefix(family, bits, Number(lengthText))
}

/** Reads one address, without a length or a zone, as its /32 or /128; throws malformed_request. */
export function parseAddress(text: string): Prefix {
  const { family, bits } = readAddress(text)
  return { family, bits, length: addressBits(family) }
}

/** Reads an address or a prefix; an address becomes its /32 or /128. */
export function parsePrefixOrAddress(text: string): Prefix {
  return text.includes('/') ? parsePrefix(text) : parseAddress(text)
}

/** RFC 5952 text with the length, also for a single address. */
export function formatPrefix(prefix: Prefix): string {
  return `${formatAddress(prefix.bits, prefix.family)}/${prefix.length}`
}

/** The address in RFC 5952 text (section 4), or dotted decimal. Never the mixed notation of section 5. */
export function formatAddress(bits: bigint, family: Family): string {
  if (family === 4) {
    const value = Number(bits)
    return `${(value >>> 24) & 255}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`
  }
  const groups: number[] = []
  for (let shift = 112n; shift >= 0n; shift -= 16n) groups.push(Number((bits >> shift) & 0xffffn))
  const gap = longestZeroRun(groups)
  const hex = groups.map((group) => group.toString(16))
  if (gap === undefined) return hex.join(':')
  return `${hex.slice(0, gap.start).join(':')}::${hex.slice(gap.start + gap.count).join(':')}`
}

/** True when every address of `inner` is in `outer`. Families never contain each other. */
export function prefixContains(outer: Prefix, inner: Prefix): boolean {
  if (outer.family !== inner.family || outer.length > inner.length) return false
  const shift = BigInt(addressBits(outer.family) - outer.length)
  return outer.bits >> shift === inner.bits >> shift
}

/** True when some address is in both. Of two prefixes that meet, one contains the other. */
export function prefixesOverlap(a: Prefix, b: Prefix): boolean {
  return a.length <= b.length ? prefixContains(a, b) : prefixContains(b, a)
}

export function prefixesEqual(a: Prefix, b: Prefix): boolean {
  return a.family === b.family && a.length === b.length && a.bits === b.bits
}

/** Order for sorting: IPv4 before IPv6, then by address, then the shorter (larger) prefix first. */
export function comparePrefixes(a: Prefix, b: Prefix): number {
  if (a.family !== b.family) return a.family - b.family
  if (a.bits !== b.bits) return a.bits < b.bits ? -1 : 1
  return a.length - b.length
}

/**
 * The fewest prefixes that hold exactly the same addresses, sorted: what lies in another is dropped, and two halves
 * become one.
 */
export function aggregatePrefixes(prefixes: readonly Prefix[]): Prefix[] {
  const result: Prefix[] = []
  for (const prefix of [...prefixes].sort(comparePrefixes)) {
    let current = prefix
    for (let previous = result.at(-1); previous !== undefined; previous = result.at(-1)) {
      // Sorted: only the last one can contain the next.
      if (prefixContains(previous, current)) current = previous
      else if (isLowerHalf(previous, current)) current = { ...previous, length: previous.length - 1 }
      else break
      result.pop()
    }
    result.push(current)
  }
  return result
}

/** True when `lower` and `upper` are the two halves of one prefix, in this order. */
function isLowerHalf(lower: Prefix, upper: Prefix): boolean {
  if (lower.family !== upper.family || lower.length !== upper.length || lower.length === 0) return false
  const half = addressCount(lower)
  return (lower.bits & half) === 0n && upper.bits === (lower.bits | half)
}

/** Bits of the first address. */
export function firstAddress(prefix: Prefix): bigint {
  return prefix.bits
}

/** Bits of the last address. */
export function lastAddress(prefix: Prefix): bigint {
  return prefix.bits | hostMask(prefix.family, prefix.length)
}

/** Number of addresses. */
export function addressCount(prefix: Prefix): bigint {
  return 1n << BigInt(addressBits(prefix.family) - prefix.length)
}

export function isHostPrefix(prefix: Prefix): boolean {
  return prefix.length === addressBits(prefix.family)
}

function hostMask(family: Family, length: number): bigint {
  return (1n << BigInt(addressBits(family) - length)) - 1n
}

function readAddress(text: string): { family: Family; bits: bigint } {
  return text.includes(':') ? { family: 6, bits: readV6(text) } : { family: 4, bits: BigInt(readV4(text, text)) }
}

/** Four decimal octets and nothing else: a leading zero would be octal to some readers and decimal to others. */
function readV4(part: string, whole: string): number {
  const octets = part.split('.')
  if (octets.length !== 4) throw refused(whole, 'is not an address')
  let value = 0
  for (const octet of octets) {
    if (!/^(0|[1-9][0-9]{0,2})$/.test(octet)) throw refused(whole, 'is not an address')
    const number = Number(octet)
    if (number > 255) throw refused(whole, 'is not an address')
    value = value * 256 + number
  }
  return value
}

function readV6(text: string): bigint {
  if (text.length > 45) throw refused(text, 'is not an address')
  const halves = text.split('::')
  if (halves.length > 2) throw refused(text, 'is not an address')
  const head = readGroups(halves[0] ?? '', halves.length === 1, text)
  const tail = halves.length === 2 ? readGroups(halves[1] ?? '', true, text) : []
  const missing = 8 - head.length - tail.length
  // "::" stands for at least one group.
  if (halves.length === 2 ? missing < 1 : missing !== 0) throw refused(text, 'is not an address')
  const groups = [...head, ...Array.from({ length: missing }, () => 0), ...tail]
  return groups.reduce((bits, group) => (bits << 16n) | BigInt(group), 0n)
}

/** Groups between colons; the last part of an address may be dotted decimal (two groups). */
function readGroups(text: string, isLast: boolean, whole: string): number[] {
  if (text === '') return []
  const parts = text.split(':')
  return parts.flatMap((part, index) => {
    if (part.includes('.') && isLast && index === parts.length - 1) {
      const value = readV4(part, whole)
      return [value >>> 16, value & 0xffff]
    }
    if (!/^[0-9a-fA-F]{1,4}$/.test(part)) throw refused(whole, 'is not an address')
    return [Number.parseInt(part, 16)]
  })
}

/** The first of the longest runs of two or more zero groups (RFC 5952 sections 4.2.2 and 4.2.3). */
function longestZeroRun(groups: readonly number[]): { start: number; count: number } | undefined {
  let best: { start: number; count: number } | undefined
  for (let start = 0; start < groups.length; start += 1) {
    let count = 0
    while (groups[start + count] === 0) count += 1
    if (count >= 2 && (best === undefined || count > best.count)) best = { start, count }
    start += count
  }
  return best
}

function refused(text: string, why: string): CertpeerError {
  return new CertpeerError('malformed_request', `${JSON.stringify(text.slice(0, 64))} ${why}`)
}
