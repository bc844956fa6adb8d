/**
 * Certificates that whoever owns the authority's own host may have made: the first operator, TLS servers. No token, no
 * challenge; the right to open the directory (or its socket, mode 0600) is the proof. The key comes from the caller.
 */
import { CertpeerError } from '../core/errors.ts'
import type { LocalRole } from '../core/messages/local-credential.ts'
import { formatIdentity } from '../core/x509/identity.ts'
import type { Authority } from './authority.ts'
import { issueLeaf } from './issuing/leaf.ts'
import type { IssuedCertificate } from './issuing/issue.ts'

export interface LocalCredential {
  readonly role: LocalRole
  readonly name: string
  readonly tenant?: string | undefined
  readonly groups: readonly string[]
  readonly dns: readonly string[]
  readonly ips: readonly string[]
  /** SubjectPublicKeyInfo of a P-256 key. */
  readonly spki: Buffer
}

/** Also gives a revoked operator a new life: that is a deliberate act of the host's owner, and it stands in the ledger. */
export async function issueLocal(authority: Authority, request: LocalCredential): Promise<IssuedCertificate> {
  const { role, name, tenant } = request
  if (role === 'server' && request.dns.length + request.ips.length === 0) {
    throw new CertpeerError('malformed_request', 'a server credential needs a DNS name or an IP address')
  }
  if (role !== 'server' && request.dns.length + request.ips.length > 0) {
    throw new CertpeerError('malformed_request', 'an operator credential has no DNS names or IP addresses')
  }
  const uri =
    role === 'server'
      ? formatIdentity({ kind: 'server', name }, authority.trustDomain)
      : formatIdentity({ kind: 'operator', name, ...(tenant === undefined ? {} : { tenant }) }, authority.trustDomain)
  return await issueLeaf(authority, {
    role,
    name,
    tenant,
    uri,
    spki: request.spki,
    networks: [],
    groups: request.groups,
    dns: request.dns,
    ips: request.ips,
    keepAddresses: [],
    replaces: [],
  })
}
