/** RFC 9457 problem details. The status of every error code stands here and nowhere else. */
import { STATUS_CODES } from 'node:http'
import { CertpeerError, type ErrorCode } from '../../core/errors.ts'
import type { Problem } from '../../core/messages/problem.ts'

export const PROBLEM_TYPE = 'application/problem+json'

export const STATUS = {
  malformed_request: 400,
  malformed_der: 400,
  malformed_certificate: 400,
  malformed_csr: 400,
  malformed_crl: 400,
  malformed_ocsp: 400,
  malformed_token: 400,
  malformed_message: 400,
  body_too_large: 413,
  unsupported_media_type: 415,
  method_not_allowed: 405,
  not_found: 404,
  usage: 400,
  client_certificate_required: 401,
  bad_client_certificate: 403,
  certificate_untrusted: 403,
  certificate_expired: 403,
  certificate_revoked: 403,
  identity_revoked: 403,
  // Fail closed: no fresh CRL, so nobody is let in; it is ours to mend, not the caller's.
  revocation_unknown: 503,
  front_refused: 403,
  policy_denied: 403,
  rate_limited: 429,
  token_invalid: 403,
  token_expired: 403,
  token_used: 409,
  challenge_unknown: 409,
  bad_possession_proof: 403,
  bad_renewal_proof: 403,
  bad_wireguard_key: 422,
  key_conflict: 409,
  address_conflict: 409,
  identity_live: 409,
  pool_exhausted: 503,
  lint_failed: 422,
  network_document_invalid: 422,
  network_document_stale: 409,
  foreign_network: 403,
  older_certificate: 409,
  stale_crl: 503,
  already_exists: 409,
  unavailable: 503,
  timeout: 504,
  config_invalid: 500,
  ledger_corrupt: 503,
  ledger_truncated: 503,
  ledger_locked: 503,
  schema_newer: 503,
  state_busy: 503,
  port_in_use: 500,
  missing_privilege: 500,
  missing_program: 500,
  device_failed: 503,
  internal: 500,
} as const satisfies Record<ErrorCode, number>

/**
 * What the caller is told. Anything that is not a CertpeerError is a bare `internal`: its text was not written for
 * strangers. `status` overrides the code's own where HTTP has a closer word (408 for a body that does not come).
 */
export function toProblem(error: unknown, requestId: string, status?: number): Problem & { code: ErrorCode } {
  const code = error instanceof CertpeerError ? error.code : 'internal'
  const effective = status ?? STATUS[code]
  return {
    type: 'about:blank',
    title: STATUS_CODES[effective] ?? 'Error',
    status: effective,
    code,
    ...(error instanceof CertpeerError && code !== 'internal' ? { detail: error.message } : {}),
    requestId,
  }
}
