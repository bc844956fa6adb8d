/** The small shapes that every message is made of. Sizes are bounded here, once. */
import { z } from 'zod'
import { CertpeerError } from '../errors.ts'

/** A label people give: a tenant, network, device, gateway, operator or group. RFC 1123 label, lower case. */
export const nameSchema = z
  .string()
  .regex(
    /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/,
    'must be 1 to 63 lower-case letters, digits or hyphens, and begin and end with a letter or digit',
  )
export const groupsSchema = z.array(nameSchema).max(32, 'at most 32 groups')
export const base64UrlSchema = z.string().regex(/^[A-Za-z0-9_-]+$/, 'must be base64url without padding')
export const base64Schema = z.string().regex(/^[A-Za-z0-9+/]+={0,2}$/, 'must be base64 (one line)')
/** Serial number: lower-case hex without leading zero octets beyond the sign octet, as `Serial` in core/x509. */
export const serialSchema = z.string().regex(/^[0-9a-f]{2,42}$/, 'must be a serial number in lower-case hex')
/** Instants travel as RFC 3339 in UTC and are Dates inside. */
export const instantSchema = z.iso.datetime({ error: 'must be an RFC 3339 instant in UTC' })
export const urlSchema = z.url({ protocol: /^https?$/ }).max(2048)

export const ROLES = [
  'device',
  'gateway',
  'operator-admin',
  'operator-security',
  'operator-enroller',
  'operator-auditor',
  'authority',
  'server',
] as const
export type Role = (typeof ROLES)[number]
export const roleSchema = z.enum(ROLES)
export const OPERATOR_ROLES = ['operator-admin', 'operator-security', 'operator-enroller', 'operator-auditor'] as const
export type OperatorRole = (typeof OPERATOR_ROLES)[number]

/** CRLReason, RFC 5280 section 5.3.1; certificateHold and removeFromCRL are not offered yet. */
export const REVOCATION_REASONS = [
  'unspecified',
  'keyCompromise',
  'cACompromise',
  'affiliationChanged',
  'superseded',
  'cessationOfOperation',
  'privilegeWithdrawn',
  'aACompromise',
] as const
export type RevocationReason = (typeof REVOCATION_REASONS)[number]
export const revocationReasonSchema = z.enum(REVOCATION_REASONS)

/** Parses untrusted input by a schema; throws malformed_request naming every fault and where it is. */
export function parseMessage<S extends z.ZodType>(schema: S, input: unknown, what = 'request'): z.output<S> {
  const result = schema.safeParse(input)
  if (result.success) return result.data
  const faults = result.error.issues.slice(0, 8).map((issue) => {
    const path = issue.path.map(String).join('.')
    return path === '' ? issue.message : `${path}: ${issue.message}`
  })
  throw new CertpeerError('malformed_request', `${what}: ${faults.join('; ')}`)
}
