/**
 * What a gateway has verified so far: issuing CAs, CRLs and network documents under the pinned root, and every
 * revocation it ever saw. It only learns: numbers rise, and a revocation that a later CRL no longer names stays one.
 * Pure; the clock comes in, bytes come in, and what has to be on disk is told by the results.
 */
import { CertpeerError } from '../../core/errors.ts'
import { requireNotOlder, verifyNetworkDocument } from '../../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { parseCrl, verifyCrl, type Crl } from '../../core/x509/crl.ts'
import { networkKey } from '../../core/x509/identity.ts'
import type { CertpeerOids } from '../../core/x509/oids.ts'
import { verifyIssuer } from '../../core/x509/path.ts'
import type { Serial } from '../../core/x509/serial.ts'

/** How far the clocks of the authority and of this gateway may be apart. */
export const CLOCK_SKEW_MS = 5 * 60_000
/** Oldest CRL under which a peer may be added. */
export const MAX_CRL_AGE_MS = 15 * 60_000
/**
 * A device's certificate that lives longer is refused. So there is an instant after which no older certificate of an
 * identity and no certificate of a revocation can be valid any more, and what was kept because of it may go.
 */
export const MAX_DEVICE_LIFETIME_MS = 31 * 86_400_000

const MAX_ISSUERS = 64

export interface Pinned {
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly trustDomain: string
  /** Key id of the CA that issued this gateway's own certificate: its word on time holds for everything. */
  readonly infrastructureKeyId: string
}

/** A revocation that has dropped out of its CRL, and when. */
export interface DroppedRevocation {
  readonly issuerKeyId: string
  readonly serial: Serial
  readonly droppedAt: Date
}

export type CrlAcceptance =
  | { readonly kind: 'same'; readonly crl: Crl; readonly issuer: Certificate }
  | {
      readonly kind: 'newer'
      readonly crl: Crl
      readonly issuer: Certificate
      readonly dropped: readonly DroppedRevocation[]
    }

export class TrustStore {
  readonly pinned: Pinned
  /** By fingerprint: a CA may have several certificates for one key. */
  readonly #issuers = new Map<string, Certificate>()
  /** By key id of the issuer; the root's is among them. */
  readonly #crls = new Map<string, Crl>()
  /** By key id of the issuer, milliseconds: only rises, also when a CRL is dated before the one it replaces. */
  readonly #newestThisUpdateMs = new Map<string, number>()
  readonly #dropped = new Map<string, Map<Serial, number>>()
  readonly #documents = new Map<string, VerifiedNetworkDocument>()

  constructor(pinned: Pinned) {
    this.pinned = pinned
  }

  get issuers(): readonly Certificate[] {
    return [...this.#issuers.values()]
  }

  get crls(): ReadonlyMap<string, Crl> {
    return this.#crls
  }

  get documents(): ReadonlyMap<string, VerifiedNetworkDocument> {
    return this.#documents
  }

  /**
   * max(clock, newest verified thisUpdate − 5 min). A CA's dates count for what it issued itself; those of the root and
   * of the infrastructure CA count for everything. So one tenant's CA cannot end another tenant's peers by dating a CRL
   * into the future.
   */
  now(clock: Date, issuerKeyId?: string): Date {
    let atMs = clock.getTime()
    for (const keyId of [this.pinned.root.keyId, this.pinned.infrastructureKeyId, issuerKeyId]) {
      const signedMs = keyId === undefined ? undefined : this.#newestThisUpdateMs.get(keyId)
      if (signedMs !== undefined) atMs = Math.max(atMs, signedMs - CLOCK_SKEW_MS)
    }
    return new Date(atMs)
  }

  /** Newest thisUpdate of those whose dates count for everything; undefined before the first CRL. */
  get newestSignedInstant(): Date | undefined {
    const instants = [this.pinned.root.keyId, this.pinned.infrastructureKeyId].map((keyId) =>
      this.#newestThisUpdateMs.get(keyId),
    )
    const newestMs = Math.max(...instants.map((ms) => ms ?? -Infinity))
    return newestMs === -Infinity ? undefined : new Date(newestMs)
  }

  /** True when the CA was not known before. Throws malformed_certificate, certificate_untrusted, certificate_expired. */
  acceptIssuer(der: Buffer, clock: Date): boolean {
    const issuer = parseCertificate(der)
    if (this.#issuers.has(issuer.fingerprint)) return false
    const { root, oids } = this.pinned
    // One that is not valid yet is taken too, because its validity is asked again with each certificate that it issued:
    // a machine that wakes up in 1970 needs it to verify the CRL that tells it the time.
    const now = new Date(Math.max(this.now(clock).getTime(), issuer.notBefore.getTime()))
    verifyIssuer({ issuer, root, now, oids })
    if (this.#issuers.size >= MAX_ISSUERS) {
      throw new CertpeerError('certificate_untrusted', `more than ${MAX_ISSUERS} issuing CAs are offered`)
    }
    this.#issuers.set(issuer.fingerprint, issuer)
    return true
  }

  /**
   * Throws malformed_crl, revocation_unknown when its issuer is not known, and stale_crl for a lower number than seen
   * before. An old CRL is accepted when nothing newer is known: what it revokes is revoked; whether a peer may be added
   * under it is asked by `requireFresh`.
   */
  acceptCrl(der: Buffer, clock: Date): CrlAcceptance {
    const crl = parseCrl(der, this.pinned.oids)
    const issuer = this.#issuerOf(crl)
    const held = this.#crls.get(issuer.keyId)
    if (held?.der.equals(der) === true) return { kind: 'same', crl: held, issuer }
    verifyCrl(crl, issuer)
    if (held !== undefined) requireHigherNumber(crl, held)
    const dropped: DroppedRevocation[] = []
    const droppedAt = this.now(clock, issuer.keyId)
    for (const serial of held?.entries.keys() ?? []) {
      if (!crl.entries.has(serial)) dropped.push({ issuerKeyId: issuer.keyId, serial, droppedAt })
    }
    for (const revocation of dropped) this.restoreDropped(revocation)
    this.#crls.set(issuer.keyId, crl)
    const newestMs = this.#newestThisUpdateMs.get(issuer.keyId) ?? -Infinity
    this.#newestThisUpdateMs.set(issuer.keyId, Math.max(newestMs, crl.thisUpdate.getTime()))
    return { kind: 'newer', crl, issuer, dropped }
  }

  /**
   * Takes a network document that is newer than the one held; undefined when it is the same. Throws foreign_network for
   * one that is not `served`, and what verifyNetworkDocument and requireNotOlder throw: network_document_stale for a
   * lower number.
   */
  acceptDocument(jws: string, served: ReadonlySet<string>, clock: Date): VerifiedNetworkDocument | undefined {
    const { root, oids, trustDomain } = this.pinned
    const offered = verifyNetworkDocument({
      jws,
      root,
      now: this.now(clock),
      oids,
      trustDomain,
      isRevoked: (serial, issuerKeyId) => this.isRevoked(issuerKeyId, serial),
    })
    const key = networkKey(offered.document.tenant, offered.document.network)
    if (!served.has(key)) {
      throw new CertpeerError('foreign_network', `the network document of ${key}, which this gateway does not serve`)
    }
    const held = this.#documents.get(key)
    if (held !== undefined && requireNotOlder(held, offered) === 'same') return undefined
    this.#documents.set(key, offered)
    return offered
  }

  /** Takes note of a revocation that was seen in a verified CRL before. */
  restoreDropped({ issuerKeyId, serial, droppedAt }: DroppedRevocation): void {
    const serials = this.#dropped.get(issuerKeyId) ?? new Map<Serial, number>()
    serials.set(serial, Math.max(serials.get(serial) ?? 0, droppedAt.getTime()))
    this.#dropped.set(issuerKeyId, serials)
  }

  /** Those that are still of use: certificates of older ones cannot be valid any more. */
  *droppedRevocations(clock: Date): Generator<DroppedRevocation> {
    const oldestMs = this.now(clock).getTime() - MAX_DEVICE_LIFETIME_MS - CLOCK_SKEW_MS
    for (const [issuerKeyId, serials] of this.#dropped) {
      for (const [serial, atMs] of serials) {
        if (atMs >= oldestMs) yield { issuerKeyId, serial, droppedAt: new Date(atMs) }
      }
    }
  }

  /** Whether a verified CRL names it now or ever did. */
  isRevoked(issuerKeyId: string, serial: Serial): boolean {
    return (
      this.#crls.get(issuerKeyId)?.entries.has(serial) === true || this.#dropped.get(issuerKeyId)?.has(serial) === true
    )
  }

  /** Whether the root's CRL names one of the CA's certificates: then nothing that the key issued is believed. */
  isIssuerRevoked(issuerKeyId: string): boolean {
    for (const issuer of this.#issuers.values()) {
      if (issuer.keyId === issuerKeyId && this.isRevoked(this.pinned.root.keyId, issuer.serial)) return true
    }
    return false
  }

  /**
   * Throws revocation_unknown without, and stale_crl with a too old CRL of the issuer or the root. The root is offline:
   * its CRL holds until its nextUpdate.
   */
  requireFresh(issuerKeyId: string, clock: Date): void {
    const now = this.now(clock, issuerKeyId)
    const crl = this.#crls.get(issuerKeyId)
    if (crl === undefined) throw new CertpeerError('revocation_unknown', 'no CRL of the issuing CA is known yet')
    if (now.getTime() - crl.thisUpdate.getTime() > MAX_CRL_AGE_MS || now > crl.nextUpdate) {
      throw new CertpeerError(
        'stale_crl',
        `the newest CRL of the issuing CA is of ${crl.thisUpdate.toISOString()}: peers are added only under one of ` +
          `the last ${MAX_CRL_AGE_MS / 60_000} minutes; see whether the pki listener can be reached`,
      )
    }
    const rootCrl = this.#crls.get(this.pinned.root.keyId)
    if (rootCrl === undefined) throw new CertpeerError('revocation_unknown', "the root's CRL is not known yet")
    if (this.now(clock) > rootCrl.nextUpdate) {
      throw new CertpeerError(
        'stale_crl',
        `the root's CRL ended at ${rootCrl.nextUpdate.toISOString()}: publish the next`,
      )
    }
  }

  /** Whether a peer could be added under the issuer's CRL. */
  isFresh(issuerKeyId: string, clock: Date): boolean {
    try {
      this.requireFresh(issuerKeyId, clock)
      return true
    } catch (error) {
      if (!(error instanceof CertpeerError)) throw error
      return false
    }
  }

  #issuerOf(crl: Crl): Certificate {
    for (const candidate of [this.pinned.root, ...this.#issuers.values()]) {
      if (candidate.subjectKeyId === crl.authorityKeyId && candidate.subjectDer.equals(crl.issuerDer)) return candidate
    }
    throw new CertpeerError('revocation_unknown', 'the CRL is of an issuing CA that is not known here')
  }
}

function requireHigherNumber(offered: Crl, held: Crl): void {
  if (offered.number < held.number) {
    throw new CertpeerError(
      'stale_crl',
      `CRL ${offered.number} is older than CRL ${held.number}, which was seen before`,
    )
  }
  if (offered.number === held.number) {
    throw new CertpeerError('malformed_crl', `two different CRLs carry the number ${offered.number}`)
  }
}
