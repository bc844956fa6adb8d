/**
 * The network document: the law of one network as a JWS by the authority's certificate. Gateways and devices believe it
 * because of that signature, whoever hands it to them, and refuse a lower number than they have seen.
 */
import { CertpeerError } from '../errors.ts'
import { prefixContains, formatPrefix } from '../ipam/prefix.ts'
import type { Prefix } from '../ipam/prefix.ts'
import { readNetworkSettings } from '../policy/network.ts'
import { parseCertificate, publicKeyOf } from '../x509/certificate.ts'
import type { Certificate } from '../x509/certificate.ts'
import type { CertpeerOids } from '../x509/oids.ts'
import { verifyCertificate } from '../x509/path.ts'
import type { VerifiedCertificate } from '../x509/path.ts'
import type { Serial } from '../x509/serial.ts'
import { encodeJws, parseJws, verifyJws } from './jws.ts'
import { networkDocumentSchema } from './network.ts'
import type { NetworkDocument } from './network.ts'

export const NETWORK_DOCUMENT_TYPE = 'certpeer-network+jws'
/** How far the authority's clock may run before the reader's. */
const MAX_CLOCK_SKEW_MS = 5 * 60 * 1000

export interface VerifiedNetworkDocument {
  readonly document: NetworkDocument
  readonly jws: string
  readonly signer: VerifiedCertificate
  readonly pools: readonly Prefix[]
  readonly reserved: readonly Prefix[]
  readonly keyPrefix: Prefix
  readonly routes: readonly Prefix[]
}

/**
 * Signs a document, in canonical form. `sign` is the authority's P-256 key, answering DER as in X.509. Throws
 * network_document_invalid; whether the CAs could certify what it names is for `checkNetworkSettings`, before.
 */
export function encodeNetworkDocument(options: {
  document: NetworkDocument
  certificates: readonly [leaf: Buffer, issuer: Buffer]
  sign: (data: Buffer) => Buffer | Promise<Buffer>
}): Promise<string> {
  const { settings } = readNetworkSettings(options.document)
  const document = networkDocumentSchema.parse({ ...options.document, ...settings })
  return encodeJws({
    payload: Buffer.from(JSON.stringify(document), 'utf8'),
    typ: NETWORK_DOCUMENT_TYPE,
    certificates: options.certificates,
    sign: options.sign,
  })
}

/**
 * Verifies a network document under the pinned root. The signer must be an authority whose certificate was valid when
 * the document was issued: a document outlives the certificate of 7 days that signed it, and ends only by revocation of
 * that certificate or by a higher number. Throws network_document_invalid, malformed_message, malformed_certificate, or
 * what verifyCertificate throws. Compare the number with the one held by `requireNotOlder`.
 */
export function verifyNetworkDocument(options: {
  jws: string
  root: Certificate
  now: Date
  oids: CertpeerOids
  trustDomain: string
  isRevoked?: (serial: Serial, issuerKeyId: string) => boolean
}): VerifiedNetworkDocument {
  const { jws, root, now, oids, trustDomain } = options
  const parsed = parseJws(jws, NETWORK_DOCUMENT_TYPE)
  const document = readDocument(parsed.payload)
  const issuedAt = new Date(document.issuedAt)
  if (issuedAt.getTime() > now.getTime() + MAX_CLOCK_SKEW_MS) {
    throw invalid(document, `is issued at ${document.issuedAt}, which is in the future; check the clocks`)
  }
  if (document.trustDomain !== trustDomain) {
    throw invalid(document, `is of trust domain ${document.trustDomain}, not ${trustDomain}`)
  }
  const [leafDer, issuerDer] = parsed.certificates
  const certificate = parseCertificate(leafDer)
  const signer = verifyCertificate({
    certificate,
    issuers: [parseCertificate(issuerDer)],
    root,
    now: issuedAt,
    roles: ['authority'],
    oids,
    trustDomain,
  })
  if (options.isRevoked?.(certificate.serial, signer.issuer.keyId) === true) {
    throw new CertpeerError(
      'certificate_revoked',
      `the certificate ${certificate.serial} that signed the document of ${document.tenant}/${document.network} is revoked`,
    )
  }
  verifyJws(parsed, publicKeyOf(certificate))

  const { settings, pools, reserved, keyPrefix, routes } = readNetworkSettings(document)
  if (!isCanonical(document, settings)) throw invalid(document, 'has a prefix that is not in canonical form')
  requireInside(document, signer.issuer, [...pools, keyPrefix, ...routes])
  return { document, jws, signer, pools, reserved, keyPrefix, routes }
}

/**
 * Compares an offered document with the one held for the same network. Returns `same` or `newer`; throws
 * network_document_stale for a lower number, or for a higher number that claims an earlier instant (an old authority
 * key, long expired, could still sign for its own time), and network_document_invalid for two contents of one number.
 */
export function requireNotOlder(held: VerifiedNetworkDocument, offered: VerifiedNetworkDocument): 'same' | 'newer' {
  const { number, issuedAt } = held.document
  if (offered.document.number < number || Date.parse(offered.document.issuedAt) < Date.parse(issuedAt)) {
    throw new CertpeerError(
      'network_document_stale',
      `network document ${offered.document.number} of ${networkName(offered.document)} is older than ` +
        `number ${number}, which was seen before`,
    )
  }
  if (offered.document.number > number) return 'newer'
  if (JSON.stringify(offered.document) === JSON.stringify(held.document)) return 'same'
  throw invalid(offered.document, 'has the number of another document, seen before, with other content')
}

function readDocument(payload: Buffer): NetworkDocument {
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload))
  } catch {
    throw new CertpeerError('network_document_invalid', 'the network document is not JSON')
  }
  const result = networkDocumentSchema.safeParse(json)
  if (result.success) return result.data
  const issue = result.error.issues[0]
  const path = issue?.path.map(String).join('.') ?? ''
  throw new CertpeerError('network_document_invalid', `the network document: ${path} ${issue?.message ?? ''}`.trimEnd())
}

/** Every prefix and address is written in the one form that formatPrefix gives. */
function isCanonical(document: NetworkDocument, canonical: object): boolean {
  const given = document as unknown as Record<string, unknown>
  return Object.entries(canonical).every(([field, value]) => JSON.stringify(given[field]) === JSON.stringify(value))
}

/** The infrastructure CA that vouches for the authority has the address plan as its block; law cannot reach beyond it. */
function requireInside(document: NetworkDocument, issuer: Certificate, prefixes: readonly Prefix[]): void {
  const blocks = issuer.addressBlocks ?? []
  const outside = prefixes.find((prefix) => !blocks.some((block) => prefixContains(block, prefix)))
  if (outside !== undefined) {
    throw invalid(document, `names ${formatPrefix(outside)}, which is outside of the block of its signer's CA`)
  }
}

function invalid(document: NetworkDocument, why: string): CertpeerError {
  return new CertpeerError(
    'network_document_invalid',
    `network document ${document.number} of ${networkName(document)} ${why}`,
  )
}

function networkName(document: NetworkDocument): string {
  return `${document.tenant}/${document.network}`
}
