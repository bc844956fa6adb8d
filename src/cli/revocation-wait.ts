/**
 * `revoke --wait`: what has to be true before anybody may say "gone". That it is revoked is believed only from a CRL or
 * an OCSP answer that verifies here, under the pinned root; that gateways removed the peer, from each one's own
 * acknowledgement. Whatever is missing is named, with the instant at which it ends by itself.
 */
import { randomBytes } from 'node:crypto'
import { CertpeerError } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import type { RevocationAnswer } from '../core/messages/revocation.ts'
import { goneAnswerSchema } from '../core/messages/views.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import { parseCrl, verifyCrl } from '../core/x509/crl.ts'
import { encodeOcspRequest, verifyOcspResponse } from '../core/x509/ocsp.ts'
import { verifyCertificate } from '../core/x509/path.ts'
import { pemToDer } from '../core/x509/pem.ts'
import { ApiClient } from '../platform/api-client/client.ts'
import { systemNow } from '../platform/clock.ts'
import type { Now } from '../platform/clock.ts'
import { sleep } from '../platform/lifecycle.ts'
import type { OperatorSession } from './operator-session.ts'
import type { Io } from './output.ts'

export interface CertificateConfirmation {
  readonly serial: string
  /** How it was proven to be revoked; null: not proven. `expired` needs no proof: nobody accepts it any more. */
  readonly proof: 'crl' | 'ocsp' | 'expired' | null
  /** Gateways that do not have the peer, with the instant of the removal, or null where there was nothing to remove. */
  readonly gone: readonly { readonly gateway: string; readonly appliedAt: string | null }[]
  /** Gateways that did not; `server` stands for all of them when the server could not be asked. */
  readonly missing: readonly { readonly gateway: string; readonly why: string }[]
  /** When the peer ends by itself wherever it was not reached. */
  readonly endsAt: string
}

export interface Confirmation {
  readonly complete: boolean
  readonly certificates: readonly CertificateConfirmation[]
}

export interface ConfirmOptions {
  readonly timeoutMs: number
  readonly now?: Now
}

const POLL_MS = 150
const MAX_CRL_BYTES = 134_217_728

export async function confirmRevocation(
  session: Pick<OperatorSession, 'own' | 'api'>,
  answer: RevocationAnswer,
  { timeoutMs, now = systemNow }: ConfirmOptions,
): Promise<Confirmation> {
  const deadlineMs = now().getTime() + timeoutMs
  const certificates = await Promise.all(
    answer.certificates.map(async (revoked): Promise<CertificateConfirmation> => {
      const { serial, notAfter } = revoked
      const certificate = parseCertificate(pemToDer(revoked.certificate))
      const issuer = parseCertificate(pemToDer(revoked.issuer))
      if (certificate.serial !== serial || certificate.notAfter.toISOString() !== new Date(notAfter).toISOString()) {
        throw new CertpeerError('certificate_untrusted', 'the authority describes another certificate than it shows')
      }
      const endsAt = certificate.notAfter.toISOString()
      if (certificate.notAfter <= now()) return { serial, proof: 'expired', gone: [], missing: [], endsAt }
      const role = roleOf(certificate, issuer, session, now())
      const [proof, gateways] = await Promise.all([
        prove(certificate, issuer, deadlineMs, now),
        // Only devices are peers; a gateway's own stream is ended by the server.
        role === 'device' ? askGateways(session.api, serial, deadlineMs, now) : { gone: [], missing: [] },
      ])
      return { serial, proof, ...gateways, endsAt }
    }),
  )
  const complete = certificates.every(({ proof, missing }) => proof !== null && missing.length === 0)
  return { complete, certificates }
}

export function reportConfirmation({ complete, certificates }: Confirmation, io: Io): void {
  for (const { serial, proof, gone, missing, endsAt } of certificates) {
    io.print(
      `${serial}  ${proof === null ? 'NOT PROVEN: no CRL or OCSP answer that verifies here says revoked' : PROOFS[proof]}`,
    )
    for (const { gateway, appliedAt } of gone)
      io.print(`${serial}  ${appliedAt === null ? `not on ${gateway}` : `gone on ${gateway} at ${appliedAt}`}`)
    for (const { gateway, why } of missing)
      io.print(`${serial}  NOT CONFIRMED by ${gateway} (${why}); ends by itself at ${endsAt}`)
  }
  io.print(
    complete
      ? 'gone everywhere'
      : 'not confirmed everywhere: see the lines in capitals; run the command again to ask again',
  )
}

const PROOFS = {
  crl: 'on the CRL',
  ocsp: 'OCSP says revoked',
  expired: 'expired before',
} as const

/** The certificate stands under our own root: otherwise a proof about it would prove nothing. */
function roleOf(
  certificate: Certificate,
  issuer: Certificate,
  { own: { root, oids, trustDomain } }: Pick<OperatorSession, 'own'>,
  now: Date,
): string {
  return verifyCertificate({ certificate, issuers: [issuer], root, oids, trustDomain, now }).role
}

async function prove(
  certificate: Certificate,
  issuer: Certificate,
  deadlineMs: number,
  now: Now,
): Promise<'crl' | 'ocsp' | null> {
  for (;;) {
    if (await isOnCrl(certificate, issuer, now()).catch(notYet)) return 'crl'
    if (await isRevokedByOcsp(certificate, issuer, now()).catch(notYet)) return 'ocsp'
    if (now().getTime() >= deadlineMs) return null
    await sleep(POLL_MS)
  }
}

/** Unreachable, stale or forged is all the same here: not a proof. */
function notYet(): false {
  return false
}

async function isOnCrl(certificate: Certificate, issuer: Certificate, now: Date): Promise<boolean> {
  const [url] = certificate.crlUrls
  if (url === undefined) return false
  const { raw } = await fetchPki(url, { method: 'GET' })
  const crl = parseCrl(raw)
  verifyCrl(crl, issuer)
  return crl.nextUpdate > now && crl.entries.has(certificate.serial)
}

async function isRevokedByOcsp(certificate: Certificate, issuer: Certificate, now: Date): Promise<boolean> {
  const [url] = certificate.ocspUrls
  if (url === undefined) return false
  const nonce = randomBytes(32)
  const body = encodeOcspRequest({ certificate, issuer, nonce })
  const { raw } = await fetchPki(url, { method: 'POST', raw: { contentType: 'application/ocsp-request', body } })
  return verifyOcspResponse({ response: raw, certificate, issuer, now, nonce }).status === 'revoked'
}

async function fetchPki(text: string, request: { method: string; raw?: { contentType: string; body: Buffer } }) {
  const url = new URL(text)
  // Plain HTTP (RFC 5280 section 8); what comes is signed. Anything else in a certificate of ours is a fault.
  if (url.protocol !== 'http:') throw new CertpeerError('malformed_certificate', `${text} is not an http URL`)
  const client = new ApiClient({ base: url.origin, timeoutMs: 5_000 })
  try {
    return await client.request({ ...request, path: `${url.pathname}${url.search}`, maxBytes: MAX_CRL_BYTES })
  } finally {
    client.close()
  }
}

type GatewayConfirmation = Pick<CertificateConfirmation, 'gone' | 'missing'>

async function askGateways(
  api: Pick<ApiClient, 'request'>,
  serial: string,
  deadlineMs: number,
  now: Now,
): Promise<GatewayConfirmation> {
  let last: GatewayConfirmation = { gone: [], missing: [{ gateway: 'server', why: 'not asked' }] }
  for (;;) {
    try {
      const { json } = await api.request({ method: 'GET', path: '/v1/peers/gone', query: { serial, wait: 'gone' } })
      const answer = parseMessage(goneAnswerSchema, json, 'gone answer')
      const gateways = answer.gateways
      last = {
        gone: gateways
          .filter(({ state }) => state === 'gone')
          .map(({ name, appliedAt }) => ({ gateway: name, appliedAt })),
        missing: gateways
          .filter(({ state }) => state !== 'gone')
          .map(({ name, state }) => ({ gateway: name, why: state === 'pending' ? 'no answer yet' : 'not connected' })),
      }
      if (last.missing.length === 0) {
        if (answer.state === 'gone') return last
        // Every gateway has it, but the server does not call it gone: its own CRL may lag.
        last = { ...last, missing: [{ gateway: 'server', why: 'not confirmed by the server yet' }] }
      }
    } catch (error) {
      const why = error instanceof Error ? error.message : 'not reachable'
      last = { gone: [], missing: [{ gateway: 'server', why }] }
    }
    // A gateway that is away may come back within the time we were given; `wait` has held us already.
    if (now().getTime() >= deadlineMs) return last
    await sleep(POLL_MS)
  }
}
