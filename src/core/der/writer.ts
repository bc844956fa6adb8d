/** DER encoder (X.690): parts are joined once, lengths are minimal, what DER forbids cannot be written. */

/** Identifier octets of the universal types that certpeer reads and writes. */
export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  enumerated: 0x0a,
  utf8String: 0x0c,
  printableString: 0x13,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const

/** Identifier octet of the context-specific tag [number]; `constructed` for EXPLICIT tags and IMPLICIT SEQUENCE or SET. */
export function contextTag(number: number, constructed: boolean): number {
  if (!Number.isInteger(number) || number < 0 || number > 30) throw new TypeError(`context tag ${number}`)
  return (constructed ? 0xa0 : 0x80) | number
}

/** One value: tag, length, and the parts as its content. */
export function derTlv(tag: number, ...parts: readonly Buffer[]): Buffer {
  let length = 0
  for (const part of parts) length += part.length
  const headerLength = length < 0x80 ? 2 : length < 0x100 ? 3 : length < 0x1_0000 ? 4 : length < 0x100_0000 ? 5 : 6
  const out = Buffer.allocUnsafe(headerLength + length)
  out[0] = tag
  if (headerLength === 2) {
    out[1] = length
  } else {
    out[1] = 0x80 | (headerLength - 2)
    out.writeUIntBE(length, 2, headerLength - 2)
  }
  let offset = headerLength
  for (const part of parts) {
    out.set(part, offset)
    offset += part.length
  }
  return out
}

export function derSequence(...parts: readonly Buffer[]): Buffer {
  return derTlv(TAG.sequence, ...parts)
}

/** SET OF: elements go in ascending order of their encodings (X.690 11.6). */
export function derSet(...parts: readonly Buffer[]): Buffer {
  return derTlv(TAG.set, ...parts.toSorted((a, b) => Buffer.compare(a, b)))
}

/** A Buffer is an unsigned big-endian magnitude: its sign octet is added, needless zeros are dropped. */
export function derInteger(value: bigint | number | Buffer): Buffer {
  return derTlv(TAG.integer, Buffer.isBuffer(value) ? magnitude(value) : twosComplement(value))
}

export function derEnumerated(value: number): Buffer {
  return derTlv(TAG.enumerated, twosComplement(value))
}

export function derBoolean(value: boolean): Buffer {
  return derTlv(TAG.boolean, Buffer.of(value ? 0xff : 0x00))
}

export function derNull(): Buffer {
  return derTlv(TAG.null)
}

export function derOctetString(bytes: Buffer): Buffer {
  return derTlv(TAG.octetString, bytes)
}

/** The last `unusedBits` bits of `bytes` are not part of the string and must be zero (X.690 11.2.1). */
export function derBitString(bytes: Buffer, unusedBits = 0): Buffer {
  const last = bytes.at(-1)
  const fits = last === undefined ? unusedBits === 0 : (last & ((1 << unusedBits) - 1)) === 0
  if (unusedBits < 0 || unusedBits > 7 || !fits) throw new TypeError('unused bits of a BIT STRING must be zero')
  return derTlv(TAG.bitString, Buffer.of(unusedBits), bytes)
}

/** An object identifier from its dotted form; arcs may have any size. */
export function derOid(dotted: string): Buffer {
  if (!/^[0-2](\.(0|[1-9][0-9]*))+$/.test(dotted)) throw new TypeError(`not an object identifier: ${dotted}`)
  const [first = 0n, second = 0n, ...rest] = dotted.split('.').map(BigInt)
  if (first < 2n && second > 39n) throw new TypeError(`not an object identifier: ${dotted}`)
  const octets: number[] = []
  for (const arc of [first * 40n + second, ...rest]) {
    const groups = [Number(arc & 0x7fn)]
    for (let left = arc >> 7n; left > 0n; left >>= 7n) groups.unshift(Number(left & 0x7fn) | 0x80)
    octets.push(...groups)
  }
  return derTlv(TAG.oid, Buffer.from(octets))
}

export function derUtf8String(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  if (bytes.toString('utf8') !== text) throw new TypeError('text with a lone surrogate has no UTF-8 form')
  return derTlv(TAG.utf8String, bytes)
}

export function derIa5String(text: string): Buffer {
  return derTlv(TAG.ia5String, asciiBytes(text))
}

export function derPrintableString(text: string): Buffer {
  if (!/^[A-Za-z0-9 '()+,\-./:=?]*$/.test(text)) throw new TypeError('not a PrintableString')
  return derTlv(TAG.printableString, Buffer.from(text, 'latin1'))
}

/** Time of RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050; whole seconds, fractions are cut off. */
export function derTime(at: Date): Buffer {
  const year = at.getUTCFullYear()
  if (year < 1950 || year > 2049) return derGeneralizedTime(at)
  return derTlv(TAG.utcTime, Buffer.from(compactInstant(at).slice(2), 'latin1'))
}

/** GeneralizedTime as RFC 5280 4.1.2.5.2 and RFC 6960 4.2.2.1 want it: whole seconds in UTC. */
export function derGeneralizedTime(at: Date): Buffer {
  return derTlv(TAG.generalizedTime, Buffer.from(compactInstant(at), 'latin1'))
}

/** [number]: constructed holds whole values (EXPLICIT, IMPLICIT SEQUENCE), primitive replaces a primitive type's tag. */
export function derContext(number: number, content: Buffer, constructed: boolean): Buffer {
  return derTlv(contextTag(number, constructed), content)
}

/** ASCII text as bytes; for IMPLICIT IA5String names. */
export function asciiBytes(text: string): Buffer {
  if (!/^[\x00-\x7f]*$/.test(text)) throw new TypeError('not an IA5String')
  return Buffer.from(text, 'latin1')
}

function magnitude(bytes: Buffer): Buffer {
  let start = 0
  while (start < bytes.length - 1 && bytes[start] === 0) start += 1
  const first = bytes[start]
  if (first === undefined) throw new TypeError('an INTEGER needs at least one octet')
  const trimmed = bytes.subarray(start)
  return first >= 0x80 ? Buffer.concat([Buffer.of(0), trimmed]) : trimmed
}

function twosComplement(value: bigint | number): Buffer {
  if (typeof value === 'number' && value >= 0 && value < 0x80 && Number.isInteger(value)) return Buffer.of(value)
  let left = BigInt(value)
  const octets: number[] = []
  do {
    octets.unshift(Number(left & 0xffn))
    left >>= 8n
  } while (!((left === 0n && (octets[0] ?? 0) < 0x80) || (left === -1n && (octets[0] ?? 0) >= 0x80)))
  return Buffer.from(octets)
}

function compactInstant(at: Date): string {
  const text = at.toISOString()
  // Years outside 0000-9999 print as +YYYYYY, and GeneralizedTime has four digits.
  if (text.length !== 24) throw new TypeError(`${text} has no GeneralizedTime`)
  return `${text.slice(0, 4)}${text.slice(5, 7)}${text.slice(8, 10)}${text.slice(11, 13)}${text.slice(14, 16)}${text.slice(17, 19)}Z`
}
