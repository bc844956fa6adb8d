/**
 * OCSP (RFC 6960), with the nonce of RFC 9654 and certificate ids by SHA-1 (what most software still sends) or SHA-256.
 * Both sides: the authority reads requests and encodes answers; whoever asks encodes a request and verifies the answer.
 */
import { createHash } from 'node:crypto'
import {
  readBitString,
  readDer,
  readEnumerated,
  readExplicit,
  readGeneralizedTime,
  readNull,
  readOctetString,
  readOid,
  readSequence,
  type DerReader,
  type DerValue,
} from '../der/reader.ts'
import {
  contextTag,
  derBitString,
  derContext,
  derEnumerated,
  derGeneralizedTime,
  derNull,
  derOctetString,
  derOid,
  derSequence,
  TAG,
} from '../der/writer.ts'
import { CertpeerError } from '../errors.ts'
import type { RevocationReason } from '../messages/common.ts'
import {
  parseCertificate,
  publicKeyOf,
  readAlgorithm,
  readExtensions,
  readSubjectPublicKey,
  verifySignature,
  type Certificate,
  type Extension,
} from './certificate.ts'
import { CRL_REASONS, crlReasonOfNumber } from './crl.ts'
import { encodeExtension } from './encode.ts'
import { OID } from './oids.ts'
import { serialFromDer, serialToDerInteger, type Serial } from './serial.ts'

export type CertIdHash = 'sha1' | 'sha256'

/** CertID ::= SEQUENCE { hashAlgorithm, issuerNameHash, issuerKeyHash, serialNumber }, section 4.1.1. */
export interface CertId {
  readonly hashAlgorithm: CertIdHash
  readonly issuerNameHash: Buffer
  readonly issuerKeyHash: Buffer
  readonly serial: Serial
  /** The CertID as it was sent: an answer repeats it byte by byte. */
  readonly bytes: Buffer
}

export interface OcspRequest {
  readonly certIds: readonly CertId[]
  /** 1 to 128 octets (RFC 9654 section 2.1). */
  readonly nonce?: Buffer
}

/** More questions in one request cost us signatures and the asker nothing. */
export const MAX_OCSP_CERT_IDS = 16
const MAX_OCSP_REQUEST_BYTES = 16_384
const MAX_OCSP_RESPONSE_BYTES = 65_536
/** Clocks of asker and responder may differ by this much. */
const CLOCK_SKEW_MS = 300_000

const HASH_OIDS: Record<CertIdHash, string> = { sha1: OID.sha1, sha256: OID.sha256 }
const HASH_OF_OID: ReadonlyMap<string, CertIdHash> = new Map([
  [OID.sha1, 'sha1'],
  [OID.sha256, 'sha256'],
])

export type OcspStatus =
  | { readonly status: 'good' }
  | { readonly status: 'revoked'; readonly revokedAt: Date; readonly reason: RevocationReason }
  | { readonly status: 'unknown' }

export type SingleOcspResponse = OcspStatus & {
  /** `bytes` of the CertID that was asked about. */
  readonly certId: Buffer
  readonly thisUpdate: Date
  readonly nextUpdate?: Date
}

export type VerifiedOcspResponse = OcspStatus & { readonly thisUpdate: Date; readonly nextUpdate?: Date }

/** OCSPResponseStatus, section 4.2.1, for the answers that carry nothing else. */
const ERROR_STATUS = { malformedRequest: 1, internalError: 2, tryLater: 3, sigRequired: 5, unauthorized: 6 } as const
export type OcspErrorStatus = 'malformedRequest' | 'internalError' | 'tryLater' | 'unauthorized'

/** Reads a request. A requester's signature is skipped: anybody may ask. Throws malformed_ocsp. */
export function parseOcspRequest(der: Buffer): OcspRequest {
  return guarded('request', () => {
    if (der.length > MAX_OCSP_REQUEST_BYTES) throw malformed('request', 'it is too long')
    const request = readSequence(readDer(der))
    const tbs = readSequence(request.read(TAG.sequence))
    const signature = request.readOptional(contextTag(0, true))
    if (signature !== undefined) readSequence(readExplicit(signature, contextTag(0, true)))
    request.end()
    // A version field could only spell out the default, which DER forbids (X.690 11.5).
    tbs.readOptional(contextTag(1, true)) // requestorName
    const list = readSequence(tbs.read(TAG.sequence))
    const extensionsField = tbs.readOptional(contextTag(2, true))
    tbs.end()
    const certIds = readRequestList(list)
    const nonce = readNonce(extensionsField, contextTag(2, true), 'request')
    return { certIds, ...(nonce === undefined ? {} : { nonce }) }
  })
}

export function encodeOcspRequest(input: {
  readonly certificate: Certificate
  readonly issuer: Certificate
  readonly nonce?: Buffer
  readonly hashAlgorithm?: CertIdHash
}): Buffer {
  const certId = encodeCertId(input.certificate.serial, input.issuer, input.hashAlgorithm ?? 'sha256')
  const list = derSequence(derSequence(certId))
  if (input.nonce === undefined) return derSequence(derSequence(list))
  return derSequence(derSequence(list, derContext(2, derSequence(nonceExtension(input.nonce)), true)))
}

/** True when the question is about a certificate of this issuer. */
export function certIdMatches(certId: CertId, issuer: Certificate): boolean {
  const { nameHash, keyHash } = issuerHashes(issuer, certId.hashAlgorithm)
  return certId.issuerNameHash.equals(nameHash) && certId.issuerKeyHash.equals(keyHash)
}

/** KeyHash ::= SHA-1 of the responder's public key bits (section 4.2.1): a name, not a protection. */
export function responderKeyHash(responder: Certificate): Buffer {
  return digest('sha1', readSubjectPublicKey(readDer(responder.spki)))
}

/** ResponseData, section 4.2.1: what the responder signs. Times are whole seconds. */
export function encodeOcspResponseData(input: {
  readonly responderKeyHash: Buffer
  readonly producedAt: Date
  readonly responses: readonly SingleOcspResponse[]
  readonly nonce?: Buffer
}): Buffer {
  return derSequence(
    derContext(2, derOctetString(input.responderKeyHash), true),
    derGeneralizedTime(input.producedAt),
    derSequence(...input.responses.map(encodeSingleResponse)),
    ...(input.nonce === undefined ? [] : [derContext(1, derSequence(nonceExtension(input.nonce)), true)]),
  )
}

/** The whole answer around signed ResponseData. */
export function encodeOcspResponse(input: {
  readonly tbs: Buffer
  /** AlgorithmIdentifier. */
  readonly algorithmDer: Buffer
  readonly signature: Buffer
  /** DER; the delegated signer's certificate, so that the asker can verify. */
  readonly certificates: readonly Buffer[]
}): Buffer {
  const basic = derSequence(
    input.tbs,
    input.algorithmDer,
    derBitString(input.signature),
    ...(input.certificates.length === 0 ? [] : [derContext(0, derSequence(...input.certificates), true)]),
  )
  const responseBytes = derSequence(derOid(OID.ocspBasic), derOctetString(basic))
  return derSequence(derEnumerated(0), derContext(0, responseBytes, true))
}

/** An unsigned answer that says only that there is none. */
export function encodeOcspError(status: OcspErrorStatus): Buffer {
  return derSequence(derEnumerated(ERROR_STATUS[status]))
}

/**
 * What a response says about `certificate`. The signer is the issuer itself, or a delegate that the issuer certified
 * for OCSPSigning and marked with ocsp-nocheck, valid now (section 4.2.2.2). Throws malformed_ocsp when the response or
 * its signer is wrong, revocation_unknown when it is no usable answer: an error status, another certificate, not
 * current, or not an answer to this nonce. Ask with a nonce when a replayed older answer would matter.
 */
export function verifyOcspResponse(input: {
  readonly response: Buffer
  readonly certificate: Certificate
  readonly issuer: Certificate
  readonly now: Date
  readonly nonce?: Buffer
}): VerifiedOcspResponse {
  return guarded('response', () => {
    const basic = parseBasicResponse(input.response)
    verifySigner(basic, input.issuer, input.now)
    if (input.nonce !== undefined && basic.nonce?.equals(input.nonce) !== true) {
      throw unknown('the response is not an answer to this request: its nonce differs')
    }
    const matching = basic.responses.filter(
      ({ id }) => id.serial === input.certificate.serial && certIdMatches(id, input.issuer),
    )
    const [single, ...more] = matching
    if (single === undefined) throw unknown('the response is about another certificate')
    if (more.length > 0) throw malformed('response', 'it answers twice about one certificate')
    requireCurrent(single, input.now)
    return single.answer
  })
}

interface BasicResponse {
  readonly tbs: Buffer
  readonly responder: { readonly nameDer: Buffer } | { readonly keyHash: Buffer }
  readonly responses: readonly { readonly id: CertId; readonly answer: VerifiedOcspResponse }[]
  readonly nonce: Buffer | undefined
  readonly signatureAlgorithm: string
  readonly signature: Buffer
  readonly certificates: readonly Buffer[]
}

function parseBasicResponse(der: Buffer): BasicResponse {
  if (der.length > MAX_OCSP_RESPONSE_BYTES) throw malformed('response', 'it is too long')
  const outer = readSequence(readDer(der))
  const status = readEnumerated(outer.read())
  if (status !== 0) {
    outer.end()
    const name = Object.entries(ERROR_STATUS).find(([, number]) => number === status)?.[0]
    throw unknown(`the OCSP responder answers ${name ?? `status ${status}`}`)
  }
  const responseBytes = readSequence(readExplicit(outer.read(), contextTag(0, true)))
  outer.end()
  if (readOid(responseBytes.read()) !== OID.ocspBasic) throw malformed('response', 'it is not a basic response')
  const basic = readSequence(readDer(readOctetString(responseBytes.read())))
  responseBytes.end()

  const tbs = basic.read(TAG.sequence)
  const signatureAlgorithm = readAlgorithm(basic.read())
  const { unusedBits, bytes: signature } = readBitString(basic.read())
  if (unusedBits !== 0) throw malformed('response', 'its signature is not whole octets')
  const certificatesField = basic.readOptional(contextTag(0, true))
  basic.end()

  const data = readSequence(tbs)
  const responder = readResponderId(data.read())
  readGeneralizedTime(data.read()) // producedAt: thisUpdate is the instant that counts
  const responses: { id: CertId; answer: VerifiedOcspResponse }[] = []
  const list = readSequence(data.read())
  while (!list.atEnd) responses.push(readSingleResponse(list.read()))
  const extensionsField = data.readOptional(contextTag(1, true))
  data.end()
  const nonce = readNonce(extensionsField, contextTag(1, true), 'response')
  const certificates = certificatesField === undefined ? [] : readCertificates(certificatesField)
  return { tbs: tbs.bytes, responder, responses, nonce, signatureAlgorithm, signature, certificates }
}

/** ResponderID ::= CHOICE { byName [1] Name, byKey [2] KeyHash }; both tags are EXPLICIT in this module. */
function readResponderId(value: DerValue): BasicResponse['responder'] {
  if (value.tag === contextTag(1, true)) return { nameDer: readExplicit(value, contextTag(1, true)).bytes }
  return { keyHash: readOctetString(readExplicit(value, contextTag(2, true))) }
}

function readCertificates(field: DerValue): Buffer[] {
  const list = readSequence(readExplicit(field, contextTag(0, true)))
  const certificates: Buffer[] = []
  while (!list.atEnd) certificates.push(list.read(TAG.sequence).bytes)
  return certificates
}

function readSingleResponse(value: DerValue): { id: CertId; answer: VerifiedOcspResponse } {
  const fields = readSequence(value)
  const id = readCertId(fields.read())
  const status = readStatus(fields.read())
  const thisUpdate = readGeneralizedTime(fields.read())
  const nextUpdateField = fields.readOptional(contextTag(0, true))
  const extensionsField = fields.readOptional(contextTag(1, true))
  fields.end()
  if (extensionsField !== undefined) {
    refuseCritical(readExtensions(readExplicit(extensionsField, contextTag(1, true))), 'response')
  }
  if (nextUpdateField === undefined) return { id, answer: { ...status, thisUpdate } }
  const nextUpdate = readGeneralizedTime(readExplicit(nextUpdateField, contextTag(0, true)))
  if (nextUpdate < thisUpdate) throw malformed('response', 'its nextUpdate is before its thisUpdate')
  return { id, answer: { ...status, thisUpdate, nextUpdate } }
}

function readStatus(value: DerValue): OcspStatus {
  if (value.tag === contextTag(0, false)) {
    readNull(value, contextTag(0, false))
    return { status: 'good' }
  }
  if (value.tag === contextTag(2, false)) {
    readNull(value, contextTag(2, false))
    return { status: 'unknown' }
  }
  const info = readSequence(value, contextTag(1, true))
  const revokedAt = readGeneralizedTime(info.read())
  const reasonField = info.readOptional(contextTag(0, true))
  info.end()
  if (reasonField === undefined) return { status: 'revoked', revokedAt, reason: 'unspecified' }
  const number = readEnumerated(readExplicit(reasonField, contextTag(0, true)))
  // A reason we have no word for does not make the certificate less revoked.
  return { status: 'revoked', revokedAt, reason: crlReasonOfNumber(number) ?? 'unspecified' }
}

function encodeSingleResponse(single: SingleOcspResponse): Buffer {
  return derSequence(
    single.certId,
    encodeStatus(single),
    derGeneralizedTime(single.thisUpdate),
    ...(single.nextUpdate === undefined ? [] : [derContext(0, derGeneralizedTime(single.nextUpdate), true)]),
  )
}

function encodeStatus(status: OcspStatus): Buffer {
  switch (status.status) {
    case 'good':
      return derContext(0, Buffer.alloc(0), false)
    case 'unknown':
      return derContext(2, Buffer.alloc(0), false)
    case 'revoked': {
      const reason =
        status.reason === 'unspecified' ? [] : [derContext(0, derEnumerated(CRL_REASONS[status.reason]), true)]
      return derContext(1, Buffer.concat([derGeneralizedTime(status.revokedAt), ...reason]), true)
    }
    default:
      throw new TypeError(`no such status: ${String(status satisfies never)}`)
  }
}

function verifySigner(basic: BasicResponse, issuer: Certificate, now: Date): void {
  if (isResponder(basic.responder, issuer)) {
    requireSignature(basic, issuer)
    return
  }
  for (const der of basic.certificates) {
    const signer = parseCertificate(der)
    if (!isResponder(basic.responder, signer)) continue
    requireDelegate(signer, issuer, now)
    requireSignature(basic, signer)
    return
  }
  throw malformed('response', 'its signer is neither the issuer nor a certificate that came with it')
}

function isResponder(responder: BasicResponse['responder'], certificate: Certificate): boolean {
  if ('nameDer' in responder) return responder.nameDer.equals(certificate.subjectDer)
  return responder.keyHash.equals(responderKeyHash(certificate))
}

function requireSignature(basic: BasicResponse, signer: Certificate): void {
  if (!verifySignature(basic.tbs, basic.signatureAlgorithm, basic.signature, publicKeyOf(signer))) {
    throw malformed('response', 'its signature does not verify')
  }
}

/** Section 4.2.2.2: the very CA that issued the certificate in question must have certified the signer. */
function requireDelegate(signer: Certificate, issuer: Certificate, now: Date): void {
  const issued =
    signer.issuerDer.equals(issuer.subjectDer) &&
    (signer.authorityKeyId === undefined || signer.authorityKeyId === issuer.subjectKeyId) &&
    verifySignature(signer.tbs, signer.signatureAlgorithm, signer.signature, publicKeyOf(issuer))
  if (!issued) throw malformed('response', 'its signer was not certified by the issuer of the certificate')
  if (signer.extendedKeyUsage?.includes(OID.ocspSigning) !== true || signer.isCa) {
    throw malformed('response', 'its signer is not certified for OCSP signing')
  }
  if (signer.keyUsage !== undefined && !signer.keyUsage.has('digitalSignature')) {
    throw malformed('response', 'its signer may not make signatures')
  }
  if (signer.unknownCriticalExtensions.length > 0) {
    throw malformed('response', 'its signer has an unknown critical extension')
  }
  // Without ocsp-nocheck the signer's own revocation would have to be asked for, in a circle (section 4.2.2.2.1).
  if (!signer.extensions.has(OID.ocspNoCheck)) throw malformed('response', 'its signer is not marked ocsp-nocheck')
  if (now < signer.notBefore || now > signer.notAfter) throw malformed('response', 'its signer is not valid now')
}

/** Sections 2.4 and 4.2.2.1. */
function requireCurrent({ answer }: { readonly answer: VerifiedOcspResponse }, now: Date): void {
  if (answer.thisUpdate.getTime() > now.getTime() + CLOCK_SKEW_MS) {
    throw unknown('the OCSP answer is from the future: check the clock')
  }
  // Without nextUpdate "newer information is available all the time": only an answer just made counts.
  const until = answer.nextUpdate?.getTime() ?? answer.thisUpdate.getTime()
  if (until + CLOCK_SKEW_MS < now.getTime()) throw unknown('the OCSP answer is out of date')
}

function readRequestList(list: DerReader): CertId[] {
  const certIds: CertId[] = []
  while (!list.atEnd) {
    if (certIds.length === MAX_OCSP_CERT_IDS) {
      throw malformed('request', `it asks about more than ${MAX_OCSP_CERT_IDS} certificates`)
    }
    const request = readSequence(list.read())
    certIds.push(readCertId(request.read()))
    const extensionsField = request.readOptional(contextTag(0, true))
    request.end()
    if (extensionsField !== undefined) {
      refuseCritical(readExtensions(readExplicit(extensionsField, contextTag(0, true))), 'request')
    }
  }
  if (certIds.length === 0) throw malformed('request', 'it asks about no certificate')
  return certIds
}

function readCertId(value: DerValue): CertId {
  const fields = readSequence(value)
  const hashAlgorithm = HASH_OF_OID.get(readHashAlgorithm(fields.read()))
  const issuerNameHash = readOctetString(fields.read())
  const issuerKeyHash = readOctetString(fields.read())
  const serial = serialFromDer(fields.read())
  fields.end()
  if (hashAlgorithm === undefined)
    throw new CertpeerError('malformed_ocsp', 'certificate ids use SHA-1 or SHA-256 here')
  const size = hashAlgorithm === 'sha1' ? 20 : 32
  if (issuerNameHash.length !== size || issuerKeyHash.length !== size) {
    throw new CertpeerError('malformed_ocsp', 'a hash in a certificate id has the wrong length')
  }
  return { hashAlgorithm, issuerNameHash, issuerKeyHash, serial, bytes: value.bytes }
}

/** Parameters of a hash algorithm are absent or NULL (RFC 5754 section 2); nothing else. */
function readHashAlgorithm(value: DerValue): string {
  const fields = readSequence(value)
  const oid = readOid(fields.read())
  const parameters = fields.readOptional(TAG.null)
  if (parameters !== undefined) readNull(parameters)
  fields.end()
  return oid
}

function encodeCertId(serial: Serial, issuer: Certificate, hashAlgorithm: CertIdHash): Buffer {
  const { nameHash, keyHash } = issuerHashes(issuer, hashAlgorithm)
  return derSequence(
    derSequence(derOid(HASH_OIDS[hashAlgorithm]), derNull()),
    derOctetString(nameHash),
    derOctetString(keyHash),
    serialToDerInteger(serial),
  )
}

interface IssuerHashes {
  readonly nameHash: Buffer
  readonly keyHash: Buffer
}

const issuerHashCache = new WeakMap<Certificate, Record<CertIdHash, IssuerHashes>>()

/** Hashes of an issuer's name and key bits, made once per parsed certificate: every request needs them. */
function issuerHashes(issuer: Certificate, hashAlgorithm: CertIdHash): IssuerHashes {
  let hashes = issuerHashCache.get(issuer)
  if (hashes === undefined) {
    const keyBits = readSubjectPublicKey(readDer(issuer.spki))
    hashes = {
      sha1: { nameHash: digest('sha1', issuer.subjectDer), keyHash: digest('sha1', keyBits) },
      sha256: { nameHash: digest('sha256', issuer.subjectDer), keyHash: digest('sha256', keyBits) },
    }
    issuerHashCache.set(issuer, hashes)
  }
  return hashes[hashAlgorithm]
}

function nonceExtension(nonce: Buffer): Buffer {
  if (nonce.length < 1 || nonce.length > 128) throw new TypeError('an OCSP nonce has 1 to 128 octets')
  return encodeExtension(OID.ocspNonce, false, derOctetString(nonce))
}

function readNonce(field: DerValue | undefined, tag: number, what: 'request' | 'response'): Buffer | undefined {
  if (field === undefined) return undefined
  const extensions = readExtensions(readExplicit(field, tag))
  refuseCritical(extensions, what)
  const value = extensions.get(OID.ocspNonce)?.value
  if (value === undefined) return undefined
  const nonce = readOctetString(readDer(value))
  if (nonce.length < 1 || nonce.length > 128) throw malformed(what, 'its nonce has not 1 to 128 octets')
  return nonce
}

/** Of all extensions the nonce alone is processed, so no other may insist on being understood. */
function refuseCritical(extensions: ReadonlyMap<string, Extension>, what: 'request' | 'response'): void {
  for (const [oid, { critical }] of extensions) {
    if (critical && oid !== OID.ocspNonce) throw malformed(what, `it has the unknown critical extension ${oid}`)
  }
}

function digest(algorithm: CertIdHash, bytes: Buffer): Buffer {
  return createHash(algorithm).update(bytes).digest()
}

function guarded<T>(what: 'request' | 'response', read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    if (error.code !== 'malformed_der' && error.code !== 'malformed_certificate') throw error
    throw new CertpeerError('malformed_ocsp', `the OCSP ${what} cannot be read: ${error.message}`, { cause: error })
  }
}

function malformed(what: 'request' | 'response', fault: string): CertpeerError {
  return new CertpeerError('malformed_ocsp', `the OCSP ${what} cannot be used: ${fault}`)
}

function unknown(message: string): CertpeerError {
  return new CertpeerError('revocation_unknown', message)
}
