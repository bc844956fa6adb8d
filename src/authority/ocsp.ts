/**
 * OCSP for one issuing CA, from the ledger's state: revoked from the ledger entry on, unknown for what the CA never
 * issued. The answers are signed by a delegate whose key lives in this process alone and whose certificate goes through
 * the same pipeline as every other (RFC 6960 section 4.2.2.2).
 */
import { generateKeyPairSync } from 'node:crypto'
import { parseCertificate, type Certificate } from '../core/x509/certificate.ts'
import { signatureAlgorithmFor, type SignatureAlgorithm } from '../core/x509/encode.ts'
import {
  certIdMatches,
  encodeOcspError,
  encodeOcspResponse,
  encodeOcspResponseData,
  parseOcspRequest,
  responderKeyHash,
  type CertId,
  type OcspRequest,
  type OcspStatus,
} from '../core/x509/ocsp.ts'
import type { Serial } from '../core/x509/serial.ts'
import { isInLastThird } from './authority-certificate.ts'
import type { Authority } from './authority.ts'
import { issue, prepareLeaf } from './issuing/issue.ts'
import { keySigner, signVerified, type IssuingCa, type Signer } from './issuing/signer.ts'
import type { Entry } from './ledger/entry.ts'

/** How long an answer may be believed; a relying party that wants to know now sends a nonce. */
const NEXT_UPDATE_SECONDS = 600
/** An answer without a nonce is kept this long; a ledger entry about its certificate drops it at once. */
const CACHE_SECONDS = 60
const MAX_CACHED = 10_000

interface Delegate {
  readonly certificate: Certificate
  readonly keyHash: Buffer
  readonly signer: Signer
  readonly algorithm: SignatureAlgorithm
}

export interface OcspAnswer {
  readonly body: Buffer
  /** Seconds that caches may keep it; 0 for answers with a nonce and for errors. */
  readonly maxAgeSeconds: number
}

export class OcspResponder {
  private readonly authority: Authority
  private readonly issuer: IssuingCa
  private delegate: Delegate | undefined
  private renewing: Promise<Delegate> | undefined
  /** Counts revocations. */
  private generation = 0
  private readonly cache = new Map<string, { readonly body: Buffer; readonly until: number }>()

  constructor(authority: Authority, issuer: IssuingCa) {
    this.authority = authority
    this.issuer = issuer
  }

  async start(): Promise<void> {
    this.authority.listeners.add(this.onEntry)
    await this.currentDelegate()
  }

  stop(): void {
    this.authority.listeners.delete(this.onEntry)
  }

  /** Never throws for what was sent: OCSP has answers of its own for that. */
  async respond(request: Buffer): Promise<OcspAnswer> {
    let parsed: OcspRequest
    try {
      parsed = parseOcspRequest(request)
    } catch {
      return { body: encodeOcspError('malformedRequest'), maxAgeSeconds: 0 }
    }
    // RFC 6960 2.3: we answer for our own CA alone.
    if (!parsed.certIds.every((certId) => certIdMatches(certId, this.issuer.certificate))) {
      return { body: encodeOcspError('unauthorized'), maxAgeSeconds: 0 }
    }
    const now = this.authority.now()
    const [only, ...more] = parsed.certIds
    const cacheable = only !== undefined && more.length === 0 && parsed.nonce === undefined ? only : undefined
    const kept = cacheable && this.cache.get(cacheable.bytes.toString('latin1'))
    if (kept && kept.until > now.getTime()) {
      return { body: kept.body, maxAgeSeconds: Math.floor((kept.until - now.getTime()) / 1000) }
    }
    const generation = this.generation
    let body: Buffer
    try {
      body = await this.sign(parsed, now)
    } catch (err) {
      this.authority.log.error({ err, issuer: this.issuer.name }, 'OCSP answer not signed')
      return { body: encodeOcspError('tryLater'), maxAgeSeconds: 0 }
    }
    // Something was revoked while this was being signed: fit to answer who asked before, not to be kept.
    if (!cacheable || generation !== this.generation) return { body, maxAgeSeconds: 0 }
    this.keep(cacheable, body, now)
    return { body, maxAgeSeconds: CACHE_SECONDS }
  }

  private readonly onEntry = (entry: Entry): void => {
    const revokes = entry.kind === 'revocation' || (entry.kind === 'certificate' && entry.replaces !== undefined)
    if (!revokes) return
    this.cache.clear()
    this.generation += 1
  }

  private keep(certId: CertId, body: Buffer, now: Date): void {
    // An unknown serial number may be issued any moment.
    if (this.statusOf(certId.serial).status === 'unknown') return
    if (this.cache.size >= MAX_CACHED) this.cache.clear()
    this.cache.set(certId.bytes.toString('latin1'), { body, until: now.getTime() + CACHE_SECONDS * 1000 })
  }

  private async sign(request: OcspRequest, now: Date): Promise<Buffer> {
    const delegate = await this.currentDelegate()
    const thisUpdate = wholeSeconds(now.getTime())
    const nextUpdate = wholeSeconds(now.getTime() + NEXT_UPDATE_SECONDS * 1000)
    const tbs = encodeOcspResponseData({
      responderKeyHash: delegate.keyHash,
      producedAt: thisUpdate,
      responses: request.certIds.map((certId) => ({
        certId: certId.bytes,
        thisUpdate,
        nextUpdate,
        ...this.statusOf(certId.serial),
      })),
      ...(request.nonce === undefined ? {} : { nonce: request.nonce }),
    })
    return encodeOcspResponse({
      tbs,
      algorithmDer: delegate.algorithm.der,
      signature: await signVerified(delegate.signer, delegate.algorithm, tbs),
      certificates: [delegate.certificate.der],
    })
  }

  private statusOf(serial: Serial): OcspStatus {
    const record = this.authority.state.certificates.get(serial)
    if (record?.issuerKeyId !== this.issuer.certificate.keyId) return { status: 'unknown' }
    return record.revoked
      ? { status: 'revoked', revokedAt: wholeSeconds(record.revoked.at.getTime()), reason: record.revoked.reason }
      : { status: 'good' }
  }

  private async currentDelegate(): Promise<Delegate> {
    const now = this.authority.now()
    if (this.delegate && !isInLastThird(this.delegate.certificate, now)) return this.delegate
    this.renewing ??= this.newDelegate()
      .then((delegate) => (this.delegate = delegate))
      .finally(() => (this.renewing = undefined))
    // While the old one is valid, nobody waits for the new one, nor fails with it.
    const present = this.delegate
    if (present && present.certificate.notAfter > now) {
      this.renewing.catch((err: unknown) => this.authority.log.error({ err }, 'OCSP signer not renewed'))
      return present
    }
    return await this.renewing
  }

  private async newDelegate(): Promise<Delegate> {
    const { authority, issuer } = this
    const signer = keySigner(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey)
    const profile = authority.profiles['ocsp-signer']
    const now = Math.floor(authority.now().getTime() / 1000) * 1000
    const name = `${issuer.name} OCSP`
    const prepared = prepareLeaf(authority, issuer, 'ocsp-signer', {
      commonName: name,
      spki: signer.publicKey.export({ type: 'spki', format: 'der' }),
      notBefore: new Date(now - profile.backdateSeconds * 1000),
      notAfter: new Date(Math.min(now + profile.lifetimeSeconds * 1000, issuer.certificate.notAfter.getTime())),
    })
    const issued = await issue(authority, issuer, 'ocsp-signer', prepared, { name, networks: [] })
    const certificate = parseCertificate(issued.der)
    return {
      certificate,
      keyHash: responderKeyHash(certificate),
      signer,
      algorithm: signatureAlgorithmFor(signer.publicKey),
    }
  }
}

function wholeSeconds(milliseconds: number): Date {
  return new Date(Math.floor(milliseconds / 1000) * 1000)
}
