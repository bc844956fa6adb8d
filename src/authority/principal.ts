/** Who asks on the listener *authority*: an operator in force, by the ledger and not by any row. */
import { CertpeerError } from '../core/errors.ts'
import { OPERATOR_ROLES, type OperatorRole } from '../core/messages/common.ts'
import type { Operator } from '../core/policy/operator.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import { readAccessGroups } from '../core/x509/certpeer-extensions.ts'
import { verifyCertificate } from '../core/x509/path.ts'
import { clientCertificate } from '../platform/http/client-cert.ts'
import type { RouteHead } from '../platform/http/types.ts'
import type { Authority } from './authority.ts'

export interface OperatorPrincipal extends Operator {
  readonly role: OperatorRole
  /** Identity, for the ledger. */
  readonly uri: string
}

/**
 * nginx verified the certificate; it is verified again here, under our own root, and its identity must be in force in
 * the ledger. Throws client_certificate_required, bad_client_certificate, certificate_untrusted, certificate_expired,
 * certificate_revoked or identity_revoked.
 */
export function requireOperator(authority: Authority, request: Pick<RouteHead, 'headers'>): OperatorPrincipal {
  const certificate = parseCertificate(clientCertificate(request))
  const { role, identity, uri } = verifyCertificate({
    certificate,
    issuers: authority.issuers.map((issuer) => issuer.certificate),
    root: authority.root,
    now: authority.now(),
    roles: OPERATOR_ROLES,
    oids: authority.oids,
    trustDomain: authority.trustDomain,
  })
  const { state } = authority
  const record = state.certificates.get(certificate.serial)
  const known = state.identities.get(uri)
  if (state.revocations.has(certificate.serial)) {
    throw new CertpeerError('certificate_revoked', `operator certificate ${certificate.serial} is revoked`)
  }
  if (known?.blocked || authority.reservations.isBlocked(uri)) {
    throw new CertpeerError('identity_revoked', 'this operator is revoked')
  }
  const operatorRole = OPERATOR_ROLES.find((candidate) => candidate === role)
  if (!known || !record?.tbs.equals(certificate.tbs) || identity.kind !== 'operator' || operatorRole === undefined) {
    throw new CertpeerError('certificate_untrusted', 'this operator certificate does not stand in the ledger')
  }
  return {
    role: operatorRole,
    name: identity.name,
    tenant: identity.tenant,
    groups: readAccessGroups(certificate, authority.oids),
    uri,
  }
}
