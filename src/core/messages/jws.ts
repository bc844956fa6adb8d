/**
 * JSON Web Signature, compact serialisation (RFC 7515), in one narrow form: ES256 and a protected header of exactly
 * {alg, typ, x5c: [leaf, issuer]}. No algorithm is ever taken from the message, there is nothing unprotected, and the
 * certificates are as untrusted as the rest until they are verified under a pinned root.
 */
import { verify } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { z } from 'zod'
import { DerReader, readDer, readInteger } from '../der/reader.ts'
import { CertpeerError } from '../errors.ts'
import { base64Schema } from './common.ts'

export const MAX_JWS_CHARACTERS = 65_536
/** Octets of R and of S in an ES256 signature (RFC 7518 section 3.4). */
const SCALAR_BYTES = 32
const TAG_INTEGER = 0x02
const TAG_SEQUENCE = 0x30

const headerSchema = z.strictObject({
  alg: z.literal('ES256'),
  typ: z.string().max(64),
  x5c: z.array(base64Schema.max(16_384)).length(2),
})

export interface Jws {
  readonly payload: Buffer
  /** DER, leaf then issuer. */
  readonly certificates: readonly [leaf: Buffer, issuer: Buffer]
  readonly signingInput: Buffer
  /** R ‖ S, 64 octets. */
  readonly signature: Buffer
}

/** Signs a payload. `sign` answers an ECDSA-SHA256 signature by the leaf's P-256 key, in DER as X.509 has it. */
export async function encodeJws(options: {
  payload: Buffer
  typ: string
  certificates: readonly [leaf: Buffer, issuer: Buffer]
  sign: (data: Buffer) => Buffer | Promise<Buffer>
}): Promise<string> {
  const header = {
    alg: 'ES256',
    typ: options.typ,
    x5c: options.certificates.map((certificate) => certificate.toString('base64')),
  }
  const signingInput = `${base64Url(JSON.stringify(header))}.${options.payload.toString('base64url')}`
  const signature = await options.sign(Buffer.from(signingInput, 'ascii'))
  return `${signingInput}.${toFixedSignature(signature).toString('base64url')}`
}

/**
 * Takes a JWS apart; throws malformed_message. Verifies nothing: the caller verifies `certificates` under its root and
 * then calls `verifyJws` with the leaf's key.
 */
export function parseJws(text: string, typ: string): Jws {
  if (text.length > MAX_JWS_CHARACTERS) throw malformed('is too long')
  const [headerText, payloadText, signatureText, ...more] = text.split('.')
  if (headerText === undefined || payloadText === undefined || signatureText === undefined || more.length > 0) {
    throw malformed('does not have three parts')
  }
  const header = readHeader(decode(headerText))
  if (header.typ !== typ) throw malformed(`is not of type ${typ}`)
  const signature = decode(signatureText)
  if (signature.length !== 2 * SCALAR_BYTES) throw malformed('has a signature of the wrong length')
  const [leaf, issuer] = header.x5c.map(decodeCertificate)
  if (leaf === undefined || issuer === undefined) throw malformed('does not carry a certificate and its issuer')
  return {
    payload: decode(payloadText),
    certificates: [leaf, issuer],
    signingInput: Buffer.from(`${headerText}.${payloadText}`, 'ascii'),
    signature,
  }
}

/** Checks the signature with a key that the caller trusts. Throws malformed_message, also for a key that is not P-256. */
export function verifyJws(jws: Jws, key: KeyObject): void {
  const isP256 = key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1'
  if (!isP256 || !verify('sha256', jws.signingInput, { key, dsaEncoding: 'ieee-p1363' }, jws.signature)) {
    throw malformed('has a signature that does not verify')
  }
}

function readHeader(bytes: Buffer): z.infer<typeof headerSchema> {
  let json: unknown
  try {
    json = JSON.parse(bytes.toString('utf8'))
  } catch {
    throw malformed('has a header that is not JSON')
  }
  const result = headerSchema.safeParse(json)
  if (!result.success) throw malformed('needs exactly alg ES256, typ and x5c of two certificates in its header')
  // One spelling only: a repeated member would mean one thing here and another thing elsewhere.
  const { alg, typ, x5c } = result.data
  if (JSON.stringify({ alg, typ, x5c }) !== bytes.toString('utf8')) throw malformed('has a header in another spelling')
  return result.data
}

/** base64url without padding, in its one spelling (RFC 7515 section 2). */
function decode(text: string): Buffer {
  const bytes = Buffer.from(text, 'base64url')
  if (bytes.length === 0 || bytes.toString('base64url') !== text) throw malformed('is not canonical base64url')
  return bytes
}

/** x5c holds standard base64 (RFC 7515 section 4.1.6). */
function decodeCertificate(text: string): Buffer {
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text) throw malformed('has a certificate that is not canonical base64')
  return bytes
}

/** Ecdsa-Sig-Value ::= SEQUENCE { r INTEGER, s INTEGER } (RFC 3279 section 2.2.3) as R ‖ S. */
function toFixedSignature(der: Buffer): Buffer {
  const outer = readDer(der)
  if (outer.tag !== TAG_SEQUENCE) throw new TypeError('the signer did not answer an ECDSA signature in DER')
  const reader = new DerReader(outer.content)
  const scalars = [reader.read(TAG_INTEGER), reader.read(TAG_INTEGER)].map((value) => {
    const hex = readInteger(value)
      .toString(16)
      .padStart(2 * SCALAR_BYTES, '0')
    if (hex.length !== 2 * SCALAR_BYTES) throw new TypeError('the signer did not answer a P-256 signature')
    return Buffer.from(hex, 'hex')
  })
  reader.end()
  return Buffer.concat(scalars)
}

function base64Url(text: string): string {
  return Buffer.from(text, 'utf8').toString('base64url')
}

function malformed(why: string): CertpeerError {
  return new CertpeerError('malformed_message', `the signed message ${why}`)
}
