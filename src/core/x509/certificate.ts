/**
 * Certificates, RFC 5280 section 4.1: untrusted bytes in, a typed value out. Parsing proves the form alone; whom to
 * believe is decided in path.ts. Strict DER, version 3, no duplicate extension, bounded size.
 *
 *   Certificate     ::= SEQUENCE { tbsCertificate, signatureAlgorithm AlgorithmIdentifier, signature BIT STRING }
 *   TBSCertificate  ::= SEQUENCE { version [0] EXPLICIT v3, serialNumber, signature, issuer, validity, subject,
 *                                  subjectPublicKeyInfo, extensions [3] EXPLICIT Extensions }
 */
import { createPublicKey, hash, verify, type KeyObject } from 'node:crypto'
import { CertpeerError } from '../errors.ts'
import {
  readBitString,
  readBoolean,
  readCertificateTime,
  readDer,
  readExplicit,
  readIa5String,
  readOctetString,
  readOid,
  readSequence,
  readSmallInteger,
  type DerReader,
  type DerValue,
} from '../der/reader.ts'
import { contextTag, TAG } from '../der/writer.ts'
import type { Prefix } from '../ipam/prefix.ts'
import { parseIpAddrBlocks } from './address-blocks.ts'
import { readCommonName, readGeneralNames, type GeneralNames } from './names.ts'
import { OID } from './oids.ts'
import { serialFromDer, type Serial } from './serial.ts'

/** Ours have 800 bytes; a foreign one that is larger is not read. */
export const MAX_CERTIFICATE_BYTES = 16_384

/** Ours have two, an issuing CA nine. Bounded, because each is compared with those before it. */
const MAX_EXTENDED_KEY_USAGES = 32

/** In the order of their bits, RFC 5280 4.2.1.3. */
export const KEY_USAGES = [
  'digitalSignature',
  'nonRepudiation',
  'keyEncipherment',
  'dataEncipherment',
  'keyAgreement',
  'keyCertSign',
  'cRLSign',
  'encipherOnly',
  'decipherOnly',
] as const
export type KeyUsage = (typeof KEY_USAGES)[number]

export interface Extension {
  readonly critical: boolean
  /** Content of extnValue. */
  readonly value: Buffer
}

export interface Certificate {
  readonly der: Buffer
  readonly tbs: Buffer
  readonly serial: Serial
  readonly issuerDer: Buffer
  readonly subjectDer: Buffer
  readonly commonName?: string | undefined
  readonly notBefore: Date
  readonly notAfter: Date
  /** SubjectPublicKeyInfo. Parsed in form only; publicKeyOf decides whether it is a key. */
  readonly spki: Buffer
  /** Object identifier; the same inside and outside the signed part. */
  readonly signatureAlgorithm: string
  readonly signature: Buffer
  readonly extensions: ReadonlyMap<string, Extension>
  /** Critical extensions that this parser does not process; path validation refuses any. */
  readonly unknownCriticalExtensions: readonly string[]
  readonly isCa: boolean
  readonly pathLength?: number | undefined
  /** Absent when there is no such extension. */
  readonly keyUsage?: ReadonlySet<KeyUsage> | undefined
  /** Absent when there is no such extension. */
  readonly extendedKeyUsage?: readonly string[] | undefined
  readonly sanUris: readonly string[]
  readonly sanDnsNames: readonly string[]
  readonly sanIpAddresses: readonly string[]
  /** Number of alternative names of other kinds (mail, directory name, …). */
  readonly sanOtherCount: number
  /** Lower-case hex. */
  readonly subjectKeyId?: string | undefined
  /** Lower-case hex. */
  readonly authorityKeyId?: string | undefined
  /** RFC 3779 block, canonical; absent when there is no such extension. */
  readonly addressBlocks?: readonly Prefix[] | undefined
  /** Hosts of permitted URI name constraints; absent when there is no such extension. */
  readonly permittedUriHosts?: readonly string[] | undefined
  readonly crlUrls: readonly string[]
  readonly ocspUrls: readonly string[]
  readonly caIssuersUrls: readonly string[]
  /** SHA-256 of the SubjectPublicKeyInfo, hex. With the serial number it names a certificate: (keyId of issuer, serial). */
  readonly keyId: string
  /** SHA-256 of the DER, hex. For caches and logs; never an identity, because ECDSA signatures can be re-encoded. */
  readonly fingerprint: string
}

const EXTENSIONS_TAG = contextTag(3, true)
const VERSION_TAG = contextTag(0, true)
const URI_NAME = contextTag(6, false)
const NO_NAMES: GeneralNames = { uris: [], dnsNames: [], ipAddresses: [], otherCount: 0 }
/** Critical extensions whose meaning this parser hands on; everything else critical is recorded as unknown. */
const PROCESSED: ReadonlySet<string> = new Set([
  OID.basicConstraints,
  OID.keyUsage,
  OID.extendedKeyUsage,
  OID.subjectAltName,
  OID.nameConstraints,
  OID.subjectKeyIdentifier,
  OID.authorityKeyIdentifier,
  OID.ipAddrBlocks,
])

/** One whole certificate in DER. Throws malformed_certificate. Signature, validity and trust are not looked at. */
export function parseCertificate(der: Buffer): Certificate {
  try {
    return readCertificate(der)
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    throw new CertpeerError('malformed_certificate', `the certificate cannot be read: ${error.message}`, {
      cause: error,
    })
  }
}

const publicKeys = new WeakMap<Certificate, KeyObject>()

/** The subject's public key, imported once per parsed certificate. Throws malformed_certificate when it is none. */
export function publicKeyOf(certificate: Certificate): KeyObject {
  let key = publicKeys.get(certificate)
  if (key === undefined) {
    key = publicKeyFromSpki(certificate.spki)
    publicKeys.set(certificate, key)
  }
  return key
}

/** SEQUENCE { SEQUENCE { ecPublicKey, prime256v1 }, BIT STRING } up to and including the 04 of an uncompressed point. */
const P256_PREFIX = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex')
const P256_SPKI_BYTES = 91

/** Imports a SubjectPublicKeyInfo. Throws malformed_certificate when it is not a key or a point not on its curve. */
export function publicKeyFromSpki(spki: Buffer): KeyObject {
  try {
    if (isP256Spki(spki)) {
      // As JWK the same checks cost half of what OpenSSL's SPKI decoder takes (measured: 48 instead of 89 µs).
      const x = spki.toString('base64url', 27, 59)
      const y = spki.toString('base64url', 59, 91)
      return createPublicKey({ key: { kty: 'EC', crv: 'P-256', x, y }, format: 'jwk' })
    }
    return createPublicKey({ key: spki, format: 'der', type: 'spki' })
  } catch (cause) {
    throw new CertpeerError('malformed_certificate', 'the subject public key is not a usable key', { cause })
  }
}

/** True for the one encoding of a P-256 key that certpeer issues certificates for; the point itself is not checked. */
export function isP256Spki(spki: Buffer): boolean {
  return (
    spki.length === P256_SPKI_BYTES && spki.compare(P256_PREFIX, 0, P256_PREFIX.length, 0, P256_PREFIX.length) === 0
  )
}

const SIGNATURE_HASHES: ReadonlyMap<string, 'sha256' | 'sha384'> = new Map([
  [OID.ecdsaWithSha256, 'sha256'],
  [OID.ecdsaWithSha384, 'sha384'],
])
const CURVES: readonly (string | undefined)[] = ['prime256v1', 'secp384r1']

/** True when the signature holds. ECDSA with SHA-256 or SHA-384 on P-256 or P-384; anything else is false. */
export function verifySignature(
  tbs: Buffer,
  signatureAlgorithm: string,
  signature: Buffer,
  issuerKey: KeyObject,
): boolean {
  const hashName = SIGNATURE_HASHES.get(signatureAlgorithm)
  if (hashName === undefined) return false
  if (!CURVES.includes(issuerKey.asymmetricKeyDetails?.namedCurve)) return false
  try {
    return verify(hashName, tbs, issuerKey, signature)
  } catch {
    return false
  }
}

/** Extensions ::= SEQUENCE SIZE (1..MAX) OF Extension; a duplicate is refused (RFC 5280 4.2). Throws malformed_der. */
export function readExtensions(value: DerValue): Map<string, Extension> {
  const list = readSequence(value)
  const extensions = new Map<string, Extension>()
  do {
    const reader = readSequence(list.read())
    const oid = readOid(reader.read())
    const flag = reader.readOptional(TAG.boolean)
    const critical = flag !== undefined
    // DEFAULT FALSE is never written (X.690 11.5).
    if (flag !== undefined && !readBoolean(flag)) throw malformed('an extension says FALSE where DER says nothing')
    const extensionValue = readOctetString(reader.read())
    reader.end()
    if (extensions.has(oid)) throw malformed(`extension ${oid} occurs twice`)
    extensions.set(oid, { critical, value: extensionValue })
  } while (!list.atEnd)
  return extensions
}

/** Checks the form of a SubjectPublicKeyInfo and returns the bits of the key itself. Throws malformed_der. */
export function readSubjectPublicKey(value: DerValue): Buffer {
  const reader = readSequence(value)
  readAlgorithm(reader.read())
  const { unusedBits, bytes } = readBitString(reader.read())
  reader.end()
  if (unusedBits !== 0 || bytes.length === 0) throw malformed('the subject public key is not whole octets')
  return bytes
}

/** AlgorithmIdentifier: the OID; ECDSA must have no parameters (RFC 5758 3.2). Throws malformed_der. */
export function readAlgorithm(value: DerValue): string {
  const reader = readSequence(value)
  const oid = readOid(reader.read())
  if (!reader.atEnd) {
    if (SIGNATURE_HASHES.has(oid)) throw malformed('an ECDSA signature algorithm has parameters')
    reader.read()
  }
  reader.end()
  return oid
}

function readCertificate(input: Buffer): Certificate {
  if (input.length > MAX_CERTIFICATE_BYTES) throw malformed(`more than ${MAX_CERTIFICATE_BYTES} bytes`)
  // A copy: what was checked cannot change afterwards, and a cached certificate does not keep a network buffer alive.
  const der = Buffer.from(input)
  const outer = readSequence(readDer(der))
  const tbsValue = outer.read(TAG.sequence)
  const outerAlgorithm = outer.read(TAG.sequence)
  const signature = readBitString(outer.read())
  outer.end()
  if (signature.unusedBits !== 0) throw malformed('the signature is not whole octets')

  const tbs = readSequence(tbsValue)
  if (tbs.peekTag() !== VERSION_TAG) throw malformed('not version 3')
  if (readSmallInteger(readExplicit(tbs.read(), VERSION_TAG)) !== 2) throw malformed('not version 3')
  const serial = serialFromDer(tbs.read())
  const innerAlgorithm = tbs.read(TAG.sequence)
  // RFC 5280 4.1.1.2: the algorithm outside must be the signed one.
  if (!innerAlgorithm.bytes.equals(outerAlgorithm.bytes)) throw malformed('the two signature algorithms differ')
  const issuer = tbs.read()
  readCommonName(issuer)
  const validity = readSequence(tbs.read())
  const notBefore = readCertificateTime(validity.read())
  const notAfter = readCertificateTime(validity.read())
  validity.end()
  const subject = tbs.read()
  const spkiValue = tbs.read()
  readSubjectPublicKey(spkiValue)
  if (tbs.peekTag() !== EXTENSIONS_TAG) throw malformed('no extensions, or unique identifiers')
  const extensions = readExtensions(readExplicit(tbs.read(), EXTENSIONS_TAG))
  tbs.end()

  const spki = spkiValue.bytes
  const names = readExtension(extensions, OID.subjectAltName, (reader) => readGeneralNames(reader)) ?? NO_NAMES
  const constraints = readExtension(extensions, OID.basicConstraints, readBasicConstraints)
  const access = readExtension(extensions, OID.authorityInfoAccess, readAuthorityInfoAccess)
  const blocks = extensions.get(OID.ipAddrBlocks)
  let keyId: string | undefined
  let fingerprint: string | undefined
  return {
    der,
    tbs: tbsValue.bytes,
    serial,
    issuerDer: issuer.bytes,
    subjectDer: subject.bytes,
    commonName: readCommonName(subject),
    notBefore,
    notAfter,
    spki,
    signatureAlgorithm: readAlgorithm(innerAlgorithm),
    signature: signature.bytes,
    extensions,
    unknownCriticalExtensions: unknownCritical(extensions),
    isCa: constraints?.isCa ?? false,
    pathLength: constraints?.pathLength,
    keyUsage: readKeyUsage(extensions.get(OID.keyUsage)),
    extendedKeyUsage: readExtension(extensions, OID.extendedKeyUsage, readExtendedKeyUsage),
    sanUris: names.uris,
    sanDnsNames: names.dnsNames,
    sanIpAddresses: names.ipAddresses,
    sanOtherCount: names.otherCount,
    subjectKeyId: readSubjectKeyId(extensions.get(OID.subjectKeyIdentifier)),
    authorityKeyId: readExtension(extensions, OID.authorityKeyIdentifier, readAuthorityKeyId),
    addressBlocks: blocks === undefined ? undefined : parseIpAddrBlocks(blocks.value),
    permittedUriHosts: readExtension(extensions, OID.nameConstraints, readPermittedUriHosts),
    crlUrls: readExtension(extensions, OID.crlDistributionPoints, readCrlUrls) ?? [],
    ocspUrls: access?.ocspUrls ?? [],
    caIssuersUrls: access?.caIssuersUrls ?? [],
    // Hashes cost as much as all the rest: only whoever needs one pays for it.
    get keyId() {
      return (keyId ??= hash('sha256', spki, 'hex'))
    },
    get fingerprint() {
      return (fingerprint ??= hash('sha256', der, 'hex'))
    },
  }
}

/** Reads an extension whose value is a SEQUENCE; undefined when it is absent. */
function readExtension<T>(
  extensions: ReadonlyMap<string, Extension>,
  oid: string,
  read: (reader: DerReader) => T,
): T | undefined {
  const extension = extensions.get(oid)
  if (extension === undefined) return undefined
  const reader = readSequence(readDer(extension.value))
  const result = read(reader)
  reader.end()
  return result
}

function unknownCritical(extensions: ReadonlyMap<string, Extension>): string[] {
  const unknown: string[] = []
  for (const [oid, { critical }] of extensions) if (critical && !PROCESSED.has(oid)) unknown.push(oid)
  return unknown
}

/** BasicConstraints ::= SEQUENCE { cA BOOLEAN DEFAULT FALSE, pathLenConstraint INTEGER (0..MAX) OPTIONAL } */
function readBasicConstraints(reader: DerReader): { isCa: boolean; pathLength?: number } {
  const flag = reader.readOptional(TAG.boolean)
  if (flag !== undefined && !readBoolean(flag)) throw malformed('basicConstraints says FALSE where DER says nothing')
  const length = reader.readOptional(TAG.integer)
  const isCa = flag !== undefined
  if (length === undefined) return { isCa }
  if (!isCa) throw malformed('a path length without cA (RFC 5280 4.2.1.9)')
  return { isCa, pathLength: readSmallInteger(length) }
}

/** KeyUsage ::= BIT STRING with named bits: trailing zero bits are not written (X.690 11.2.2). */
function readKeyUsage(extension: Extension | undefined): ReadonlySet<KeyUsage> | undefined {
  if (extension === undefined) return undefined
  const { unusedBits, bytes } = readBitString(readDer(extension.value))
  const bitCount = bytes.length * 8 - unusedBits
  const isSet = (bit: number) => (((bytes[bit >> 3] ?? 0) << (bit & 7)) & 0x80) !== 0
  // At least one bit must be set (RFC 5280 4.2.1.3).
  if (bitCount === 0 || bitCount > KEY_USAGES.length || !isSet(bitCount - 1))
    throw malformed('keyUsage is not canonical')
  return new Set(KEY_USAGES.filter((_, bit) => isSet(bit)))
}

/** ExtKeyUsageSyntax ::= SEQUENCE SIZE (1..MAX) OF KeyPurposeId */
function readExtendedKeyUsage(reader: DerReader): string[] {
  const purposes: string[] = []
  do {
    const purpose = readOid(reader.read())
    if (purposes.includes(purpose)) throw malformed('an extended key usage occurs twice')
    purposes.push(purpose)
    if (purposes.length > MAX_EXTENDED_KEY_USAGES) throw malformed('too many extended key usages')
  } while (!reader.atEnd)
  return purposes
}

function readSubjectKeyId(extension: Extension | undefined): string | undefined {
  return extension === undefined ? undefined : readKeyIdentifier(readOctetString(readDer(extension.value)))
}

/** AuthorityKeyIdentifier ::= SEQUENCE { keyIdentifier [0], authorityCertIssuer [1], authorityCertSerialNumber [2] } */
function readAuthorityKeyId(reader: DerReader): string | undefined {
  const keyIdentifier = reader.readOptional(contextTag(0, false))
  reader.readOptional(contextTag(1, true))
  reader.readOptional(contextTag(2, false))
  return keyIdentifier === undefined ? undefined : readKeyIdentifier(keyIdentifier.content)
}

function readKeyIdentifier(octets: Buffer): string {
  if (octets.length === 0 || octets.length > 64) throw malformed('a key identifier is empty or longer than 64 octets')
  return octets.toString('hex')
}

/**
 * NameConstraints ::= SEQUENCE { permittedSubtrees [0] GeneralSubtrees, excludedSubtrees [1] GeneralSubtrees }
 * GeneralSubtree ::= SEQUENCE { base GeneralName, minimum [0] DEFAULT 0, maximum [1] OPTIONAL }
 * Only permitted URIs are used here. Whatever else stands there would be a limit that nobody enforces: refused.
 */
function readPermittedUriHosts(reader: DerReader): string[] {
  const subtrees = readSequence(reader.read(), contextTag(0, true))
  const hosts: string[] = []
  do {
    const subtree = readSequence(subtrees.read())
    const base = subtree.read()
    if (base.tag !== URI_NAME || !subtree.atEnd) throw malformed('name constraints other than permitted URI hosts')
    hosts.push(readIa5String(base, URI_NAME))
  } while (!subtrees.atEnd)
  return hosts
}

/** CRLDistributionPoints ::= SEQUENCE OF SEQUENCE { distributionPoint [0], reasons [1], cRLIssuer [2] }; full names only. */
function readCrlUrls(reader: DerReader): string[] {
  const urls: string[] = []
  do {
    const point = readSequence(reader.read())
    const name = point.readOptional(contextTag(0, true))
    // Partial reasons and indirect CRLs belong to relying parties that use them; their URL would mislead ours.
    const isPlain = point.atEnd
    if (name === undefined || !isPlain) continue
    const choice = readExplicit(name, contextTag(0, true))
    if (choice.tag === contextTag(0, true)) urls.push(...readGeneralNames(readSequence(choice, choice.tag)).uris)
  } while (!reader.atEnd)
  return urls
}

/** AuthorityInfoAccessSyntax ::= SEQUENCE OF SEQUENCE { accessMethod OBJECT IDENTIFIER, accessLocation GeneralName } */
function readAuthorityInfoAccess(reader: DerReader): { ocspUrls: string[]; caIssuersUrls: string[] } {
  const ocspUrls: string[] = []
  const caIssuersUrls: string[] = []
  do {
    const description = readSequence(reader.read())
    const method = readOid(description.read())
    const location = description.read()
    description.end()
    if (location.tag !== URI_NAME) continue
    const url = readIa5String(location, URI_NAME)
    if (method === OID.accessOcsp) ocspUrls.push(url)
    if (method === OID.accessCaIssuers) caIssuersUrls.push(url)
  } while (!reader.atEnd)
  return { ocspUrls, caIssuersUrls }
}

function malformed(message: string): CertpeerError {
  return new CertpeerError('malformed_der', message)
}
