/**
 * Enrollment tokens: `cpt1.<base64url(claims as JSON)>.<base64url(secret)>` with
 * secret = HMAC-SHA256(token key, claims segment in ASCII). The authority needs no record of a token to recognise it,
 * and the secret stays with who enrolls: a request carries the claims segment and a MAC made with the secret.
 */
import { createHmac } from 'node:crypto'
import type { z } from 'zod'
import { CertpeerError } from '../errors.ts'
import { tokenClaimsSchema } from './enrollment.ts'
import type { TokenClaims } from './enrollment.ts'

const PREFIX = 'cpt1'
const SECRET_BYTES = 32
const MAX_SEGMENT_CHARACTERS = 4096

export interface EnrollmentToken {
  readonly claims: TokenClaims
  /** The claims as they stand in the token; every proof is made over these characters. */
  readonly segment: string
  readonly secret: Buffer
}

/** Makes the token. Only the authority can: it needs the token key, which never is part of what comes out. */
export function encodeToken(options: { claims: TokenClaims; tokenKey: Buffer }): string {
  const segment = encodeClaims(options.claims)
  return `${PREFIX}.${segment}.${tokenSecret(options.tokenKey, segment).toString('base64url')}`
}

/** The claims segment: fields in the order of the schema. */
export function encodeClaims(claims: TokenClaims): string {
  return Buffer.from(JSON.stringify(tokenClaimsSchema.parse(claims)), 'utf8').toString('base64url')
}

/** The secret that belongs to a claims segment. */
export function tokenSecret(tokenKey: Buffer, segment: string): Buffer {
  if (tokenKey.length !== 32) throw new TypeError('the token key has 32 bytes')
  return createHmac('sha256', tokenKey).update(segment, 'ascii').digest()
}

/** Reads a token as people paste it. Throws malformed_token and never quotes it. Does not check expiry or secret. */
export function parseToken(text: string): EnrollmentToken {
  const [prefix, segment, secretText, ...more] = text.split('.')
  if (prefix !== PREFIX || segment === undefined || secretText === undefined || more.length > 0) {
    throw new CertpeerError('malformed_token', 'this is not an enrollment token: it has the form cpt1.….…')
  }
  const secret = Buffer.from(secretText, 'base64url')
  if (secret.length !== SECRET_BYTES || secret.toString('base64url') !== secretText) {
    throw new CertpeerError('malformed_token', 'the last part of the token is damaged; copy the whole token again')
  }
  return { claims: parseClaims(segment), segment, secret }
}

/** Reads a claims segment. Throws malformed_token. Says nothing about who made it. */
export function parseClaims(segment: string): TokenClaims {
  if (segment.length > MAX_SEGMENT_CHARACTERS) throw new CertpeerError('malformed_token', 'the token is too long')
  const bytes = Buffer.from(segment, 'base64url')
  // Buffer skips what is not base64url; the same claims must not have two spellings.
  if (bytes.toString('base64url') !== segment) {
    throw new CertpeerError('malformed_token', 'the claims of the token are damaged; copy the whole token again')
  }
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    throw new CertpeerError('malformed_token', 'the claims of the token are damaged; copy the whole token again')
  }
  const result = tokenClaimsSchema.safeParse(json)
  if (!result.success)
    throw new CertpeerError('malformed_token', `the claims of the token: ${firstFault(result.error)}`)
  if (JSON.stringify(result.data) !== bytes.toString('utf8')) {
    throw new CertpeerError('malformed_token', 'the claims of the token are not in their one written form')
  }
  return result.data
}

function firstFault(error: z.ZodError): string {
  const issue = error.issues[0]
  if (issue === undefined) return 'unreadable'
  const path = issue.path.map(String).join('.')
  return path === '' ? issue.message : `${path}: ${issue.message}`
}
