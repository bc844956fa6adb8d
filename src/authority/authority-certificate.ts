/** The authority's own certificate, which signs network documents: issued by its own pipeline, renewed in its last third. */
import { parseCertificate, type Certificate } from '../core/x509/certificate.ts'
import { formatIdentity } from '../core/x509/identity.ts'
import { getInfrastructureIssuer, type Authority } from './authority.ts'
import { getSigned, type IssuedCertificate } from './issuing/issue.ts'
import { issueLeaf } from './issuing/leaf.ts'

const NAME = 'main'

export interface AuthorityCertificate {
  readonly certificate: Certificate
  readonly issuer: Certificate
}

/** The one in the ledger while it is of our key and in its first two thirds, else a new one. */
export async function ensureAuthorityCertificate(authority: Authority): Promise<AuthorityCertificate> {
  const uri = formatIdentity({ kind: 'authority', name: NAME }, authority.trustDomain)
  const spki = authority.authoritySigner.publicKey.export({ type: 'spki', format: 'der' })
  const current = authority.state.identities.get(uri)?.current
  const record = current === undefined ? undefined : authority.state.certificates.get(current)
  if (current !== undefined && record && !record.revoked && !isInLastThird(record, authority.now())) {
    const present = parsed(await getSigned(authority, current))
    if (present.certificate.spki.equals(spki)) return present
  }
  getInfrastructureIssuer(authority)
  const issued = await issueLeaf(authority, {
    role: 'authority',
    name: NAME,
    tenant: undefined,
    uri,
    spki,
    networks: [],
    groups: [],
    keepAddresses: [],
    replaces: [],
  })
  authority.log.info({ serial: issued.record.serial, notAfter: issued.record.notAfter }, 'authority certificate issued')
  return parsed(issued)
}

export function isInLastThird(validity: { readonly notBefore: Date; readonly notAfter: Date }, now: Date): boolean {
  const { notBefore, notAfter } = validity
  return now.getTime() > notAfter.getTime() - (notAfter.getTime() - notBefore.getTime()) / 3
}

function parsed(issued: IssuedCertificate): AuthorityCertificate {
  return { certificate: parseCertificate(issued.der), issuer: issued.issuer.certificate }
}
