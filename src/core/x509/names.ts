/** Names: the distinguished name (RFC 5280 4.1.2.4) as far as certpeer reads it, and GeneralNames (4.2.1.6). */
import { CertpeerError } from '../errors.ts'
import {
  readIa5String,
  readOctetString,
  readOid,
  readPrintableString,
  readSequence,
  readSetOf,
  readUtf8String,
  type DerReader,
  type DerValue,
} from '../der/reader.ts'
import { contextTag, TAG } from '../der/writer.ts'
import { formatAddress } from '../ipam/prefix.ts'
import { OID } from './oids.ts'

/** What a SEQUENCE OF GeneralName holds. Kinds that certpeer has no use for are counted, so that nobody overlooks them. */
export interface GeneralNames {
  readonly uris: readonly string[]
  readonly dnsNames: readonly string[]
  /** RFC 5952 and dotted decimal text. */
  readonly ipAddresses: readonly string[]
  readonly otherCount: number
}

const DNS_NAME = contextTag(2, false)
const URI = contextTag(6, false)
const IP_ADDRESS = contextTag(7, false)
// otherName, rfc822Name, x400Address, directoryName, ediPartyName, registeredID
const OTHER_KINDS: readonly number[] = [0xa0, 0x81, 0xa3, 0xa4, 0xa5, 0x88]

/**
 * Checks the whole Name and returns its first common name; undefined when it has none. Attribute values are UTF8String,
 * PrintableString or IA5String; the legacy types of RFC 5280 4.1.2.4 (TeletexString, BMPString, …) are refused.
 */
export function readCommonName(name: DerValue): string | undefined {
  const rdns = readSequence(name)
  let commonName: string | undefined
  while (!rdns.atEnd) {
    const attributes = readSetOf(rdns.read())
    if (attributes.length === 0) throw new CertpeerError('malformed_der', 'malformed DER: a name has an empty part')
    for (const attribute of attributes) {
      const reader = readSequence(attribute)
      const type = readOid(reader.read())
      const text = readDirectoryString(reader.read())
      reader.end()
      if (type === OID.commonName) commonName ??= text
    }
  }
  return commonName
}

/** The names of one SEQUENCE OF GeneralName; at least one. */
export function readGeneralNames(names: DerReader): GeneralNames {
  const uris: string[] = []
  const dnsNames: string[] = []
  const ipAddresses: string[] = []
  let otherCount = 0
  do {
    const value = names.read()
    if (value.tag === URI) {
      uris.push(readIa5String(value, URI))
    } else if (value.tag === DNS_NAME) {
      dnsNames.push(readIa5String(value, DNS_NAME))
    } else if (value.tag === IP_ADDRESS) {
      ipAddresses.push(readIpAddress(readOctetString(value, IP_ADDRESS)))
    } else if (OTHER_KINDS.includes(value.tag)) {
      otherCount += 1
    } else {
      throw new CertpeerError('malformed_der', 'malformed DER: not a GeneralName')
    }
  } while (!names.atEnd)
  return { uris, dnsNames, ipAddresses, otherCount }
}

function readIpAddress(octets: Buffer): string {
  if (octets.length === 4) return formatAddress(BigInt(octets.readUInt32BE(0)), 4)
  if (octets.length === 16) return formatAddress((octets.readBigUInt64BE(0) << 64n) | octets.readBigUInt64BE(8), 6)
  throw new CertpeerError('malformed_der', 'malformed DER: an IP address has neither 4 nor 16 octets')
}

function readDirectoryString(value: DerValue): string {
  if (value.tag === TAG.printableString) return readPrintableString(value)
  if (value.tag === TAG.ia5String) return readIa5String(value)
  return readUtf8String(value)
}
