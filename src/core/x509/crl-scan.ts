/**
 * The second reader of CRLs. A CRL is read again before it is published, and a reader that shared code with the encoder
 * would share its mistakes; so this one uses nothing of core/der. It walks the bytes once by offsets, allocates nothing
 * per entry unless asked for the serials, and does not look at extensions other than the CRL number.
 */
import { CertpeerError } from '../errors.ts'

export interface CrlScan {
  readonly entryCount: number
  readonly number: bigint
  readonly thisUpdate: Date
  readonly nextUpdate: Date
  /** Where the to-be-signed part lies in the input. */
  readonly tbs: { readonly start: number; readonly end: number }
  /** ECDSA signature, DER. */
  readonly signature: { readonly start: number; readonly end: number }
}

const CRL_NUMBER = Buffer.from('0603551d14', 'hex') // 2.5.29.20

/**
 * Walks a DER CertificateList (RFC 5280 section 5.1) and gives what the issuer of a new CRL compares with what it
 * meant to write. `onSerial` gets the content octets of every serial number, in order. Throws malformed_crl.
 */
export function scanCrl(der: Buffer, onSerial?: (serial: Buffer) => void): CrlScan {
  const at = new Cursor(der)
  const end = at.enter(0x30, der.length)
  if (end !== der.length) throw broken('bytes after the CRL')
  const tbsStart = at.offset
  const tbsEnd = at.enter(0x30, end)
  if (at.take(0x02, tbsEnd).toString('hex') !== '01') throw broken('not version 2')
  at.skip(0x30, tbsEnd) // signature algorithm
  at.skip(0x30, tbsEnd) // issuer
  const thisUpdate = at.time(tbsEnd)
  const nextUpdate = at.time(tbsEnd)
  let entryCount = 0
  if (at.offset < tbsEnd && der[at.offset] === 0x30) {
    const entriesEnd = at.enter(0x30, tbsEnd)
    while (at.offset < entriesEnd) {
      const entryEnd = at.enter(0x30, entriesEnd)
      const serial = at.take(0x02, entryEnd)
      if (serial.length === 0 || serial.length > 20 || (serial[0] ?? 0) > 0x7f) throw broken('a serial number')
      onSerial?.(serial)
      at.time(entryEnd)
      if (at.offset < entryEnd) at.skip(0x30, entryEnd)
      if (at.offset !== entryEnd) throw broken('an entry')
      entryCount++
    }
    if (entryCount === 0) throw broken('an empty list of entries')
  }
  const number = scanNumber(at, tbsEnd)
  at.skip(0x30, end) // signature algorithm
  const signature = at.take(0x03, end)
  if (signature[0] !== 0 || at.offset !== end) throw broken('the signature')
  return {
    entryCount,
    number,
    thisUpdate,
    nextUpdate,
    tbs: { start: tbsStart, end: tbsEnd },
    signature: { start: end - signature.length + 1, end },
  }
}

function scanNumber(at: Cursor, tbsEnd: number): bigint {
  if (at.enter(0xa0, tbsEnd) !== tbsEnd || at.enter(0x30, tbsEnd) !== tbsEnd) throw broken('the extensions')
  let number: bigint | undefined
  while (at.offset < tbsEnd) {
    const end = at.enter(0x30, tbsEnd)
    if (at.startsWith(CRL_NUMBER)) {
      at.skip(0x06, end)
      if (number !== undefined || at.enter(0x04, end) !== end) throw broken('the CRL number')
      const content = at.take(0x02, end)
      if (content.length === 0 || content.length > 20 || (content[0] ?? 0) > 0x7f) throw broken('the CRL number')
      number = BigInt(`0x${content.toString('hex')}`)
    }
    at.offset = end
  }
  if (number === undefined) throw broken('no CRL number')
  return number
}

class Cursor {
  offset = 0
  readonly #der: Buffer

  constructor(der: Buffer) {
    this.#der = der
  }

  /** Steps over tag and length; gives where the content ends. */
  enter(tag: number, limit: number): number {
    const der = this.#der
    if (this.offset + 2 > limit || der[this.offset] !== tag) throw broken(`byte ${this.offset}`)
    let length = der[this.offset + 1] ?? 0
    this.offset += 2
    if (length >= 0x80) {
      const octets = length - 0x80
      if (octets < 1 || octets > 4 || this.offset + octets > limit) throw broken(`byte ${this.offset}`)
      length = der.readUIntBE(this.offset, octets)
      if (length < (octets === 1 ? 0x80 : 2 ** (8 * (octets - 1)))) throw broken(`byte ${this.offset}`)
      this.offset += octets
    }
    const end = this.offset + length
    if (end > limit) throw broken(`byte ${this.offset}`)
    return end
  }

  skip(tag: number, limit: number): void {
    this.offset = this.enter(tag, limit)
  }

  take(tag: number, limit: number): Buffer {
    const end = this.enter(tag, limit)
    const content = this.#der.subarray(this.offset, end)
    this.offset = end
    return content
  }

  startsWith(bytes: Buffer): boolean {
    return this.#der.subarray(this.offset, this.offset + bytes.length).equals(bytes)
  }

  /** UTCTime or GeneralizedTime in the one form of RFC 5280 section 5.1.2.4. */
  time(limit: number): Date {
    const utc = this.#der[this.offset] === 0x17
    const text = this.take(utc ? 0x17 : 0x18, limit).toString('latin1')
    const match = (utc ? /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/ : /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/).exec(
      text,
    )
    if (match === null) throw broken('a time')
    const [year = NaN, month = NaN, day, hour, minute, second] = match.slice(1).map(Number)
    const fullYear = utc ? year + (year < 50 ? 2000 : 1900) : year
    return new Date(Date.UTC(fullYear, month - 1, day, hour, minute, second))
  }
}

function broken(where: string): CertpeerError {
  return new CertpeerError('malformed_crl', `the CRL does not read back: ${where}`)
}
