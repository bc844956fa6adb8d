/**
 * Certification requests (PKCS #10, RFC 2986): untrusted bytes in, a typed value with a proven signature out. What is
 * asked for in a request is a wish; the profile decides what of it is looked at.
 *
 *   CertificationRequest ::= SEQUENCE { certificationRequestInfo, signatureAlgorithm, signature BIT STRING }
 *   CertificationRequestInfo ::= SEQUENCE { version INTEGER { v1(0) }, subject Name, subjectPKInfo,
 *                                           attributes [0] IMPLICIT SET OF Attribute }
 *   Attribute ::= SEQUENCE { type OBJECT IDENTIFIER, values SET SIZE (1..MAX) OF ANY }
 */
import type { KeyObject } from 'node:crypto'
import {
  readBitString,
  readDer,
  readIa5String,
  readOctetString,
  readOid,
  readPrintableString,
  readSequence,
  readSetOf,
  readSmallInteger,
  readUtf8String,
  type DerValue,
} from '../der/reader.ts'
import { contextTag, TAG } from '../der/writer.ts'
import { CertpeerError } from '../errors.ts'
import type { WireGuardKey } from '../wireguard/key.ts'
import { parsePossession, type PossessionProof } from '../wireguard/possession.ts'
import {
  isP256Spki,
  parseCertificate,
  publicKeyFromSpki,
  readAlgorithm,
  readExtensions,
  verifySignature,
  type Certificate,
  type Extension,
} from './certificate.ts'
import { parseWireGuardKeyFromRequest } from './certpeer-extensions.ts'
import { readCommonName } from './names.ts'
import { OID, type CertpeerOids } from './oids.ts'
import { pemToDer } from './pem.ts'

export const MAX_CSR_BYTES = 16_384

export interface Csr {
  readonly der: Buffer
  readonly subjectDer: Buffer
  readonly commonName?: string
  /** SubjectPublicKeyInfo of a P-256 key, in the one encoding that is issued for. */
  readonly spki: Buffer
  readonly publicKey: KeyObject
  /** DER of each attribute's single value, by type. */
  readonly attributes: ReadonlyMap<string, Buffer>
  readonly requestedExtensions: ReadonlyMap<string, Extension>
  readonly wireGuardKey?: WireGuardKey
  readonly possession?: PossessionProof
  /** ECDSA signature (DER) by the key of `renewalCertificate`. */
  readonly renewalSignature?: Buffer
  readonly renewalCertificate?: Certificate
}

/**
 * Parses a CSR in DER, PEM or base64 DER and verifies its signature. Throws malformed_csr; bad_wireguard_key and
 * bad_possession_proof when those parts have no acceptable form. Whether a proof holds is for its verifier to say.
 */
export function parseCsr(input: string | Buffer, oids: CertpeerOids): Csr {
  try {
    return readCsr(typeof input === 'string' ? textToDer(input) : input, oids)
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    if (error.code !== 'malformed_der' && error.code !== 'malformed_certificate') throw error
    throw new CertpeerError('malformed_csr', `the CSR cannot be read: ${error.message}`, { cause: error })
  }
}

function readCsr(der: Buffer, oids: CertpeerOids): Csr {
  if (der.length > MAX_CSR_BYTES) throw malformed(`it is longer than ${MAX_CSR_BYTES} bytes`)
  const request = readSequence(readDer(der))
  const info = request.read(TAG.sequence)
  const signatureAlgorithm = readAlgorithm(request.read())
  const { unusedBits, bytes: signature } = readBitString(request.read())
  request.end()
  if (unusedBits !== 0) throw malformed('its signature is not whole octets')

  const fields = readSequence(info)
  if (readSmallInteger(fields.read()) !== 0) throw malformed('it is not version 1')
  const subject = fields.read(TAG.sequence)
  const spki = fields.read(TAG.sequence).bytes
  const attributesField = fields.read(contextTag(0, true))
  fields.end()
  const commonName = readCommonName(subject)

  if (!isP256Spki(spki)) throw malformed('its key is not ECDSA P-256 with an uncompressed point')
  const publicKey = publicKeyFromSpki(spki)
  if (signatureAlgorithm !== OID.ecdsaWithSha256) throw malformed('it is not signed with ECDSA and SHA-256')
  if (!verifySignature(info.bytes, signatureAlgorithm, signature, publicKey)) {
    throw malformed('its signature does not verify under its own key')
  }

  const attributes = readAttributes(attributesField)
  const extensionRequest = attributes.get(OID.extensionRequest)
  const requestedExtensions = extensionRequest === undefined ? NO_EXTENSIONS : readExtensions(readDer(extensionRequest))
  const wireGuardKey = requestedExtensions.get(oids.wireGuardKey)?.value
  const possession = attributes.get(oids.attributes.possession)
  const renewalSignature = attributes.get(oids.attributes.renewalSignature)
  const renewalCertificate = attributes.get(oids.attributes.renewalCertificate)
  return {
    der,
    subjectDer: subject.bytes,
    ...(commonName === undefined ? {} : { commonName }),
    spki,
    publicKey,
    attributes,
    requestedExtensions,
    ...(wireGuardKey === undefined ? {} : { wireGuardKey: parseWireGuardKeyFromRequest(wireGuardKey) }),
    ...(possession === undefined ? {} : { possession: parsePossession(readText(readDer(possession))) }),
    ...(renewalSignature === undefined ? {} : { renewalSignature: readSignature(readDer(renewalSignature)) }),
    ...(renewalCertificate === undefined
      ? {}
      : { renewalCertificate: readEmbeddedCertificate(readDer(renewalCertificate)) }),
  }
}

const NO_EXTENSIONS: ReadonlyMap<string, Extension> = new Map()

/** Each type once and with exactly one value: a second one would be a second answer to the same question. */
function readAttributes(field: DerValue): Map<string, Buffer> {
  const attributes = new Map<string, Buffer>()
  for (const attribute of readSetOf(field, contextTag(0, true))) {
    const fields = readSequence(attribute)
    const type = readOid(fields.read())
    const [value, ...more] = readSetOf(fields.read())
    fields.end()
    if (value === undefined || more.length > 0) throw malformed(`attribute ${type} must have exactly one value`)
    if (attributes.has(type)) throw malformed(`attribute ${type} occurs twice`)
    attributes.set(type, value.bytes)
  }
  return attributes
}

/** `openssl req` writes an attribute it does not know as the string type that its string mask chooses. */
function readText(value: DerValue): string {
  if (value.tag === TAG.printableString) return readPrintableString(value)
  if (value.tag === TAG.ia5String) return readIa5String(value)
  return readUtf8String(value)
}

/** OCTET STRING with the signature, or its base64 or base64url in a string. */
function readSignature(value: DerValue): Buffer {
  return value.tag === TAG.octetString ? readOctetString(value) : fromText(readText(value), 'the renewal signature')
}

/** The certificate itself, or its base64 in a string. */
function readEmbeddedCertificate(value: DerValue): Certificate {
  if (value.tag === TAG.sequence) return parseCertificate(value.bytes)
  return parseCertificate(fromText(readText(value), 'the certificate to renew'))
}

function fromText(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, 'base64')
  // Node's decoder skips what it does not know: only text that its bytes would be written as is accepted.
  const canonical = bytes.toString('base64') === text || bytes.toString('base64url') === text
  if (!canonical || bytes.length === 0) throw malformed(`${what} is not base64`)
  return bytes
}

function textToDer(text: string): Buffer {
  if (text.length > 2 * MAX_CSR_BYTES) throw malformed(`it is longer than ${MAX_CSR_BYTES} bytes`)
  if (!text.includes('-----BEGIN')) return fromText(text.replaceAll(/[\r\n]/g, ''), 'it')
  // RFC 7468 section 7: older programs say NEW, and both mean the same.
  const label = text.includes('-----BEGIN NEW CERTIFICATE REQUEST-----') ? 'NEW CERTIFICATE REQUEST' : undefined
  if (label === undefined) return pemToDer(text, 'CERTIFICATE REQUEST')
  return pemToDer(text.replaceAll(label, 'CERTIFICATE REQUEST'), 'CERTIFICATE REQUEST')
}

function malformed(fault: string): CertpeerError {
  return new CertpeerError('malformed_csr', `the CSR cannot be used: ${fault}`)
}
