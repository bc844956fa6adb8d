/**
 * The first contact: GET /v1/trust over a connection whose certificate nobody can verify yet. Nothing secret is sent,
 * and nothing of the answer is believed before the root's SHA-256 equals the one in the token.
 */
import { createHash } from 'node:crypto'
import { CertpeerError } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import { trustAnswerSchema } from '../core/messages/enrollment.ts'
import type { Endpoints } from '../core/messages/enrollment.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import { certpeerOids } from '../core/x509/oids.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { verifyIssuer } from '../core/x509/path.ts'
import { pemToDer } from '../core/x509/pem.ts'
import { ApiClient } from '../platform/api-client/client.ts'

/** What is pinned before anything is asked: it comes out of the token, which arrived on a trusted way. */
export interface TrustPin {
  readonly url: string
  /** SHA-256 of the root certificate's DER, lower-case hex. */
  readonly rootFingerprint: string
  readonly trustDomain: string
  readonly pen: number
}

export interface Trust {
  readonly root: Certificate
  readonly rootPem: string
  readonly issuers: readonly Certificate[]
  readonly trustDomain: string
  readonly oids: CertpeerOids
  readonly endpoints: Endpoints
}

const MAX_TRUST_BYTES = 2 * 1024 * 1024

/** Returns root and issuers as proven by the pin; throws certificate_untrusted when the answer is not the token's authority. */
export async function fetchTrust(pin: TrustPin, now: Date): Promise<Trust> {
  const first = new ApiClient({ base: pin.url, ...(pin.url.startsWith('https:') ? { unverified: true } : {}) })
  const { json } = await first.request({ method: 'GET', path: '/v1/trust', maxBytes: MAX_TRUST_BYTES })
  first.close()
  const answer = parseMessage(trustAnswerSchema, json, 'trust')
  const rootDer = pemToDer(answer.root)
  if (createHash('sha256').update(rootDer).digest('hex') !== pin.rootFingerprint) {
    throw new CertpeerError(
      'certificate_untrusted',
      `${pin.url} presents another root certificate than the token names: somebody stands in between, or the token is for another authority`,
    )
  }
  if (answer.trustDomain !== pin.trustDomain || answer.pen !== pin.pen) {
    throw new CertpeerError('certificate_untrusted', `${pin.url} speaks for another trust domain than the token`)
  }
  const root = parseCertificate(rootDer)
  const oids = certpeerOids(pin.pen)
  const issuers = answer.issuers.map((pem) => parseCertificate(pemToDer(pem)))
  for (const issuer of issuers) verifyIssuer({ issuer, root, now, oids })
  return { root, rootPem: answer.root, issuers, trustDomain: pin.trustDomain, oids, endpoints: answer.endpoints }
}
