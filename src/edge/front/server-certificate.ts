/** The front's own TLS certificate: renewed in the last third of its life through the enroll listener. */
import { CertpeerError } from '../../core/errors.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import type { Now } from '../../platform/clock.ts'
import { hasCredential, readCredential } from '../../platform/credentials.ts'
import type { Credential } from '../../platform/credentials.ts'
import { renew } from '../enrollment.ts'
import { isRenewalDue } from '../renewal-window.ts'

export interface ServerCertificateOptions {
  /** Credential directory of role `server`. */
  readonly dir: string
  readonly enrollSource: string
  /** The front secret: on a unix socket there is no nginx in between to add it. */
  readonly frontSecret: string
  readonly now: Now
}

export async function readServerCertificate(
  dir: string,
): Promise<{ credential: Credential; certificate: Certificate }> {
  if (!hasCredential(dir)) {
    throw new CertpeerError(
      'not_found',
      `${dir} holds no credential: make one with certpeer ca credential --role server and put it there`,
    )
  }
  const credential = await readCredential(dir)
  if (credential.config.role !== 'server') {
    throw new CertpeerError(
      'config_invalid',
      `${dir} holds a credential of role ${credential.config.role}: make one with certpeer ca credential --role server`,
    )
  }
  return { credential, certificate: parseCertificate(pemToDer(credential.certificate)) }
}

/** Renews when due; false when it was not. The old certificate stays in place until the new one is verified. */
export async function renewServerCertificate(options: ServerCertificateOptions): Promise<boolean> {
  const { dir, enrollSource, frontSecret, now } = options
  const { certificate } = await readServerCertificate(dir)
  if (!isRenewalDue(certificate, now())) return false
  const headers = enrollSource.startsWith('unix:') ? { 'x-certpeer-front': frontSecret } : {}
  await renew({ dir, now, source: { base: enrollSource, headers } })
  return true
}
