/** What enrollment and renewal answer with. */
import { derToPem } from '../core/x509/pem.ts'
import type { CertificateAnswer } from '../core/messages/enrollment.ts'
import type { Authority } from './authority.ts'
import type { IssuedCertificate } from './issuing/issue.ts'

export function certificateAnswer(authority: Authority, issued: IssuedCertificate): CertificateAnswer {
  const { record, issuer } = issued
  return {
    certificate: derToPem(issued.der),
    issuer: derToPem(issuer.certificate.der),
    serial: record.serial,
    identity: record.uri,
    notAfter: record.notAfter.toISOString(),
    endpoints: authority.endpoints,
    networkDocuments: record.networks.flatMap((name) => authority.state.networks.get(name)?.jws ?? []),
  }
}
