/** Reads the extensions that are certpeer's own. `pki/certpeer.asn1` defines them; extensions.ts writes them. */
import { CertpeerError } from '../errors.ts'
import {
  readDer,
  readIa5String,
  readOctetString,
  readOid,
  readSequence,
  readUtf8String,
  type DerValue,
} from '../der/reader.ts'
import { TAG } from '../der/writer.ts'
import { parseWireGuardKey, wireGuardKeyFromBytes, WIREGUARD_KEY_BYTES, type WireGuardKey } from '../wireguard/key.ts'
import type { Certificate } from './certificate.ts'
import type { CertpeerOids } from './oids.ts'

const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/
const MAX_GROUPS = 32
const MAX_NETWORKS = 256

/** What the value of the WireGuard key extension says. */
export interface WireGuardKeyValue {
  readonly key: WireGuardKey
  /** Object identifier of the method by which possession was proven; absent when it was not. */
  readonly possession?: string
}

/**
 * WireGuardKey ::= SEQUENCE { publicKey OCTET STRING (SIZE (32)), possession OBJECT IDENTIFIER OPTIONAL }
 * Throws malformed_der for another form, bad_wireguard_key for a key that is not canonical.
 */
export function parseWireGuardKeyValue(der: Buffer): WireGuardKeyValue {
  const reader = readSequence(readDer(der))
  const bytes = readOctetString(reader.read())
  const possession = reader.readOptional(TAG.oid)
  reader.end()
  const key = wireGuardKeyFromBytes(bytes)
  return possession === undefined ? { key } : { key, possession: readOid(possession) }
}

/**
 * The WireGuard key that a certificate binds, and whether its possession was proven. Throws bad_client_certificate when
 * there is none or its form or method is unknown, bad_wireguard_key when it is not canonical. (A second one cannot be:
 * parseCertificate refuses duplicates.)
 */
export function readWireGuardKey(
  certificate: Certificate,
  oids: CertpeerOids,
): { readonly key: WireGuardKey; readonly possession: boolean } {
  const extension = certificate.extensions.get(oids.wireGuardKey)
  if (extension === undefined) throw bad('has no WireGuard key')
  const { key, possession } = reading('WireGuard key', () => parseWireGuardKeyValue(extension.value))
  if (possession !== undefined && possession !== oids.possessionV1) {
    throw bad(`says that possession was proven by a method that is not known here (${possession})`)
  }
  return { key, possession: possession !== undefined }
}

/**
 * The WireGuard key of a CSR's extension: the canonical SEQUENCE, or what people make with `openssl req` and `wg pubkey`:
 * the 44 characters of base64, bare or as UTF8String, IA5String or OCTET STRING, or the 32 bytes as OCTET STRING. A
 * possession field is ignored: proof is verified, never claimed. Throws bad_wireguard_key or malformed_der.
 */
export function parseWireGuardKeyFromRequest(value: Buffer): WireGuardKey {
  const text = value.length === 44 ? value.toString('latin1') : ''
  // No DER value looks like this: a SEQUENCE (which begins with 30, the digit 0) would go on with a length of 2a, a star.
  if (/^[A-Za-z0-9+/]{43}=$/.test(text)) return parseWireGuardKey(text)
  const der = readDer(value)
  switch (der.tag) {
    case TAG.sequence:
      return parseWireGuardKeyValue(value).key
    case TAG.utf8String:
      return parseWireGuardKey(readUtf8String(der))
    case TAG.ia5String:
      return parseWireGuardKey(readIa5String(der))
    case TAG.octetString: {
      const content = readOctetString(der)
      return content.length === WIREGUARD_KEY_BYTES
        ? wireGuardKeyFromBytes(content)
        : parseWireGuardKey(content.toString('latin1'))
    }
    default:
      throw new CertpeerError('bad_wireguard_key', 'the WireGuard key is in none of the forms that a CSR may carry')
  }
}

/** AccessGroups ::= SEQUENCE OF UTF8String; no extension means no groups. Throws bad_client_certificate. */
export function readAccessGroups(certificate: Certificate, oids: CertpeerOids): readonly string[] {
  return readTexts(certificate, oids.accessGroups, 'access group', MAX_GROUPS, (group) => NAME.test(group))
}

/** ServedNetworks ::= SEQUENCE OF UTF8String, each `<tenant>/<network>`; no extension means none. Throws bad_client_certificate. */
export function readServedNetworks(certificate: Certificate, oids: CertpeerOids): readonly string[] {
  return readTexts(certificate, oids.servedNetworks, 'served network', MAX_NETWORKS, (network) => {
    const [tenant = '', name = '', ...more] = network.split('/')
    return more.length === 0 && NAME.test(tenant) && NAME.test(name)
  })
}

function readTexts(
  certificate: Certificate,
  oid: string,
  what: string,
  maxCount: number,
  isValid: (text: string) => boolean,
): readonly string[] {
  const extension = certificate.extensions.get(oid)
  if (extension === undefined) return []
  const texts = reading(what, () => {
    const reader = readSequence(readDer(extension.value))
    const values: DerValue[] = []
    while (!reader.atEnd && values.length <= maxCount) values.push(reader.read())
    return values.map((value) => readUtf8String(value))
  })
  if (texts.length > maxCount) throw bad(`has more than ${maxCount} ${what}s`)
  for (const [index, text] of texts.entries()) {
    if (!isValid(text)) throw bad(`has a ${what} that is not a valid name`)
    const previous = texts[index - 1]
    // Ascending and unique: one set has one encoding.
    if (previous !== undefined && previous >= text) throw bad(`has ${what}s that are not in order`)
  }
  return texts
}

/** The extension is inside a certificate: a form that cannot be read is the certificate's fault. */
function reading<T>(what: string, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (error instanceof CertpeerError && error.code === 'malformed_der') {
      throw new CertpeerError('bad_client_certificate', `the certificate's ${what} extension: ${error.message}`, {
        cause: error,
      })
    }
    throw error
  }
}

function bad(fault: string): CertpeerError {
  return new CertpeerError('bad_client_certificate', `the certificate ${fault}`)
}
