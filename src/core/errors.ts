/**
 * The one error type of the project. `code` is closed and stable: callers decide by it, never by text. `message` is
 * written for the caller; secrets and internals belong in `cause`, which is logged and never sent.
 */
export const ERROR_CODES = [
  // what was sent cannot be read
  'malformed_request',
  'malformed_der',
  'malformed_certificate',
  'malformed_csr',
  'malformed_crl',
  'malformed_ocsp',
  'malformed_token',
  'malformed_message',
  'body_too_large',
  'unsupported_media_type',
  'method_not_allowed',
  'not_found',
  'usage',
  // who asks
  'client_certificate_required',
  'bad_client_certificate',
  'certificate_untrusted',
  'certificate_expired',
  'certificate_revoked',
  'identity_revoked',
  'revocation_unknown',
  'front_refused',
  'policy_denied',
  'rate_limited',
  // enrollment
  'token_invalid',
  'token_expired',
  'token_used',
  'challenge_unknown',
  'bad_possession_proof',
  'bad_renewal_proof',
  'bad_wireguard_key',
  'key_conflict',
  'address_conflict',
  'identity_live',
  'pool_exhausted',
  'lint_failed',
  // networks
  'network_document_invalid',
  'network_document_stale',
  // admission on a gateway
  'foreign_network',
  'older_certificate',
  'stale_crl',
  // this machine
  'already_exists',
  'unavailable',
  'timeout',
  'config_invalid',
  'ledger_corrupt',
  'ledger_truncated',
  'ledger_locked',
  'schema_newer',
  'state_busy',
  'port_in_use',
  'missing_privilege',
  'missing_program',
  'device_failed',
  'internal',
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

export class CertpeerError extends Error {
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.name = 'CertpeerError'
    this.code = code
  }
}

/** The code of anything that was thrown; whatever is not ours is `internal`. */
export function errorCode(error: unknown): ErrorCode {
  return error instanceof CertpeerError ? error.code : 'internal'
}
