/**
 * What is revoked, from signed CRLs and from nothing else: a row or an HTTP answer only carries a CRL, its signature
 * under an issuer that itself verifies decides. What was once seen revoked stays revoked for the life of the process,
 * also when a later list forgets it. Without a CRL in force the answer is "unknown", which refuses.
 */
import { CertpeerError } from '../core/errors.ts'
import { parseCrl, verifyCrl } from '../core/x509/crl.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import type { Issuers } from './issuers.ts'

export interface HeldCrl {
  readonly issuerKeyId: string
  readonly number: bigint
  readonly thisUpdate: Date
  readonly nextUpdate: Date
  readonly der: Buffer
}

export type CrlVerdict = 'accepted' | 'held' | 'older'

export interface Revocations {
  /**
   * Takes a CRL in when an issuer that we hold signed it. `older`: a lower number than the one held (a replay);
   * `held`: the one we have. Throws malformed_crl or certificate_untrusted.
   */
  accept(der: Buffer, now: Date): CrlVerdict
  /** True when the serial number was seen in a verified CRL of the issuer. */
  isRevoked(issuerKeyId: string, serial: string): boolean
  /** Throws certificate_revoked, or revocation_unknown when there is no CRL of the issuer in force. */
  requireNotRevoked(certificate: Pick<Certificate, 'serial'>, issuerKeyId: string, now: Date): void
  /** Number of the first CRL in which this process saw the serial. */
  findFirstNumber(issuerKeyId: string, serial: string): bigint | undefined
  findCrl(issuerKeyId: string): HeldCrl | undefined
  /** The newest CRL of each issuer. */
  list(): readonly HeldCrl[]
  onAccepted(listener: (crl: HeldCrl) => void): void
}

export function createRevocations(issuers: Issuers): Revocations {
  const held = new Map<string, HeldCrl>()
  /** Per issuer: serial → number of the CRL that brought it. Only ever grows. */
  const revoked = new Map<string, Map<string, bigint>>()
  const listeners: ((crl: HeldCrl) => void)[] = []

  return {
    accept(der, now) {
      // The same bytes again are the common case (every source offers every CRL): no need to read them.
      for (const crl of held.values()) if (crl.der.equals(der)) return 'held'
      const crl = parseCrl(der)
      const signers = issuers.findSigners(crl.issuerDer, crl.authorityKeyId)
      const [signer] = signers
      if (signer === undefined) {
        throw new CertpeerError('certificate_untrusted', 'the CRL names an issuer that is not under the pinned root')
      }
      verifyCrl(crl, signer)
      // RFC 5280 section 5.1.2.4: a list from the future is a forgery or a broken clock; five minutes of skew are let by.
      if (crl.thisUpdate.getTime() > now.getTime() + MAX_SKEW_MS) {
        throw new CertpeerError('malformed_crl', `the CRL begins at ${crl.thisUpdate.toISOString()}, in the future`)
      }
      const current = held.get(signer.keyId)
      const serials = revoked.get(signer.keyId) ?? new Map<string, bigint>()
      revoked.set(signer.keyId, serials)
      if (current !== undefined && crl.number <= current.number) return crl.number < current.number ? 'older' : 'held'
      for (const serial of crl.entries.keys()) if (!serials.has(serial)) serials.set(serial, crl.number)
      const accepted: HeldCrl = {
        issuerKeyId: signer.keyId,
        number: crl.number,
        thisUpdate: crl.thisUpdate,
        nextUpdate: crl.nextUpdate,
        der,
      }
      held.set(signer.keyId, accepted)
      for (const listener of listeners) listener(accepted)
      return 'accepted'
    },
    isRevoked(issuerKeyId, serial) {
      return revoked.get(issuerKeyId)?.has(serial) === true
    },
    requireNotRevoked(certificate, issuerKeyId, now) {
      if (revoked.get(issuerKeyId)?.has(certificate.serial) === true) {
        throw new CertpeerError('certificate_revoked', `certificate ${certificate.serial} is revoked`)
      }
      const crl = held.get(issuerKeyId)
      if (crl === undefined) {
        throw new CertpeerError('revocation_unknown', 'there is no CRL of the issuing CA yet; try again')
      }
      if (now > crl.nextUpdate) {
        throw new CertpeerError(
          'revocation_unknown',
          `the CRL of the issuing CA ended at ${crl.nextUpdate.toISOString()}; try again when a new one is published`,
        )
      }
    },
    findFirstNumber(issuerKeyId, serial) {
      return revoked.get(issuerKeyId)?.get(serial)
    },
    findCrl(issuerKeyId) {
      return held.get(issuerKeyId)
    },
    list() {
      return [...held.values()]
    },
    onAccepted(listener) {
      listeners.push(listener)
    },
  }
}

const MAX_SKEW_MS = 5 * 60_000
