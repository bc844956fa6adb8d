/** Our own credential, verified as strictly as anybody else's, and the API client that shows it. */
import { parseCertificate } from '../core/x509/certificate.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import { certpeerOids } from '../core/x509/oids.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { verifyCertificate } from '../core/x509/path.ts'
import type { VerifiedCertificate } from '../core/x509/path.ts'
import { pemToDer } from '../core/x509/pem.ts'
import { ApiClient } from '../platform/api-client/client.ts'
import { readCredential } from '../platform/credentials.ts'
import type { Credential } from '../platform/credentials.ts'
import type { Now } from '../platform/clock.ts'
import { CertpeerError } from '../core/errors.ts'
import { renew } from './enrollment.ts'
import { isRenewalDue } from './renewal-window.ts'

export interface OwnIdentity {
  readonly credential: Credential
  /** Valid at its own notBefore; whether it still is, is `isExpired`. */
  readonly verified: VerifiedCertificate
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly trustDomain: string
}

/** Reads and verifies the credential in `dir` under its own pinned root; an expired one is still ours. */
export async function readOwnIdentity(dir: string, now: Date): Promise<OwnIdentity> {
  return verifyOwn(await readCredential(dir), now)
}

export function verifyOwn(credential: Credential, now: Date): OwnIdentity {
  const certificate = parseCertificate(pemToDer(credential.certificate))
  const issuer = parseCertificate(pemToDer(credential.issuer))
  const root = parseCertificate(pemToDer(credential.root))
  const oids = certpeerOids(credential.config.pen)
  const { trustDomain } = credential.config
  // At an instant of its life: that it has expired must not hide who it is, because an expired one can be renewed.
  const at = now > certificate.notAfter ? certificate.notAfter : now
  const verified = verifyCertificate({ certificate, issuers: [issuer], root, now: at, oids, trustDomain })
  return { credential, verified, root, oids, trustDomain }
}

/**
 * The credential, renewed first when it is in the last third of its life. A renewal that fails matters only when the
 * certificate has expired: then its error is thrown, otherwise `onFailure` hears of it.
 */
export async function readFreshIdentity(
  dir: string,
  now: Now,
  onFailure: (error: unknown) => void = () => undefined,
): Promise<OwnIdentity> {
  const own = await readOwnIdentity(dir, now())
  const { certificate } = own.verified
  if (!isRenewalDue(certificate, now())) return own
  try {
    const { credential } = await renew({ dir, now })
    return verifyOwn(credential, now())
  } catch (error) {
    if (now() > certificate.notAfter) {
      throw new CertpeerError(
        'certificate_expired',
        `the certificate in ${dir} expired at ${certificate.notAfter.toISOString()} and could not be renewed: ${reasonOf(error)}`,
        { cause: error },
      )
    }
    onFailure(error)
    return own
  }
}

/** A client for one of the listeners that ask for a certificate. */
export function clientFor({ credential }: OwnIdentity, base: string, timeoutMs?: number): ApiClient {
  return new ApiClient({
    base,
    root: credential.root,
    clientCertificate: { certificate: credential.chain, key: credential.tlsKey },
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  })
}

function reasonOf(error: unknown): string {
  return error instanceof CertpeerError ? error.message : 'unexpected failure'
}
