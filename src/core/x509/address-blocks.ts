/**
 * IPAddrBlocks, RFC 3779 section 2.2.3, in the one form that certpeer issues and accepts: IPv4 before IPv6, prefixes in
 * ascending order, none that overlap, touch, or carry a SAFI; no `inherit`, no ranges. OpenSSL refuses a block that is
 * not canonical and enforces containment along the chain, so nginx and Node's TLS are a second fence behind path.ts.
 *
 *   IPAddrBlocks        ::= SEQUENCE OF IPAddressFamily
 *   IPAddressFamily     ::= SEQUENCE { addressFamily OCTET STRING (SIZE (2..3)), ipAddressChoice IPAddressChoice }
 *   IPAddressChoice     ::= CHOICE { inherit NULL, addressesOrRanges SEQUENCE OF IPAddressOrRange }
 *   IPAddressOrRange    ::= CHOICE { addressPrefix IPAddress, addressRange IPAddressRange }
 *   IPAddress           ::= BIT STRING
 */
import { CertpeerError } from '../errors.ts'
import { readBitString, readDer, readOctetString, readSequence, type DerReader } from '../der/reader.ts'
import { derBitString, derOctetString, derSequence, TAG } from '../der/writer.ts'
import {
  aggregatePrefixes,
  firstAddress,
  formatPrefix,
  lastAddress,
  prefixContains,
  type Family,
  type Prefix,
} from '../ipam/prefix.ts'

/** Address family numbers of RFC 3779 section 2.2.3.3, without SAFI. */
const AFI: Readonly<Record<Family, Buffer>> = { 4: Buffer.of(0, 1), 6: Buffer.of(0, 2) }
const FAMILIES: readonly Family[] = [4, 6]

/**
 * Canonical DER of the union of the prefixes: what overlaps is absorbed and halves are joined. Throws malformed_request
 * for prefixes that touch but make no single prefix: RFC 3779 2.2.3.6 wants a range there, and ranges are not used.
 */
export function encodeIpAddrBlocks(prefixes: readonly Prefix[]): Buffer {
  const joined = joinPrefixes(prefixes)
  if (joined.length === 0) throw new CertpeerError('malformed_request', 'an address block needs at least one prefix')
  const families = FAMILIES.flatMap((family) => {
    const own = joined.filter((prefix) => prefix.family === family)
    return own.length === 0 ? [] : [derSequence(derOctetString(AFI[family]), derSequence(...own.map(encodePrefix)))]
  })
  return derSequence(...families)
}

/** The prefixes in their order. Throws malformed_der for every form but the canonical one described above. */
export function parseIpAddrBlocks(der: Buffer): Prefix[] {
  const families = readSequence(readDer(der))
  const prefixes: Prefix[] = []
  let previousFamily = 0
  do {
    const reader = readSequence(families.read())
    const afi = readOctetString(reader.read())
    const family = FAMILIES.find((candidate) => AFI[candidate].equals(afi))
    if (family === undefined) throw malformed('has an address family other than IPv4 and IPv6, or a SAFI')
    if (family <= previousFamily) throw malformed('names an address family twice or out of order')
    previousFamily = family
    if (reader.peekTag() === TAG.null) throw malformed('inherits; the addresses must be written out')
    readPrefixes(readSequence(reader.read()), family, prefixes)
    reader.end()
  } while (!families.atEnd)
  return prefixes
}

/** True when every prefix of `inner` lies inside one of `outer`; both canonical. */
export function blocksContain(outer: readonly Prefix[], inner: readonly Prefix[]): boolean {
  return inner.every((prefix) => outer.some((candidate) => prefixContains(candidate, prefix)))
}

function readPrefixes(reader: DerReader, family: Family, into: Prefix[]): void {
  let previous: Prefix | undefined
  do {
    const value = reader.read()
    if (value.tag === TAG.sequence) throw malformed('has a range; only prefixes are used')
    const prefix = decodePrefix(readBitString(value), family)
    // Section 2.2.3.6 and OpenSSL: ascending, and at least one address between neighbours.
    if (previous !== undefined && firstAddress(prefix) <= lastAddress(previous) + 1n) {
      throw malformed('is not canonical: its prefixes overlap, touch, or are not in order')
    }
    into.push(prefix)
    previous = prefix
  } while (!reader.atEnd)
}

function decodePrefix(bits: { unusedBits: number; bytes: Buffer }, family: Family): Prefix {
  const size = family === 4 ? 4 : 16
  const { bytes, unusedBits } = bits
  if (bytes.length > size) throw malformed('has an address that is too long for its family')
  const length = bytes.length * 8 - unusedBits
  const padded = Buffer.alloc(size)
  padded.set(bytes)
  const address =
    family === 4 ? BigInt(padded.readUInt32BE(0)) : (padded.readBigUInt64BE(0) << 64n) | padded.readBigUInt64BE(8)
  return { family, bits: address, length }
}

function encodePrefix(prefix: Prefix): Buffer {
  const { family, bits, length } = prefix
  const octets = Buffer.alloc(family === 4 ? 4 : 16)
  if (family === 4) {
    octets.writeUInt32BE(Number(bits), 0)
  } else {
    octets.writeBigUInt64BE(bits >> 64n, 0)
    octets.writeBigUInt64BE(bits & 0xffff_ffff_ffff_ffffn, 8)
  }
  const byteLength = Math.ceil(length / 8)
  return derBitString(octets.subarray(0, byteLength), byteLength * 8 - length)
}

/** The fewest prefixes that hold the same addresses. What still touches then could only be written as a range. */
function joinPrefixes(prefixes: readonly Prefix[]): Prefix[] {
  const joined = aggregatePrefixes(prefixes)
  for (const [index, prefix] of joined.entries()) {
    const next = joined[index + 1]
    if (next?.family === prefix.family && firstAddress(next) === lastAddress(prefix) + 1n) {
      throw new CertpeerError(
        'malformed_request',
        `${formatPrefix(prefix)} and ${formatPrefix(next)} touch but are not the halves of one prefix, ` +
          'and an address block holds no ranges: use a prefix that covers both, or leave a gap between them',
      )
    }
  }
  return joined
}

function malformed(fault: string): CertpeerError {
  return new CertpeerError('malformed_der', `the IPAddrBlocks extension ${fault}`)
}
