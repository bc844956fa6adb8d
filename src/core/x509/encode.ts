/** Writes certificates piece by piece (RFC 5280 section 4.1). What a piece may hold is the profile's business. */
import type { KeyObject } from 'node:crypto'
import { CertpeerError } from '../errors.ts'
import {
  derBitString,
  derBoolean,
  derContext,
  derInteger,
  derOctetString,
  derOid,
  derSequence,
  derSet,
  derTime,
  derUtf8String,
} from '../der/writer.ts'
import { OID } from './oids.ts'
import { serialToDerInteger, type Serial } from './serial.ts'

/** How a key signs: the OID, the AlgorithmIdentifier and node's name of the hash. */
export interface SignatureAlgorithm {
  readonly oid: string
  readonly der: Buffer
  readonly hash: 'sha256' | 'sha384'
}

export interface TbsCertificate {
  readonly serial: Serial
  /** AlgorithmIdentifier, as signatureAlgorithmFor gives it. */
  readonly signatureAlgorithm: Buffer
  readonly issuerDer: Buffer
  readonly notBefore: Date
  readonly notAfter: Date
  readonly subjectDer: Buffer
  readonly spki: Buffer
  /** Whole Extension values, in the order in which they are written. */
  readonly extensions: readonly Buffer[]
}

const ECDSA_SHA256: SignatureAlgorithm = {
  oid: OID.ecdsaWithSha256,
  der: derSequence(derOid(OID.ecdsaWithSha256)),
  hash: 'sha256',
}
const ECDSA_SHA384: SignatureAlgorithm = {
  oid: OID.ecdsaWithSha384,
  der: derSequence(derOid(OID.ecdsaWithSha384)),
  hash: 'sha384',
}
const VERSION_3 = derContext(0, derInteger(2), true)
const COMMON_NAME = derOid(OID.commonName)
const ORGANIZATION_NAME = derOid(OID.organizationName)

/** The TBSCertificate, version 3: exactly the bytes that get signed. */
export function encodeTbsCertificate(fields: TbsCertificate): Buffer {
  return derSequence(
    VERSION_3,
    serialToDerInteger(fields.serial),
    fields.signatureAlgorithm,
    fields.issuerDer,
    derSequence(derTime(fields.notBefore), derTime(fields.notAfter)),
    fields.subjectDer,
    fields.spki,
    derContext(3, derSequence(...fields.extensions), true),
  )
}

/** The algorithm a CA key signs with. Throws malformed_certificate unless it is a P-256 or P-384 key. */
export function signatureAlgorithmFor(publicKey: KeyObject): SignatureAlgorithm {
  switch (publicKey.asymmetricKeyDetails?.namedCurve) {
    case 'prime256v1':
      return ECDSA_SHA256
    case 'secp384r1':
      return ECDSA_SHA384
    default:
      throw new CertpeerError('malformed_certificate', 'a signing key must be on P-256 or P-384')
  }
}

/** SEQUENCE { tbs, algorithm, signature }: certificates, CRLs and OCSP's BasicOCSPResponse without certificates alike. */
export function assembleSigned(tbs: Buffer, algorithmDer: Buffer, signature: Buffer): Buffer {
  return derSequence(tbs, algorithmDer, derBitString(signature))
}

/** Name of an organization (optional) and a common name, both UTF8String; at most 64 characters each (RFC 5280 A.1). */
export function encodeName(commonName: string, organization?: string): Buffer {
  const parts = [encodeRdn(COMMON_NAME, commonName)]
  if (organization !== undefined) parts.unshift(encodeRdn(ORGANIZATION_NAME, organization))
  return derSequence(...parts)
}

/** Extension ::= SEQUENCE { extnID, critical BOOLEAN DEFAULT FALSE, extnValue OCTET STRING } */
export function encodeExtension(oid: string, critical: boolean, value: Buffer): Buffer {
  const flag = critical ? [derBoolean(true)] : []
  return derSequence(derOid(oid), ...flag, derOctetString(value))
}

function encodeRdn(type: Buffer, text: string): Buffer {
  const { length } = Array.from(text)
  if (length < 1 || length > 64) {
    throw new CertpeerError('malformed_request', 'a name in a certificate must have 1 to 64 characters')
  }
  return derSet(derSequence(type, derUtf8String(text)))
}
