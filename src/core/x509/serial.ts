/** Serial numbers (RFC 5280 4.1.2.2): positive, at most 20 octets. Inside certpeer they are lower-case hex. */
import { CertpeerError } from '../errors.ts'
import { integerContent, type DerValue } from '../der/reader.ts'
import { derInteger } from '../der/writer.ts'

declare const serialBrand: unique symbol

/** Lower-case hex, an even number of digits, no leading 00 octet. Equal numbers are equal strings. */
export type Serial = string & { readonly [serialBrand]: true }

const MAX_OCTETS = 20

/** From hex as people and programs write it: upper case and leading zeros are taken; anything else is malformed_request. */
export function parseSerial(text: string): Serial {
  const digits = /^[0-9a-fA-F]{1,64}$/.test(text) ? text.toLowerCase().replace(/^0+/, '') : ''
  const even = digits.length % 2 === 0 ? digits : `0${digits}`
  // The sign octet counts: 80 and above as first octet needs a 00 before it in DER.
  const octets = even.length / 2 + (/^[89a-f]/.test(even) ? 1 : 0)
  if (digits === '' || octets > MAX_OCTETS) {
    throw new CertpeerError('malformed_request', 'a serial number is 1 to 40 hexadecimal digits and not zero')
  }
  return even as Serial
}

/** From a certificate's or CRL entry's INTEGER; zero, negative and longer than 20 octets are malformed_der. */
export function serialFromDer(value: DerValue): Serial {
  const content = integerContent(value)
  const first = content[0] ?? 0
  if (content.length > MAX_OCTETS || first >= 0x80 || (content.length === 1 && first === 0)) {
    throw new CertpeerError('malformed_der', 'malformed DER: a serial number is not positive or longer than 20 octets')
  }
  return content.toString('hex', first === 0 ? 1 : 0) as Serial
}

export function serialToDerInteger(serial: Serial): Buffer {
  return derInteger(Buffer.from(serial, 'hex'))
}

/** A new serial number from 16 to 20 random octets, all of which it keeps but the sign bit. */
export function newSerial(random: Buffer): Serial {
  if (random.length < 16 || random.length > MAX_OCTETS)
    throw new TypeError('a serial number is made of 16 to 20 octets')
  const octets = Buffer.from(random)
  // Positive and never shorter than what was drawn: 127 bits or more (CA/Browser Forum BR 7.1 asks for 64).
  octets[0] = (octets[0] ?? 0) & 0x7f || 0x01
  return octets.toString('hex') as Serial
}
