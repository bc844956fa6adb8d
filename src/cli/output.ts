/**
 * The rules of our UI.
 *
 * 1. Standard output is the result and nothing else: a token alone, a table, with --json one JSON value on one line.
 * 2. Standard error is for people: progress, warnings, errors. A failure is one line, `certpeer: what was wrong: what to
 *    do`. No stack traces, no colours, no spinners, no questions.
 * 3. Secrets are never shown; the one exception is an enrollment token, which is the result of the command that makes it.
 * 4. A command that did not do all it was asked for does not exit 0. Exit codes:
 *
 *        0  done
 *        1  failed for a reason that is not one of these
 *        2  used wrongly: unknown option, missing argument, bad value
 *        3  revoked, but not yet confirmed everywhere (revoke --wait names who is missing, and until when)
 *        4  refused: certificate, token, policy
 *        5  not found
 *        6  a service or the network could not be reached, or was too slow
 *        7  this machine: configuration, privilege, missing program, port or directory in use
 *
 * 5. Times are UTC in RFC 3339, serial numbers lower-case hex, keys base64 as wg(8) prints them.
 */
import { CertpeerError } from '../core/errors.ts'
import type { ErrorCode } from '../core/errors.ts'

export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  unconfirmed: 3,
  refused: 4,
  notFound: 5,
  unreachable: 6,
  machine: 7,
} as const
export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** What a command may touch beside its own work; tests hand in their own. */
export interface Io {
  readonly env: NodeJS.ProcessEnv
  /** One line of the result. */
  print(text: string): void
  /** One line for people. */
  say(text: string): void
  /** All of standard input, for arguments given as `-`. */
  readInput(): Promise<string>
  /** Aborts at the first SIGINT or SIGTERM. */
  stopSignal(): AbortSignal
}

const REFUSED: readonly ErrorCode[] = [
  'client_certificate_required',
  'bad_client_certificate',
  'certificate_untrusted',
  'certificate_expired',
  'certificate_revoked',
  'identity_revoked',
  'revocation_unknown',
  'front_refused',
  'policy_denied',
  'token_invalid',
  'token_expired',
  'token_used',
  'malformed_token',
  'bad_possession_proof',
  'bad_renewal_proof',
  'key_conflict',
  'address_conflict',
  'identity_live',
  'foreign_network',
  'older_certificate',
  'network_document_stale',
]
const UNREACHABLE: readonly ErrorCode[] = ['unavailable', 'timeout', 'rate_limited', 'stale_crl']
const MACHINE: readonly ErrorCode[] = [
  'config_invalid',
  'already_exists',
  'ledger_corrupt',
  'ledger_truncated',
  'ledger_locked',
  'schema_newer',
  'state_busy',
  'port_in_use',
  'missing_privilege',
  'missing_program',
  'device_failed',
]

export function exitCodeOf(error: unknown): ExitCode {
  if (!(error instanceof CertpeerError)) return EXIT.failed
  const { code } = error
  if (code === 'usage' || code === 'malformed_request' || code === 'network_document_invalid') return EXIT.usage
  if (code === 'not_found') return EXIT.notFound
  if (REFUSED.includes(code)) return EXIT.refused
  if (UNREACHABLE.includes(code)) return EXIT.unreachable
  return MACHINE.includes(code) ? EXIT.machine : EXIT.failed
}

/** The one line of a failure. What is not ours is told by its own words: on this side nobody is a stranger. */
export function errorLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error)
  return `certpeer: ${withoutControls(message.replaceAll(/\s*\n\s*/g, ' '))}`
}

/** Prints one JSON value. */
export function printJson(io: Io, value: unknown): void {
  io.print(JSON.stringify(value))
}

/** A table with a header line; columns are as wide as their widest cell, the last one ends where its text does. */
export function printTable(io: Io, header: readonly string[], rows: readonly (readonly string[])[]): void {
  const lines = [header, ...rows].map((row) => row.map(withoutControls))
  const widths = header.map((_, column) => Math.max(...lines.map((row) => (row[column] ?? '').length)))
  for (const row of lines) {
    io.print(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
  }
}

/** `name  value` lines, for one thing. */
export function printFields(io: Io, fields: readonly (readonly [string, string])[]): void {
  const width = Math.max(...fields.map(([name]) => name.length))
  for (const [name, value] of fields) io.print(`${name.padEnd(width)}  ${withoutControls(value)}`.trimEnd())
}

/** Text that others chose must not move the cursor of the terminal that shows it. */
export function withoutControls(text: string): string {
  return text.replaceAll(/\p{Cc}|\p{Cf}/gu, '?')
}
