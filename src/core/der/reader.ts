/**
 * Strict DER decoder (X.690). One byte string has one reading: long or indefinite lengths where short ones do, high
 * tags, constructed strings, needless integer octets, booleans other than 00 and FF, set padding bits and trailing
 * bytes are all malformed_der. Values are windows on the input; bytes are sliced only when asked for.
 */
import { isAscii, isUtf8 } from 'node:buffer'
import { CertpeerError } from '../errors.ts'
import { TAG } from './writer.ts'

/** Nothing that certpeer reads nests deeper than about a dozen levels. */
const MAX_DEPTH = 32
/** An OID longer than this names nothing we could know; arcs beyond 2^53 are decoded exactly. */
const MAX_OID_BYTES = 64

/** One decoded tag and length, and where its bytes lie. The value does not copy: whoever keeps it keeps the input. */
export class DerValue {
  /** The identifier octet. */
  readonly tag: number
  readonly source: Buffer
  readonly start: number
  readonly contentStart: number
  readonly end: number
  readonly depth: number

  constructor(source: Buffer, start: number, contentStart: number, end: number, depth: number) {
    this.tag = octetAt(source, start)
    this.source = source
    this.start = start
    this.contentStart = contentStart
    this.end = end
    this.depth = depth
  }

  /** The whole value: tag, length and content. */
  get bytes(): Buffer {
    return this.source.subarray(this.start, this.end)
  }

  get content(): Buffer {
    return this.source.subarray(this.contentStart, this.end)
  }
}

/** Exactly one value and nothing after it. */
export function readDer(buffer: Buffer): DerValue {
  const value = decode(buffer, 0, buffer.length, 0)
  if (value.end !== buffer.length) throw malformed(`${buffer.length - value.end} bytes after the end of the value`)
  return value
}

/** Reads the values of one content in order. Whoever has read the last one calls end(). */
export class DerReader {
  readonly #source: Buffer
  readonly #end: number
  readonly #depth: number
  #offset: number

  constructor(content: Buffer, start = 0, end = content.length, depth = 0) {
    this.#source = content
    this.#offset = start
    this.#end = end
    this.#depth = depth
  }

  /** The next value; throws when there is none or it has another tag. */
  read(tag?: number): DerValue {
    const value = decode(this.#source, this.#offset, this.#end, this.#depth)
    if (tag !== undefined) requireTag(value, tag)
    this.#offset = value.end
    return value
  }

  /** The next value when it has this tag; otherwise undefined, and nothing is consumed. */
  readOptional(tag: number): DerValue | undefined {
    return this.peekTag() === tag ? this.read() : undefined
  }

  /** Identifier octet of the next value; undefined at the end. */
  peekTag(): number | undefined {
    return this.#offset < this.#end ? octetAt(this.#source, this.#offset) : undefined
  }

  get atEnd(): boolean {
    return this.#offset >= this.#end
  }

  /** Throws when bytes are left. */
  end(): void {
    if (this.#offset < this.#end) throw malformed(`${this.#end - this.#offset} bytes more than the structure has`)
  }
}

/** A reader over the elements of a SEQUENCE, or of an IMPLICIT one under another tag. */
export function readSequence(value: DerValue, tag: number = TAG.sequence): DerReader {
  requireTag(value, tag)
  return inside(value)
}

/** The elements of a SET OF, which DER wants in ascending order of their encodings (X.690 11.6). */
export function readSetOf(value: DerValue, tag: number = TAG.set): DerValue[] {
  requireTag(value, tag)
  const reader = inside(value)
  const elements: DerValue[] = []
  let previous: DerValue | undefined
  while (!reader.atEnd) {
    const element = reader.read()
    if (previous !== undefined && Buffer.compare(previous.bytes, element.bytes) > 0) {
      throw malformed('elements of a SET OF are not in order')
    }
    elements.push(element)
    previous = element
  }
  return elements
}

/** The one value inside an EXPLICIT tag. */
export function readExplicit(value: DerValue, tag: number): DerValue {
  requireTag(value, tag)
  const reader = inside(value)
  const inner = reader.read()
  reader.end()
  return inner
}

/** Dotted form. */
export function readOid(value: DerValue, tag: number = TAG.oid): string {
  requireTag(value, tag)
  const { source, contentStart, end } = value
  if (end === contentStart) throw malformed('an object identifier is empty')
  if (end - contentStart > MAX_OID_BYTES) throw malformed('an object identifier is too long')
  if (octetAt(source, end - 1) >= 0x80) throw malformed('the last arc of an object identifier is cut off')
  let dotted = ''
  let arc = 0
  let arcStart = true
  for (let i = contentStart; i < end; i += 1) {
    const octet = octetAt(source, i)
    if (arcStart && octet === 0x80) throw malformed('an arc of an object identifier has leading zeros')
    if (arc > 0x3fff_ffff_ffff) return bigOid(value.content)
    arc = arc * 0x80 + (octet & 0x7f)
    arcStart = octet < 0x80
    if (!arcStart) continue
    if (dotted === '') {
      const first = Math.min(2, Math.floor(arc / 40))
      dotted = `${first}.${arc - first * 40}`
    } else {
      dotted += `.${arc}`
    }
    arc = 0
  }
  return dotted
}

/** Any INTEGER. For serial numbers see serialFromDer. */
export function readInteger(value: DerValue, tag: number = TAG.integer): bigint {
  const content = integerContent(value, tag)
  const unsigned = BigInt(`0x${content.toString('hex')}`)
  return octetAt(content, 0) < 0x80 ? unsigned : unsigned - (1n << BigInt(content.length * 8))
}

/** A non-negative INTEGER of at most 2^47 - 1: versions, lengths, counts. */
export function readSmallInteger(value: DerValue, tag: number = TAG.integer): number {
  const content = integerContent(value, tag)
  if (octetAt(content, 0) >= 0x80) throw malformed('a negative number has no meaning here')
  if (content.length > 6) throw malformed('a number is too large')
  return content.readUIntBE(0, content.length)
}

/** Content octets of an INTEGER: at least one, none of them needless (X.690 8.3.2). */
export function integerContent(value: DerValue, tag: number = TAG.integer): Buffer {
  requireTag(value, tag)
  const length = value.end - value.contentStart
  if (length === 0) throw malformed('an INTEGER is empty')
  if (length > 1) {
    const first = octetAt(value.source, value.contentStart)
    const second = octetAt(value.source, value.contentStart + 1)
    if ((first === 0x00 && second < 0x80) || (first === 0xff && second >= 0x80)) {
      throw malformed('an INTEGER has needless leading octets')
    }
  }
  return value.content
}

export function readEnumerated(value: DerValue): number {
  return readSmallInteger(value, TAG.enumerated)
}

export function readBoolean(value: DerValue, tag: number = TAG.boolean): boolean {
  requireTag(value, tag)
  const octet = value.end - value.contentStart === 1 ? octetAt(value.source, value.contentStart) : -1
  if (octet !== 0x00 && octet !== 0xff) throw malformed('a BOOLEAN is neither 00 nor FF')
  return octet === 0xff
}

export function readNull(value: DerValue, tag: number = TAG.null): void {
  requireTag(value, tag)
  if (value.end !== value.contentStart) throw malformed('a NULL has content')
}

export function readBitString(value: DerValue, tag: number = TAG.bitString): { unusedBits: number; bytes: Buffer } {
  requireTag(value, tag)
  const { source, contentStart, end } = value
  if (end === contentStart) throw malformed('a BIT STRING is empty')
  const unusedBits = octetAt(source, contentStart)
  if (unusedBits > 7 || (unusedBits > 0 && end - contentStart === 1)) {
    throw malformed('a BIT STRING has an impossible number of unused bits')
  }
  if ((octetAt(source, end - 1) & ((1 << unusedBits) - 1)) !== 0 && end - contentStart > 1) {
    throw malformed('unused bits of a BIT STRING are not zero')
  }
  return { unusedBits, bytes: source.subarray(contentStart + 1, end) }
}

export function readOctetString(value: DerValue, tag: number = TAG.octetString): Buffer {
  requireTag(value, tag)
  return value.content
}

export function readUtf8String(value: DerValue, tag: number = TAG.utf8String): string {
  requireTag(value, tag)
  const { content } = value
  if (!isUtf8(content)) throw malformed('a UTF8String is not UTF-8')
  return content.toString('utf8')
}

export function readIa5String(value: DerValue, tag: number = TAG.ia5String): string {
  requireTag(value, tag)
  const { content } = value
  if (!isAscii(content)) throw malformed('an IA5String has a byte above 7F')
  return content.toString('latin1')
}

export function readPrintableString(value: DerValue, tag: number = TAG.printableString): string {
  requireTag(value, tag)
  const text = value.content.toString('latin1')
  if (!/^[A-Za-z0-9 '()+,\-./:=?]*$/.test(text)) throw malformed('a PrintableString has a character it may not have')
  return text
}

/** UTCTime or GeneralizedTime in the one form of RFC 5280 4.1.2.5: whole seconds, ending in Z. */
export function readTime(value: DerValue): Date {
  return value.tag === TAG.utcTime ? readUtcTime(value) : readGeneralizedTime(value)
}

/** The CHOICE `Time` of certificates and CRLs: as readTime, and UTCTime through 2049 (RFC 5280 4.1.2.5, 5.1.2.4). */
export function readCertificateTime(value: DerValue): Date {
  const at = readTime(value)
  if (value.tag === TAG.generalizedTime && at.getUTCFullYear() < 2050) {
    throw malformed('a date before 2050 must be UTCTime')
  }
  return at
}

export function readUtcTime(value: DerValue, tag: number = TAG.utcTime): Date {
  requireTag(value, tag)
  if (value.end - value.contentStart !== 13) throw malformed('a UTCTime is not YYMMDDHHMMSSZ')
  const year = twoDigits(value, 0)
  return instant(value, year + (year >= 50 ? 1900 : 2000), 2)
}

export function readGeneralizedTime(value: DerValue, tag: number = TAG.generalizedTime): Date {
  requireTag(value, tag)
  if (value.end - value.contentStart !== 15) throw malformed('a GeneralizedTime is not YYYYMMDDHHMMSSZ')
  return instant(value, twoDigits(value, 0) * 100 + twoDigits(value, 2), 4)
}

function inside(value: DerValue): DerReader {
  if (value.depth >= MAX_DEPTH) throw malformed('values are nested too deep')
  return new DerReader(value.source, value.contentStart, value.end, value.depth + 1)
}

function decode(source: Buffer, start: number, limit: number, depth: number): DerValue {
  if (limit - start < 2) throw malformed(start >= limit ? 'a value is missing' : 'a value is cut off')
  const tag = octetAt(source, start)
  if ((tag & 0x1f) === 0x1f) throw malformed('a tag number above 30 is not used here')
  // DER strings are primitive (X.690 10.2), SEQUENCE and SET constructed, and 00 only ends indefinite lengths.
  if (tag < 0x40 && (tag === 0x00 || tag === 0x10 || tag === 0x11 || (tag >= 0x20 && tag !== 0x30 && tag !== 0x31))) {
    throw malformed(`identifier octet ${hex(tag)} is not DER`)
  }
  let length = octetAt(source, start + 1)
  let contentStart = start + 2
  if (length >= 0x80) {
    const lengthOctets = length & 0x7f
    if (lengthOctets === 0) throw malformed('an indefinite length is not DER')
    if (lengthOctets > 4) throw malformed('a length has more than four octets')
    if (limit - contentStart < lengthOctets) throw malformed('a length is cut off')
    length = source.readUIntBE(contentStart, lengthOctets)
    contentStart += lengthOctets
    if (length < 0x80 || length < 2 ** (8 * (lengthOctets - 1))) throw malformed('a length is not in its shortest form')
  }
  if (length > limit - contentStart) throw malformed('a value is cut off')
  return new DerValue(source, start, contentStart, contentStart + length, depth)
}

function requireTag(value: DerValue, tag: number): void {
  if (value.tag !== tag) throw malformed(`expected tag ${hex(tag)}, found ${hex(value.tag)}`)
}

function bigOid(content: Buffer): string {
  const arcs: bigint[] = []
  let arc = 0n
  let arcStart = true
  for (const octet of content) {
    if (arcStart && octet === 0x80) throw malformed('an arc of an object identifier has leading zeros')
    arc = (arc << 7n) | BigInt(octet & 0x7f)
    arcStart = octet < 0x80
    if (!arcStart) continue
    arcs.push(arc)
    arc = 0n
  }
  const [head = 0n, ...rest] = arcs
  const first = head >= 80n ? 2n : head / 40n
  return [first, head - first * 40n, ...rest].join('.')
}

function instant(value: DerValue, year: number, position: number): Date {
  const month = twoDigits(value, position)
  const day = twoDigits(value, position + 2)
  const hour = twoDigits(value, position + 4)
  const minute = twoDigits(value, position + 6)
  const second = twoDigits(value, position + 8)
  if (octetAt(value.source, value.end - 1) !== 0x5a) throw malformed('a time does not end in Z')
  const at = new Date(0)
  // Not Date.UTC, which takes years below 100 for 1900 and later.
  at.setUTCFullYear(year, month - 1, day)
  at.setUTCHours(hour, minute, second)
  // A leap second, 31 February or month 13 would silently roll over into another instant.
  const valid = at.getUTCMonth() === month - 1 && at.getUTCDate() === day && hour < 24 && minute < 60 && second < 60
  if (!valid) throw malformed('a time does not exist')
  return at
}

function twoDigits(value: DerValue, position: number): number {
  const tens = octetAt(value.source, value.contentStart + position) - 0x30
  const ones = octetAt(value.source, value.contentStart + position + 1) - 0x30
  if (tens < 0 || tens > 9 || ones < 0 || ones > 9) throw malformed('a time holds something that is not a digit')
  return tens * 10 + ones
}

function octetAt(source: Buffer, index: number): number {
  const octet = source[index]
  if (octet === undefined) throw malformed('a value is cut off')
  return octet
}

function hex(octet: number): string {
  return octet.toString(16).padStart(2, '0')
}

function malformed(message: string): CertpeerError {
  return new CertpeerError('malformed_der', `malformed DER: ${message}`)
}
