/**
 * The issuing CAs this server works under. Whoever names one (a row, an HTTP answer) is not believed: a certificate
 * enters only when it verifies under the pinned root, and what entered stays until it expires.
 */
import { CertpeerError } from '../core/errors.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { verifyIssuer } from '../core/x509/path.ts'

/** More issuing CAs than this under one root is not a deployment but a flood. */
const MAX_ISSUERS = 64

export interface Issuers {
  readonly root: Certificate
  /** Verifies the certificate under the root and keeps it. True when it is new. Throws when it does not verify. */
  offer(der: Buffer, now: Date): boolean
  /** Those whose own validity holds now. */
  list(now: Date): readonly Certificate[]
  /** The issuer (or the root) whose key is `keyId`; the newest, when a CA renewed its certificate on the same key. */
  findByKeyId(keyId: string): Certificate | undefined
  /** Candidates for who signed something that names its issuer by name and key identifier. */
  findSigners(issuerDer: Buffer, authorityKeyId: string | undefined): readonly Certificate[]
  onAdded(listener: (issuer: Certificate) => void): void
}

export function createIssuers(root: Certificate, oids: CertpeerOids): Issuers {
  const byFingerprint = new Map<string, Certificate>()
  const listeners: ((issuer: Certificate) => void)[] = []

  const isCurrent = (issuer: Certificate, now: Date): boolean => issuer.notBefore <= now && now <= issuer.notAfter

  return {
    root,
    offer(der, now) {
      // The same few certificates are offered every few seconds.
      for (const held of byFingerprint.values()) if (held.der.equals(der)) return false
      const issuer = parseCertificate(der)
      verifyIssuer({ issuer, root, now, oids })
      for (const held of byFingerprint.values()) {
        if (!isCurrent(held, now) && held.notAfter < now) byFingerprint.delete(held.fingerprint)
      }
      if (byFingerprint.size >= MAX_ISSUERS) {
        throw new CertpeerError('certificate_untrusted', `more than ${MAX_ISSUERS} issuing CAs under this root`)
      }
      byFingerprint.set(issuer.fingerprint, issuer)
      for (const listener of listeners) listener(issuer)
      return true
    },
    list(now) {
      return [...byFingerprint.values()].filter((issuer) => isCurrent(issuer, now))
    },
    findByKeyId(keyId) {
      if (keyId === root.keyId) return root
      return [...byFingerprint.values()]
        .filter((issuer) => issuer.keyId === keyId)
        .sort((a, b) => b.notBefore.getTime() - a.notBefore.getTime())[0]
    },
    findSigners(issuerDer, authorityKeyId) {
      return [root, ...byFingerprint.values()].filter(
        (issuer) =>
          issuer.subjectDer.equals(issuerDer) &&
          (authorityKeyId === undefined || issuer.subjectKeyId === authorityKeyId),
      )
    },
    onAdded(listener) {
      listeners.push(listener)
    },
  }
}
