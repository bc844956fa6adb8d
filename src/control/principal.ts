/**
 * Who asks. nginx has verified the certificate that stands in the header, and is not believed: the bytes are parsed
 * strictly and verified again under the pinned root. A cache remembers only what cannot change ("these bytes parse, and
 * issuer K signed them"); validity and revocation are looked at on every request, so a certificate that expires or is
 * revoked stops in the middle of a kept-alive connection.
 */
import { createHash } from 'node:crypto'
import { CertpeerError } from '../core/errors.ts'
import { OPERATOR_ROLES } from '../core/messages/common.ts'
import type { OperatorRole } from '../core/messages/common.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { readDevice, readGateway, verifyCertificate } from '../core/x509/path.ts'
import type { DeviceFacts, GatewayFacts, VerifiedCertificate } from '../core/x509/path.ts'
import type { Now } from '../platform/clock.ts'
import type { Issuers } from './issuers.ts'
import type { Revocations } from './revocations.ts'

export interface DevicePrincipal {
  readonly kind: 'device'
  readonly device: DeviceFacts
  readonly verified: VerifiedCertificate
}
export interface GatewayPrincipal {
  readonly kind: 'gateway'
  readonly gateway: GatewayFacts
  readonly verified: VerifiedCertificate
}
export interface OperatorPrincipal {
  readonly kind: 'operator'
  readonly role: OperatorRole
  /** Absent for an operator of all tenants. */
  readonly tenant?: string
  readonly name: string
  readonly verified: VerifiedCertificate
}
export type Principal = DevicePrincipal | GatewayPrincipal | OperatorPrincipal

export interface Principals {
  /** The principal of a certificate in force: verified, valid now, not revoked. Throws, and fails closed. */
  authenticate(der: Buffer): Principal
  /** What a stored certificate says, verified under the root at its own notBefore: also of one that has ended. */
  read(der: Buffer): Principal
  /** Throws unless the certificate, and the CA above it, are valid and not revoked at this moment. */
  requireInForce(principal: Principal): void
}

const MAX_CACHED = 100_000

export function createPrincipals(options: {
  issuers: Issuers
  revocations: Revocations
  oids: CertpeerOids
  trustDomain: string
  now: Now
  maxCached?: number
}): Principals {
  const { issuers, revocations, oids, trustDomain } = options
  const maxCached = options.maxCached ?? MAX_CACHED
  /** SHA-256 of the DER → its reading. Insertion order is age: the oldest entry leaves first. */
  const proven = new Map<string, Principal>()

  /** Verifies at `at`, or takes the proof from the cache. Says nothing of validity now, nor of revocation. */
  function prove(der: Buffer, at: (notBefore: Date) => Date): Principal {
    const digest = createHash('sha256').update(der).digest('base64')
    const known = proven.get(digest)
    if (known !== undefined) return known
    const certificate = parseCertificate(der)
    const now = at(certificate.notBefore)
    const candidates = issuers.list(now)
    if (candidates.length === 0) {
      throw new CertpeerError('unavailable', 'no issuing CA is known here yet; try again')
    }
    const verified = verifyCertificate({
      certificate,
      issuers: candidates,
      root: issuers.root,
      now,
      oids,
      trustDomain,
    })
    const principal = readPrincipal(verified, oids)
    if (proven.size >= maxCached) {
      const [oldest] = proven.keys()
      if (oldest !== undefined) proven.delete(oldest)
    }
    proven.set(digest, principal)
    return principal
  }

  function requireInForce(principal: Principal): void {
    const now = options.now()
    const { certificate, issuer, root } = principal.verified
    for (const { notBefore, notAfter } of [certificate, issuer, root]) {
      if (now < notBefore) throw new CertpeerError('certificate_expired', 'the certificate is not valid yet')
      if (now > notAfter) {
        throw new CertpeerError('certificate_expired', `the certificate ended at ${notAfter.toISOString()}`)
      }
    }
    revocations.requireNotRevoked(certificate, issuer.keyId, now)
    revocations.requireNotRevoked(issuer, root.keyId, now)
  }

  return {
    authenticate(der) {
      const principal = prove(der, () => options.now())
      requireInForce(principal)
      return principal
    },
    read: (der) => prove(der, (notBefore) => notBefore),
    requireInForce,
  }
}

function readPrincipal(verified: VerifiedCertificate, oids: CertpeerOids): Principal {
  const { identity, role } = verified
  switch (identity.kind) {
    case 'device':
      return { kind: 'device', device: readDevice(verified, oids), verified }
    case 'gateway':
      return { kind: 'gateway', gateway: readGateway(verified, oids), verified }
    case 'operator': {
      const operatorRole = OPERATOR_ROLES.find((known) => known === role)
      if (operatorRole === undefined) throw refused(`the role ${role} does not go with an operator's name`)
      return {
        kind: 'operator',
        role: operatorRole,
        ...(identity.tenant !== undefined && { tenant: identity.tenant }),
        name: identity.name,
        verified,
      }
    }
    case 'authority':
    case 'server':
      throw refused(`a certificate of the ${identity.kind} is for no request here`)
    default:
      return identity satisfies never
  }
}

export function requireDevice(principal: Principal): DevicePrincipal {
  if (principal.kind === 'device') return principal
  throw new CertpeerError('policy_denied', `this is for devices; the certificate is that of a ${principal.kind}`)
}

export function requireGateway(principal: Principal): GatewayPrincipal {
  if (principal.kind === 'gateway') return principal
  throw new CertpeerError('policy_denied', `this is for gateways; the certificate is that of a ${principal.kind}`)
}

export function requireOperator(principal: Principal): OperatorPrincipal {
  if (principal.kind === 'operator') return principal
  throw new CertpeerError('policy_denied', `this is for operators; the certificate is that of a ${principal.kind}`)
}

function refused(message: string): CertpeerError {
  return new CertpeerError('bad_client_certificate', message)
}
