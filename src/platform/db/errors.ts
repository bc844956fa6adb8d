/** What the database says when it says no, in our words. Constraint names and SQLSTATEs are decided by, never text. */
import { CertpeerError, type ErrorCode } from '../../core/errors.ts'

/** Constraints that a caller can run into, and what that means for him. */
const CONSTRAINTS: Readonly<Record<string, { code: ErrorCode; message: string }>> = {
  peers_one_per_key: { code: 'key_conflict', message: 'another device of this network uses the same WireGuard key' },
  peers_one_per_identity: { code: 'already_exists', message: 'this device already has a peer in this network' },
}

/** SQLSTATE classes and codes that end by themselves: connection, shutdown, resources, lock timeouts, lost races. */
const PASSING_STATES = /^(?:08...|57P0[1-5]|53...|55P03|57014|40001|40P01|25P03)$/
/** What the operating system and the driver say about a server that is not there. */
const PASSING_CODES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOENT',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
])
/** The driver gives these neither a class nor a code: its texts are the only mark they have. */
const DRIVER_TEXTS =
  /Connection terminated|Connection ended unexpectedly|timeout expired|Query read timeout|not queryable|Client has encountered a connection error|Client was closed|Unable to acquire a connection/

/**
 * A CertpeerError for faults that have a meaning: unavailable for a database that cannot be used now, the code of the
 * constraint for a row it refused. Everything else, a refused privilege or a broken statement, comes back as it was:
 * those are ours, and end as `internal`.
 */
export function toDatabaseError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof CertpeerError) return error
  const constraint = CONSTRAINTS[constraintOf(error) ?? '']
  if (constraint !== undefined) return new CertpeerError(constraint.code, constraint.message, { cause: error })
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  const passes =
    PASSING_STATES.test(code) ||
    PASSING_CODES.has(code) ||
    error.name === 'KnexTimeoutError' ||
    (code === '' && DRIVER_TEXTS.test(error.message))
  return passes ? new CertpeerError('unavailable', 'the database cannot be used right now', { cause: error }) : error
}

/** The violated constraint's name; looks through a CertpeerError at its cause. */
export function constraintOf(error: unknown): string | undefined {
  if (error instanceof CertpeerError) return constraintOf(error.cause)
  if (!(error instanceof Error) || !('constraint' in error)) return undefined
  return typeof error.constraint === 'string' ? error.constraint : undefined
}

/** Five characters, PostgreSQL appendix A; looks through a CertpeerError at its cause. */
export function sqlStateOf(error: unknown): string | undefined {
  if (error instanceof CertpeerError) return sqlStateOf(error.cause)
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string') return undefined
  return /^[0-9A-Z]{5}$/.test(error.code) ? error.code : undefined
}
